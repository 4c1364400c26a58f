"""The sheet of test pictures: which it shows, and what is written below them."""

import re
from html import escape

import pytest
import resvg_py  # noqa: F401

from examples.quickstart.emoji import EmojiDataSpec, build_dataset
from examples.quickstart.sheet import choose_pictures, count_right, write_sheet
from tests.examples.quickstart.drawings import write_packages


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji")
    write_packages(root / "download" / "node_modules")
    spec = EmojiDataSpec(image_size=32, concept_fraction=0.2, rendering_fraction=0.6, num_processes=1)
    return build_dataset(spec, root).splits["test_style"]


def test_pictures_are_drawn_by_chance_and_again_by_the_same_seed(split):
    samples = list(split.samples())
    first, again, other = (choose_pictures(samples, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == len({sample.key for sample in first}) == 12
    assert choose_pictures(samples[:5], seed=0) != samples[:5]
    assert sorted(one.key for one in choose_pictures(samples[:5], seed=0)) == sorted(one.key for one in samples[:5])


def test_truth_and_answers_stand_below_each_picture(split, tmp_path):
    truth = {sample.key: sample.metadata["label"] for sample in split.samples()}
    wrong = dict.fromkeys(truth, "a name that is another")
    shown, answers = choose_pictures(list(split.samples()), seed=0), {"plain": wrong, "teachers": truth}
    write_sheet(shown, answers, tmp_path / "pictures.html")
    written = re.findall(r"<div>(.*?)</div>", (tmp_path / "pictures.html").read_text(encoding="utf-8"))
    for sample in shown:
        name = escape(truth[sample.key])
        assert written.count(name) == written.count(f"✓ teachers: {name}") == 1
    assert written.count("✗ plain: a name that is another") == len(shown)
    assert count_right(shown, answers) == {"plain": 0, "teachers": len(shown)}
