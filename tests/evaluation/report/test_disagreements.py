"""The pictures that models disagree on, against a comparison that is made one by one."""

import attrs
import numpy as np
import pytest

from mobileclip.data import SkipReport
from mobileclip.evaluation.report import LONGEST_SIDE, find_disagreements, find_images, thumbnail
from tests.evaluation.models import ColourModel
from tests.evaluation.reports import CLASS_NAMES, HalfBlind, classification, evaluated, retrieval


@pytest.fixture(scope="module", params=[classification, retrieval], ids=["classes", "captions"])
def world(request, tmp_path_factory):
    benchmark = request.param(tmp_path_factory.mktemp("world"))
    answers = {"A": evaluated(ColourModel(), benchmark).answers, "B": evaluated(HalfBlind(), benchmark).answers}
    return benchmark, answers


def said(benchmark, samples, answer):
    if benchmark.kind == "classification":
        return CLASS_NAMES[answer]
    return [caption for sample in samples for caption in sample.captions][answer]


def test_all_of_them_with_both_answers(world):
    benchmark, answers = world
    samples = [one for one in benchmark.samples(SkipReport(log=False)) if "broken" not in one.key]
    (found,) = find_disagreements(benchmark, "data", answers, most_shown=1000)
    assert (found.model, found.reference, found.num_images) == ("B", "A", len(samples))
    expected = {"gained": [], "lost": []}
    for number, sample in enumerate(samples):
        right = {name: bool(one.right[number]) for name, one in answers.items()}
        if right["A"] != right["B"]:
            words = [said(benchmark, samples, one.answers[number]) for one in (answers["B"], answers["A"])]
            truth = " / ".join(sample.captions) or CLASS_NAMES[sample.label]
            expected["gained" if right["B"] else "lost"].append((truth, *words))
            assert (words[0] in truth, words[1] in truth) == (right["B"], right["A"])
    assert expected["lost"]
    for kind, rows in expected.items():
        assert [(one.truth, one.answer, one.other) for one in getattr(found, kind)] == rows
        assert getattr(found, f"num_{kind}") == len(rows)
        assert all(one.picture is not None for one in getattr(found, kind))


def test_some_of_many_are_spread(world):
    benchmark, answers = world
    (whole,) = find_disagreements(benchmark, "data", answers, most_shown=1000)
    (some,) = find_disagreements(benchmark, "data", answers, most_shown=1)
    assert some.num_lost == whole.num_lost
    assert some.lost == (whole.lost[len(whole.lost) // 2],)


def test_one_model_has_its_mistakes(world):
    benchmark, answers = world
    (found,) = find_disagreements(benchmark, "data", {"B": answers["B"]})
    assert (found.reference, found.gained) == (None, ())
    assert found.num_lost == int((~answers["B"].right).sum()) > 0
    assert all(one.other == "" and one.answer != one.truth for one in found.lost)


def test_models_that_were_asked_about_other_pictures_are_left_out(world):
    benchmark, answers = world
    one = answers["B"]
    other = attrs.evolve(one, keys=one.keys[1:], answers=one.answers[1:], right=one.right[1:])
    (found,) = find_disagreements(benchmark, "data", {"A": answers["A"], "B": other})
    assert (found.model, found.reference) == ("A", None)


def test_a_model_agrees_with_itself(world):
    benchmark, answers = world
    (found,) = find_disagreements(benchmark, "data", {"A": answers["A"], "again": answers["A"]})
    assert (found.num_gained, found.num_lost, found.gained, found.lost) == (0, 0, (), ())


def test_pictures_are_found_behind_one_that_is_broken(tmp_path):
    benchmark = classification(tmp_path, num_images=5)
    samples = [one for one in benchmark.samples(SkipReport(log=False)) if "broken" not in one.key]
    keys = [one.key for one in samples]
    found = find_images(benchmark, keys, pictures=[0, 3], captions=[0, 4])
    assert set(found.pictures) == {0, 3}
    assert found.labels == {0: samples[0].label, 4: samples[4].label}
    (tmp_path / "wds_colours_test" / "test" / "0.tar").unlink()
    assert find_images(benchmark, keys, pictures=[0]).pictures == {}


def test_thumbnails():
    from PIL import Image

    for size, expected in (((400, 200), (192, 96)), ((100, 50), (100, 50)), ((2000, 3), (192, 1))):
        small = thumbnail(Image.new("RGB", size, (200, 30, 30)))
        assert (small.width, small.height) == expected
        assert max(small.width, small.height) <= LONGEST_SIDE
        assert np.asarray(small.pixels()).reshape(-1, 3).mean(0) == pytest.approx((200, 30, 30), abs=6)
