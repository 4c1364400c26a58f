"""The data set of icons, from packages made here in the shape of the published ones."""

import io

import attrs
import numpy as np
import pytest
from PIL import Image

from examples.icons import IconDataSpec, build_dataset
from examples.icons.captions import keyword_caption, synthetic_captions
from examples.icons.duplicates import fingerprint, near_duplicates
from examples.icons.names import clean_name, family
from examples.icons.reading import Icon, read_sets
from examples.icons.sets import ALL_SETS
from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, TITLES, TRAIN, VALIDATION, divide
from examples.quickstart.emoji.rendering import render
from tests.examples.icons.packages import FEW, LABELS, write_icon_packages

CHOSEN = ("bi", "carbon", "iconoir", "lucide", "tabler", "noto")
SPEC = attrs.evolve(FEW, sets=CHOSEN, validation_share=0.5, samples_per_shard=20)


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    return write_icon_packages(tmp_path_factory.mktemp("icons") / "download" / "node_modules", CHOSEN)


@pytest.fixture(scope="module")
def dataset(modules):
    return build_dataset(attrs.evolve(SPEC, output=modules.parents[1]))


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("arrow-left-24-filled", "arrow left"),
        ("ios-cart-outline", "cart"),
        ("home-2-line-duotone", "home"),
        ("outline", "outline"),
        ("brand-github", None),
        ("google-logo", None),
        ("ibm-cloud-vpc-block-storage", None),
        ("4", None),
        ("--", None),
    ],
)
def test_names_say_what_is_depicted(name, phrase):
    assert clean_name(name, max_words=4) == phrase


def test_phrases_of_the_same_words_are_a_family():
    assert family("left arrow") == family("arrows left") != family("arrow right")
    assert family("glass") != family("glas")


def test_one_drawing_of_a_name_is_taken_from_each_set(modules):
    (lucide,) = read_sets(modules, [one for one in ALL_SETS if one.name == "lucide"], max_words=4, seed=0)
    assert sorted(icon.name for icon in lucide.icons) == sorted(LABELS)
    assert lucide.num_drawings == len(LABELS) + 4
    (disc,) = (icon for icon in lucide.icons if icon.name == "blue circle")
    assert disc.keywords == ("blue", "circle", "disc", "geometry")
    assert disc.kind == "geometry"


def test_a_variant_is_chosen_by_the_seed(modules):
    styles = [one for one in ALL_SETS if one.name == "lucide"]
    chosen = {
        icon.source
        for seed in range(8)
        for icon in read_sets(modules, styles, max_words=4, seed=seed)[0].icons
        if icon.name == "red circle"
    }
    assert chosen == {"red-circle", "red-circle-outline"}


def test_every_picture_is_in_one_split(dataset):
    keys = {name: [sample.key for sample in split.samples()] for name, split in dataset.splits.items()}
    assert list(keys) == list(TITLES)
    assert all(len(keys[name]) == split.num_samples > 0 for name, split in dataset.splits.items())
    every = [key for found in keys.values() for key in found]
    assert len(set(every)) == len(every)
    card = dataset.card
    left_out = sum(entry["left_out_as_near_duplicates"] for entry in card["splits"].values())
    assert len(every) + left_out + card["num_in_no_split"] == card["num_pictures"]


def test_splits_hold_out_what_they_say(dataset):
    labels = {name: {one.metadata["label"] for one in split.samples()} for name, split in dataset.splits.items()}
    sets = {name: {one.metadata["set"] for one in split.samples()} for name, split in dataset.splits.items()}
    seen, unseen = set(dataset.splits[TRAIN].class_names), set(dataset.splits[TEST_NAMES].class_names)
    assert labels[TEST_NAMES] <= unseen
    assert not unseen & (labels[TRAIN] | seen)
    assert labels[TEST_SET] | labels[TEST_PICTURES] | labels[VALIDATION] <= seen & labels[TRAIN]
    assert sets[TEST_SET] == {"iconoir"}
    assert not any("iconoir" in sets[name] for name in sets if name != TEST_SET)


def test_the_card_gives_every_source_with_its_licence(dataset):
    card = dataset.card
    assert [one["set"] for one in card["sources"]] == list(CHOSEN)
    assert {one["licence"]["spdx"] for one in card["sources"]} == {"ISC", "MIT"}
    assert sum(one["num_pictures"] for one in card["sources"]) == card["num_pictures"]
    sample = next(dataset.splits[TRAIN].samples())
    assert sample.metadata["licence"] in {"ISC", "MIT"}
    assert len(sample.syn_captions["syn_text"]) == 4
    assert Image.open(io.BytesIO(sample.image)).size == (32, 32)


def test_a_finished_set_is_not_made_again_and_other_choices_are_refused(dataset):
    spec = attrs.evolve(SPEC, output=dataset.root)
    before = (dataset.root / "datacard.json").stat().st_mtime_ns
    assert build_dataset(attrs.evolve(spec, num_processes=2)).splits == dataset.splits
    assert (dataset.root / "datacard.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="made with other choices"):
        build_dataset(attrs.evolve(spec, seed=1))


@pytest.mark.parametrize("sets", [("bi",), ("bi", "bi"), ("bi", "unknown")])
def test_unknown_and_single_sets_are_refused(sets):
    with pytest.raises(ValueError, match="two or more different ones of bi, carbon"):
        IconDataSpec(sets=sets)


def _icon(name, set_name):
    return Icon(set_name=set_name, source=name, name=name, keywords=(name,), kind="", svg="")


CHOICES = {
    "held_out_set": "iconoir",
    "name_fraction": 1e-9,
    "picture_fraction": 1 - 1e-9,
    "validation_share": 1e-9,
    "min_sets": 2,
    "seed": 0,
}


def test_a_held_out_drawing_with_a_twin_in_training_is_left_out():
    icons = [_icon("cat", one) for one in ("bi", "mdi", "iconoir")] + [_icon("dog", "bi")]
    free = divide(icons, [], **CHOICES)
    (held_out,) = free.members[TEST_PICTURES]
    (trained,) = (index for index in free.members[TRAIN] if icons[index].name == "cat")
    assert free.members[TEST_SET] == (2,)
    twins = divide(icons, [(min(held_out, trained), max(held_out, trained)), (2, 3)], **CHOICES)
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


def test_a_fingerprint_is_the_grey_levels_of_a_small_picture():
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste("black", (0, 0, 32, 64))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    levels = fingerprint(stream.getvalue()).reshape(16, 16)
    assert (levels[:, :8] == 0).all()
    assert (levels[:, 8:] == 1).all()


def test_captions_tell_of_the_picture():
    body = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M1 9H23V15H1z" fill="#d22"/></svg>'
    icon = Icon(set_name="bi", source="bar-fill", name="bar", keywords=("bar", "stick"), kind="shapes", svg=body)
    rendering = render(body, 64)
    assert rendering is not None
    assert synthetic_captions(icon, rendering) == (
        "a wide icon of a bar in red on a white background",
        "a simple drawing of a bar",
        "a bar, from shapes",
        "a wide symbol in red",
    )
    found = {keyword_caption(icon, seed=seed) for seed in range(30)}
    assert found == {"bar", "stick", "bar, stick", "stick, bar"}
