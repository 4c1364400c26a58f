"""The data set of icons, from packages made here in the shape of the published ones."""

import attrs
import numpy as np
import pytest

from examples.icons import build_dataset
from examples.icons.dataset import near_duplicates
from examples.icons.names import clean_name
from examples.icons.reading import Icon
from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, TITLES, TRAIN, VALIDATION, divide
from tests.examples.icons.packages import FEW, write_icon_packages

CHOSEN = ("bi", "carbon", "iconoir", "lucide", "tabler", "noto")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("icons")
    write_icon_packages(folder / "download" / "node_modules", CHOSEN)
    return build_dataset(attrs.evolve(FEW, sets=CHOSEN, validation_share=0.5, samples_per_shard=20, output=folder))


def test_names_say_what_is_depicted():
    phrases = {"arrow-left-24-filled": "arrow left", "ios-cart-outline": "cart", "home-2-line-duotone": "home"}
    nothing = ("brand-github", "google-logo", "ibm-cloud-vpc-block-storage", "4", "--")
    phrases |= {"outline": "outline"} | dict.fromkeys(nothing)
    assert {name: clean_name(name, max_words=4) for name in phrases} == phrases


def test_every_picture_is_in_one_split(dataset):
    keys = [[sample.key for sample in split.samples()] for split in dataset.splits.values()]
    assert list(dataset.splits) == list(TITLES)
    assert list(map(len, keys)) == [split.num_samples for split in dataset.splits.values()]
    every = [key for found in keys for key in found]
    assert all(keys)
    assert len(set(every)) == len(every)
    card = dataset.card
    left_out = sum(entry["left_out_as_near_duplicates"] for entry in card["splits"].values())
    assert len(every) + left_out + card["num_in_no_split"] == card["num_pictures"]


def test_splits_hold_out_what_they_say(dataset):
    labels, sets = (
        {name: {one.metadata[field] for one in split.samples()} for name, split in dataset.splits.items()}
        for field in ("label", "set")
    )
    seen, unseen = set(dataset.splits[TRAIN].class_names), set(dataset.splits[TEST_NAMES].class_names)
    assert labels[TEST_NAMES] <= unseen
    assert not unseen & (labels[TRAIN] | seen)
    assert labels[TEST_SET] | labels[TEST_PICTURES] | labels[VALIDATION] <= seen & labels[TRAIN]
    assert sets[TEST_SET] == {"iconoir"}
    assert not any("iconoir" in sets[name] for name in sets if name != TEST_SET)


CHOICES = {"held_out_set": "iconoir", "name_fraction": 1e-9, "picture_fraction": 1 - 1e-9, "validation_share": 1e-9}
CHOICES |= {"min_sets": 2, "seed": 0}


def test_a_held_out_drawing_with_a_twin_in_training_is_left_out():
    pairs = ("cat", "bi"), ("cat", "mdi"), ("cat", "iconoir"), ("dog", "bi")
    icons = [Icon(set_name=one, source=name, name=name, keywords=(name,), kind="", svg="") for name, one in pairs]
    free = divide(icons, [], **CHOICES)
    (held_out,) = free.members[TEST_PICTURES]
    (trained,) = (index for index in free.members[TRAIN] if icons[index].name == "cat")
    assert free.members[TEST_SET] == (2,)
    twins = divide(icons, [tuple(sorted((held_out, trained))), (2, 3)], **CHOICES)
    assert twins.members[TEST_PICTURES] == twins.members[TEST_SET] == ()
    assert twins.members[TRAIN] == free.members[TRAIN]
    assert twins.num_twins[TEST_PICTURES] == twins.num_twins[TEST_SET] == 1
    among_tests = divide(icons, [(min(held_out, 2), max(held_out, 2))], **CHOICES)
    assert among_tests.members == free.members


def test_near_duplicates_are_all_pairs_below_the_bound():
    generator = np.random.default_rng(0)
    prints = [generator.random(256, dtype=np.float32) for _ in range(5000)]
    prints[4999] = prints[7] + np.float32(0.04)
    prints[4000] = prints[7] - np.float32(0.03)
    assert sorted(near_duplicates(prints, max_rms=0.05)) == [(7, 4000), (7, 4999)]
    assert sorted(near_duplicates(prints, max_rms=0.08)) == [(7, 4000), (7, 4999), (4000, 4999)]
