"""What is measured, against written-out loops, and the checks at their bounds."""

import math

import pytest
import torch

from mobileclip.export import Ranking, Report
from mobileclip.export.verify import checks_of, compare_rankings, compare_tower
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.serialization import from_json


def embeddings(count=9, dim=5, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


REFERENCE = embeddings()
SAME = compare_rankings({}, {"image": REFERENCE, "text": embeddings(seed=1)})


def failed(exported, reference=REFERENCE, ranking=SAME, precision="float32"):
    """The names of the checks that an image tower fails."""
    found = compare_tower("image", exported, reference)
    return [check.name for check in checks_of((found,), ranking, precision) if not check.passed]


def naive_length(row):
    return math.sqrt(sum(a * a for a in row))


def naive_cosine(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True)) / naive_length(one) / naive_length(other)


def test_cosines_against_loops():
    exported = REFERENCE + 0.1 * embeddings(seed=3)
    pairs = list(zip(exported.tolist(), REFERENCE.tolist(), strict=True))
    cosines = sorted(naive_cosine(*pair) for pair in pairs)
    found = compare_tower("image", exported, REFERENCE)
    assert (found.cosine_minimum, found.cosine_median) == (pytest.approx(cosines[0]), pytest.approx(cosines[4]))
    worst = max(abs(naive_length(one) / naive_length(other) - 1) for one, other in pairs)
    assert found.length_error == pytest.approx(worst, rel=1e-5)


def test_ranking_agreement_against_loops():
    reference = {"image": embeddings(7), "text": embeddings(11, seed=1)}
    exported = {"image": reference["image"] + 0.5 * embeddings(7, seed=2)}

    def first(keys, one, other, row):
        cosines = [naive_cosine(keys[one][row].tolist(), key.tolist()) for key in keys[other]]
        return cosines.index(max(cosines))

    agreeing = sum(
        first(reference | exported, one, other, row) == first(reference, one, other, row)
        for one, other in (("image", "text"), ("text", "image"))
        for row in range(len(reference[one]))
    )
    found = compare_rankings(exported, reference)
    assert (found.kind, found.num_queries, found.agreement) == ("image-text", 18, pytest.approx(agreeing / 18))
    assert 0 < found.agreement < 1


def test_a_tower_alone_is_ranked_by_neighbours():
    reference = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    for exported, agreement in ((reference.clone(), 1), (reference[[0, 3, 2, 1]], 0)):
        found = compare_rankings({"image": exported}, {"image": reference})
        assert (found.kind, found.num_queries, found.agreement) == ("neighbours", 4, agreement)


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("float16", 0.9995), ("bfloat16", 0.9995)])
def test_cosine_check_at_its_bound(precision, least):
    reference = embeddings(6, 2)
    for cosine, expected in ((least + 2e-6, []), (least - 2e-6, ["image cosine, minimum"])):
        sine = math.sqrt(1 - cosine**2)
        exported = reference.double().clone()
        exported[2] = torch.tensor([[cosine, -sine], [sine, cosine]]).double() @ exported[2]
        assert failed(exported, reference, precision=precision) == expected


def test_a_value_that_is_not_finite_fails():
    exported = REFERENCE.clone()
    exported[3, 1], exported[5, 0] = torch.nan, torch.inf
    found = compare_tower("image", exported, REFERENCE)
    assert (found.num_not_finite, found.cosine_minimum, found.spread) == (2, None, None)
    assert {"image embeddings with NaN or infinity", "image cosine, minimum"} <= {*failed(exported)}


@pytest.mark.parametrize(
    ("exported", "name"),
    [
        (torch.cat([torch.zeros(1, 5), REFERENCE[1:]]), "embeddings of length zero"),
        (REFERENCE[:1].repeat(9, 1), "spread"),
        (2 * REFERENCE, "length error"),
    ],
)
def test_length_zero_constant_and_scaled_embeddings_fail(exported, name):
    assert any(name in one for one in failed(exported))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_embeddings_that_hardly_differ_are_compared_by_their_numbers_alone(precision):
    reference = REFERENCE[:1] + 1e-4 * embeddings(seed=3)
    swapped = reference.flip(0)
    ranking = compare_rankings({"image": swapped}, {"image": reference})
    assert ranking.agreement < 0.5
    assert failed(swapped, reference, ranking, precision) == []
    assert "image cosine, minimum" in failed(REFERENCE, reference, ranking, precision)


def test_the_ranking_check_is_an_interval_over_the_queries():
    """Those of Clopper and Pearson; of the twelve pictures' 36 queries, one or two change by chance."""
    for count, most in ((2, 0), (12, 1), (36, 2), (1000, 17), (10_000, 120)):
        for changed, names in ((most, []), (most + 1, ["ranking agreement"])):
            ranking = Ranking(kind="image-text", num_queries=count, agreement=(count - changed) / count)
            assert failed(REFERENCE, ranking=ranking, precision="float16") == names, (count, changed)


def test_report_round_trips_and_names_what_failed():
    found = compare_tower("image", REFERENCE * torch.nan, REFERENCE)
    of = {"data": "here", "runtime": "torch", "image_names": ("a",), "captions": (), "skipped": {"torn": 1}}
    report = Report(**of, towers=(found,), ranking=SAME, checks=checks_of((found,), SAME, "float16"))
    assert from_json(report.to_json(), Report) == report
    assert not report.passed
    assert "image embeddings with NaN or infinity is 9, expected 0" in report.failures
    assert f"image cosine, minimum is None, expected > {LEAST_COSINE['float16']}" in report.failures
