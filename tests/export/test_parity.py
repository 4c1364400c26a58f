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


def failed(parities, ranking, precision="float32"):
    return [check.name for check in checks_of(tuple(parities), ranking, precision) if not check.passed]


def same_ranking():
    reference = {"image": embeddings(), "text": embeddings(seed=1)}
    return compare_rankings({}, reference)


def naive_cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def test_cosines_against_loops():
    reference, exported = embeddings(), embeddings() + 0.1 * embeddings(seed=3)
    cosines = sorted(map(naive_cosine, exported.tolist(), reference.tolist()))
    found = compare_tower("image", exported, reference)
    assert found.cosine_minimum == pytest.approx(cosines[0])
    assert found.cosine_median == pytest.approx(cosines[4])
    lengths = [math.sqrt(sum(a * a for a in row)) for row in exported.tolist()]
    expected = [math.sqrt(sum(a * a for a in row)) for row in reference.tolist()]
    worst = max(abs(one / other - 1) for one, other in zip(lengths, expected, strict=True))
    assert found.length_error == pytest.approx(worst, rel=1e-5)


def test_ranking_agreement_against_loops():
    reference = {"image": embeddings(7), "text": embeddings(11, seed=1)}
    exported = {"image": reference["image"] + 0.5 * embeddings(7, seed=2)}
    both = {**reference, **exported}
    agreeing = 0
    for one, other in (("image", "text"), ("text", "image")):
        for row in range(len(reference[one])):
            first = [
                max(
                    range(len(keys[other])),
                    key=lambda k: naive_cosine(keys[one][row].tolist(), keys[other][k].tolist()),
                )
                for keys in (both, reference)
            ]
            agreeing += first[0] == first[1]
    found = compare_rankings(exported, reference)
    assert (found.kind, found.num_queries) == ("image-text", 18)
    assert found.agreement == pytest.approx(agreeing / 18)
    assert 0 < found.agreement < 1


def test_a_tower_alone_is_ranked_by_neighbours():
    reference = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    swapped = torch.tensor([[1.0, 0.0], [0.1, 0.9], [0.0, 1.0], [0.9, 0.1]])
    assert compare_rankings({"image": reference.clone()}, {"image": reference}).agreement == 1
    found = compare_rankings({"image": swapped}, {"image": reference})
    assert (found.kind, found.num_queries, found.agreement) == ("neighbours", 4, 0)


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("float16", 0.9995), ("bfloat16", 0.9995)])
def test_cosine_check_at_its_bound(precision, least):
    reference = embeddings(6, 2)
    for cosine, expected in ((least + 2e-6, []), (least - 2e-6, ["image cosine, minimum"])):
        angle = math.acos(cosine)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
        exported = reference.double().clone()
        exported[2] = turn @ exported[2]
        assert failed([compare_tower("image", exported, reference)], same_ranking(), precision) == expected


def test_a_value_that_is_not_finite_fails():
    exported = embeddings()
    exported[3, 1] = torch.nan
    exported[5, 0] = torch.inf
    found = compare_tower("text", exported, embeddings())
    assert (found.num_not_finite, found.cosine_minimum, found.spread) == (2, None, None)
    assert "text embeddings with NaN or infinity" in failed([found], same_ranking())
    assert "text cosine, minimum" in failed([found], same_ranking())


def collapsed(rows):
    return rows[:1].expand(len(rows), -1).contiguous()


def with_a_zero(rows):
    return torch.cat([torch.zeros_like(rows[:1]), rows[1:]])


@pytest.mark.parametrize(
    ("change", "name"),
    [(with_a_zero, "embeddings of length zero"), (collapsed, "spread"), (lambda rows: 2 * rows, "length error")],
)
def test_length_zero_constant_and_scaled_embeddings_fail(change, name):
    found = failed([compare_tower("image", change(embeddings()), embeddings())], same_ranking())
    assert any(name in one for one in found)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_embeddings_that_hardly_differ_are_compared_by_their_numbers_alone(precision):
    one = embeddings()[:1]
    reference = one + 1e-4 * embeddings(seed=3)
    swapped = reference.flip(0)
    ranking = compare_rankings({"image": swapped}, {"image": reference})
    assert ranking.agreement < 0.5
    assert failed([compare_tower("image", swapped, reference)], ranking, precision) == []
    assert "image cosine, minimum" in failed([compare_tower("image", embeddings(), reference)], ranking, precision)


@pytest.mark.parametrize(
    ("changed", "count", "passes"),
    [
        *((0, 2, True), (1, 2, False), (1, 12, True), (2, 12, False), (2, 36, True), (3, 36, False)),
        *((17, 1000, True), (18, 1000, False), (120, 10_000, True), (121, 10_000, False)),
    ],
)
def test_the_ranking_check_is_an_interval_over_the_queries(changed, count, passes):
    """Those of Clopper and Pearson; of the twelve pictures' 36 queries, one or two change by chance."""
    reference = embeddings()
    ranking = Ranking(kind="image-text", num_queries=count, agreement=(count - changed) / count)
    names = failed([compare_tower("image", reference, reference)], ranking, "float16")
    assert names == ([] if passes else ["ranking agreement"])


def test_report_round_trips_and_names_what_failed():
    found = compare_tower("image", embeddings() * torch.nan, embeddings())
    ranking = same_ranking()
    report = Report(
        data="here",
        runtime="torch",
        image_names=("a",),
        captions=(),
        skipped={"torn": 1},
        towers=(found,),
        ranking=ranking,
        checks=checks_of((found,), ranking, "float16"),
    )
    assert from_json(report.to_json(), Report) == report
    assert not report.passed
    assert "image embeddings with NaN or infinity is 9, expected 0" in report.failures
    assert f"image cosine, minimum is None, expected > {LEAST_COSINE['float16']}" in report.failures
