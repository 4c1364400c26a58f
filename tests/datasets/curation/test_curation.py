"""Scores, filters and near duplicates of reinforced shards with planted noise, copies and leaks."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mobileclip.data import ImageTextSample, ReinforcedPipelineSpec, UidList, write_shard
from mobileclip.data.loading.uids import PAIR, sorted_uids, uid_of, write_uids
from mobileclip.data.shards.files import read_shard
from mobileclip.datasets.curation import duplicates as deduplication
from mobileclip.datasets.curation.filtering import FilterSpec, filter_samples
from mobileclip.datasets.curation.scores import Scores, ScoreSpec, columns_of, image_vector, score_shards, similarities
from mobileclip.engines import InlineEngine, LocalEngine, Retries, read_set_aside
from mobileclip.inputs import ImageInput
from tests.build.commands import refused, run, worked
from tests.data.made_samples import golden, make_sample
from tests.engines.conftest import forked_workers  # noqa: F401  a fixture
from tests.errors import fails

DIM, COLUMNS = 32, columns_of((20, 12))
NUM_SHARDS, PER_SHARD = 4, 15
PER_TABLE = 5_000
CPU = torch.device("cpu")


def sample(number, *, shown=None, fit=0.6, spread=0.05):
    """Return a sample whose image lies in the direction of what it shows, and whose captions fit so well."""
    rng, direction = np.random.default_rng(number), direction_of(number if shown is None else shown)
    text = np.empty(DIM)
    for columns in COLUMNS:
        image, other = normal(direction[columns]), rng.standard_normal(direction[columns].shape)
        text[columns] = fit * image + np.sqrt(1 - fit**2) * normal(other - (other @ image) * image)
    return reinforced(number, direction + spread * rng.standard_normal((3, DIM)), text, [text, -text])


def reinforced(number, views, text, syn):
    views, text, syn = (np.asarray(rows, np.float32) for rows in (views, [text], syn))
    return make_sample(number, dim=DIM, image_emb=views, text_emb=text, syn_text_emb={"syn_text": syn})


def direction_of(number):
    return np.random.default_rng(10_000 + number).standard_normal(DIM)


def normal(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Sixty samples: every fifth has a wrong caption; 40 to 49 show what 0 to 9 do, and their captions fit less."""
    folder = tmp_path_factory.mktemp("shards")
    fits = [0.1 if number % 5 == 4 else 0.55 if number >= 40 else 0.6 for number in range(NUM_SHARDS * PER_SHARD)]
    made = [sample(number, shown=number - 40 * (40 <= number < 50), fit=fit) for number, fit in enumerate(fits)]
    parts = [made[first : first + PER_SHARD] for first in range(0, len(made), PER_SHARD)]
    return [write_shard(folder / f"{number:03d}.tar", part, layout="npz") for number, part in enumerate(parts)]


def written(folder, *samples, layout="npz", **choices):
    """Write a shard of samples, and return the scores of them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "0.tar", samples, layout=layout)
    scored([folder / "0.tar"], folder / "scores", **choices)
    return folder / "scores"


def scored(shards, output, *, engine=None, **choices):
    spec = ScoreSpec(shards=[str(path) for path in shards], output=output, **choices)
    return score_shards(spec, engine=engine, show_progress=False)


@pytest.fixture(scope="module")
def scores(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "scores"
    report = scored(shards, folder, vectors=True)
    assert (report.num_samples, report.skipped, report.failed) == (60, {}, ())
    return folder


def every(scores, caption="real"):
    return np.concatenate([one.similarity(caption) for one in Scores.open(scores).shards])


def kept_by(path):
    """Return the numbers of the samples that a list keeps."""
    listed = UidList(Path(path))
    return {number for number in range(NUM_SHARDS * PER_SHARD) if listed(f"{number:06d}", {})}


@pytest.fixture
def filtered(tmp_path):
    """What filters scores, and returns the report and the numbers of the samples that are kept."""

    def run(scores, **choices):
        report = filter_samples(FilterSpec(scores=scores, output=tmp_path / "kept.npy", **choices))
        return report, kept_by(tmp_path / "kept.npy") if report.num_kept else set()

    return run


@pytest.fixture
def duplicates(tmp_path):
    """What looks for duplicates, and returns the report, the samples that are kept, and the lines of the pairs."""

    def run(scores, **choices):
        pairs = tmp_path / "pairs.tsv"
        spec = deduplication.DuplicatesSpec(scores=scores, output=tmp_path / "kept.npy", pairs=pairs, **choices)
        report = deduplication.find_duplicates(spec)
        assert str(report)
        return report, kept_by(spec.output), [line.split("\t") for line in pairs.read_text().splitlines()[1:]]

    return run


def test_it_is_the_mean_of_the_cosines_over_the_augmentations():
    one = sample(1)
    found = similarities(one, COLUMNS)
    images, text = torch.from_numpy(one.image_emb), torch.from_numpy(one.text_emb[0])
    cosines = [torch.cosine_similarity(images[:, columns], text[None, columns]).mean() for columns in COLUMNS]
    for values, expected in ((found.real, cosines), (found.best, found.real), (found.synthetic, [0, 0])):
        np.testing.assert_allclose(values, expected, atol=1e-6)
    found = similarities(attrs.evolve(one, syn_captions={}, syn_text_emb={}), COLUMNS)
    assert np.isnan([*found.synthetic, *found.best]).all()


def test_a_product_of_vectors_is_the_mean_over_the_teachers():
    one, two = (sample(number, spread=0) for number in (1, 2))
    rows = [[normal(each.image_emb[0, columns]) for each in (one, two)] for columns in COLUMNS]
    expected = np.mean([first @ second for first, second in rows])
    assert image_vector(one, COLUMNS) @ image_vector(two, COLUMNS) == pytest.approx(expected, abs=1e-6)
    assert image_vector(one, COLUMNS) @ image_vector(one, COLUMNS) == pytest.approx(1)


def test_the_json_counts_then_the_key_then_its_hash():
    digits, hashed = "0123456789abcdef" * 2, hashlib.sha256(b"picture 7").hexdigest()
    halves, of_hash = ((int(text[:16], 16), int(text[16:32], 16)) for text in (digits, hashed))
    assert uid_of("a", {"json": json.dumps({"uid": digits}).encode()}) == uid_of(digits, {}) == halves
    assert uid_of("picture 7", {}) == of_hash


def test_a_list_is_sorted_and_has_each_uid_once(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "uids.npy"
    uids = np.empty(5000, PAIR)
    uids["f0"], uids["f1"] = rng.integers(0, 2**64, 5000, dtype=np.uint64), rng.integers(0, 9, 5000)
    uids["f0"][:100] = uids["f0"][100]
    assert write_uids(path, []) == len(np.load(path)) == 0
    assert write_uids(path, [uids[:3000], uids[2000:]]) == len(np.unique(uids))
    np.save(tmp_path / "numpys.npy", np.unique(uids))
    assert path.read_bytes() == (tmp_path / "numpys.npy").read_bytes()
    np.testing.assert_array_equal(sorted_uids(uids), np.unique(uids))


def test_they_are_of_every_sample_in_order_and_a_table_that_others_query(shards, scores):
    found = Scores.open(scores)
    assert [one.shard for one in found.shards] == [str(path) for path in shards]
    assert [key for one in found.shards for key in one.keys] == [f"{number:06d}" for number in range(60)]
    assert found.teachers == (("teachers", DIM),)
    one = found.shards[1]
    expected = similarities(sample(17), columns_of((DIM,)))
    assert one.similarity("real")[2] == pytest.approx(expected.real[0], abs=1e-6)
    assert one.vectors.shape == (PER_SHARD, DIM)
    table = pq.read_table(one.path).to_pylist()
    assert [row["key"] for row in table] == one.keys
    assert [(int(row["uid"][:16], 16), int(row["uid"][16:], 16)) for row in table] == one.uids.tolist()
    for caption in ("real", "synthetic", "best"):
        for column, values in ((caption, ()), (f"{caption}_by_teacher", ("teachers",))):
            rows = np.array([row[column] for row in table]).reshape(-1)
            np.testing.assert_array_equal(rows, one.similarity(caption, *values))


def test_the_first_release_s_layout(tmp_path):
    report = scored([golden("npz")], tmp_path / "scores")
    assert report.num_samples == sum(1 for _ in read_shard(golden("npz"), print))
    assert np.isfinite(every(tmp_path / "scores")).all()
    write_shard(tmp_path / "0.tar", [sample(1), make_sample(2, dim=7)], layout="npz")
    report = scored([tmp_path / "0.tar"], tmp_path / "mixed")
    assert (report.num_samples, report.skipped) == (1, {"wrong_dim": 1})


def test_what_will_not_do_is_refused(shards, scores, filtered, duplicates, tmp_path):
    narrow = written(tmp_path / "narrow", make_sample(2, dim=7), vectors=True)
    bare = write_shard(tmp_path / "bare.tar", [ImageTextSample(key="a", captions=("a",), image=b"x")])
    whole = tmp_path / "whole"
    scored(shards[:1], whole)
    for call, named in (
        (lambda: scored([tmp_path / "narrow" / "0.tar"], scores), ("32", "7")),
        (lambda: duplicates(scores, exclude_test_scores=(narrow,)), ()),
        (lambda: scored([bare], tmp_path / "bare"), ()),
        *((lambda: filtered(scores), ()), (lambda: filtered(scores, share=0.5, threshold=0.1), ())),
        (lambda: filtered(scores, share=0.5, teacher="teacher"), ()),
        (lambda: Scores.open(whole).shards[0].vectors, ()),
    ):
        with fails(ValueError, *named):
            call()
    scored(shards[:1], whole, vectors=True)
    assert len(Scores.open(whole).shards[0].vectors) == PER_SHARD
    (path,) = whole.rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:200])
    with fails(ValueError):
        every(whole)


@pytest.mark.parametrize("content", ["", "[]", '{"teachers": 1, "shards": {}}', "{"])
def test_what_are_no_scores_is_refused(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with fails(ValueError, "scores.json"):
        Scores.open(tmp_path)


def test_what_is_scored_is_not_read_again(shards, tmp_path):
    scored(shards[:2], tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert scored(shards[:3], tmp_path).num_samples == 45
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert (len(times), len(list(tmp_path.rglob("*.parquet")))) == (2, 3)


@pytest.mark.slow
def test_two_processes_do_the_same(shards, scores, tmp_path):
    scored(shards[:2], tmp_path, vectors=True, engine=LocalEngine(num_workers=2, devices=("cpu",)))
    for one, two in zip(Scores.open(scores).shards, Scores.open(tmp_path).shards, strict=False):
        assert one.path.read_bytes() == two.path.read_bytes()


def test_a_shard_that_breaks_off_has_none_and_is_tried_again(shards, tmp_path):
    torn, whole = tmp_path / "torn.tar", shards[0].read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    report = scored([torn, shards[1]], tmp_path / "scores", engine=InlineEngine(retries=Retries(pause_seconds=0.0)))
    ((shard, reason),) = report.failed
    assert (report.num_samples, shard) == (PER_SHARD, str(torn))
    assert "truncated_shard" in reason
    assert [aside.tries for aside in read_set_aside(tmp_path / "scores")] == [1]
    torn.write_bytes(whole)
    again = scored([torn, shards[1]], tmp_path / "scores")
    assert (again.num_samples, again.failed) == (2 * PER_SHARD, ())


def test_a_threshold_parts_wrong_captions_from_right_ones_and_training_takes_the_list(
    shards, scores, filtered, tmp_path
):
    report, kept = filtered(scores, threshold=0.3)
    assert (report.num_samples, report.num_kept, report.num_without, report.counts.sum()) == (60, 48, 0, 60)
    assert kept == {number for number in range(60) if number % 5 != 4}
    choices = {"image": ImageInput(size=32), "batch_size": 4, "sampling": "endless", "num_samples": 48}
    spec = ReinforcedPipelineSpec(shards=tuple(map(str, shards)), uids=tmp_path / "kept.npy", **choices)
    assert sorted(int(key) for batch in spec.build().epoch(0) for key in batch.keys) == sorted(kept)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 1.0])
def test_a_share_keeps_the_most_similar(scores, filtered, share):
    report, kept = filtered(scores, share=share)
    assert kept == set(np.argsort(-every(scores))[: round(share * 60)].tolist())
    assert every(scores)[sorted(kept)].min() >= report.threshold


def test_samples_without_such_captions_are_counted(scores, filtered, tmp_path):
    for caption, num_kept in (("best", 48), ("synthetic", 0)):
        assert filtered(scores, caption=caption, threshold=0.3)[0].num_kept == num_kept
    bare = attrs.evolve(sample(1), syn_captions={}, syn_text_emb={})
    report, kept = filtered(written(tmp_path, bare, sample(2), layout="pth.gz"), caption="best", share=1.0)
    assert (report.num_kept, report.num_without, kept) == (1, 1, {2})


def test_memory_does_not_grow_with_the_number_of_shards(scores, filtered, tmp_path):
    schema = pq.read_schema(Scores.open(scores).shards[0].path)
    values = pa.array(np.random.default_rng(0).uniform(0, 1, PER_TABLE).astype(np.float32))
    digits = [f"{number:032x}" for number in range(PER_TABLE)]
    columns = {name: digits if name in ("uid", "key") else values for name in schema.names}
    lists = {name: pa.FixedSizeListArray.from_arrays(values, 1) for name in schema.names if "by_teacher" in name}
    pq.write_table(pa.table(columns | lists), tmp_path / "0.parquet")
    peaks = []
    for count in (2, 22):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.parquet").symlink_to(tmp_path / "0.parquet")
        about = {"teachers": [["one", DIM]], "shards": {str(number): f"{number}.tar" for number in range(count)}}
        (folder / "scores.json").write_text(json.dumps(about))
        tracemalloc.start()
        report, _ = filtered(folder, share=0.001)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.num_samples == count * PER_TABLE
    assert (peaks[1] - peaks[0]) / (20 * PER_TABLE) < 5  # bytes for every further sample


@pytest.mark.parametrize("num_clusters", [1, 3, None])
def test_of_two_that_show_the_same_the_better_one_is_kept(scores, duplicates, num_clusters):
    report, kept, lines = duplicates(scores, num_clusters=num_clusters)
    worse = {min((number, number + 40), key=lambda one: every(scores)[one]) for number in range(10)}
    assert kept == set(range(60)) - worse
    assert (report.num_samples, report.num_kept, report.num_duplicates) == (60, 50, 10)
    assert {int(line[1]) for line in lines} == worse
    assert all(abs(int(line[1]) - int(line[3])) == 40 and float(line[5]) >= 0.95 for line in lines)


def test_pictures_of_a_test_are_left_out(scores, duplicates, tmp_path):
    pictures = [sample(100 + number, shown=number) for number in (3, 20, 70)]
    tests = written(tmp_path / "test", *pictures, vectors=True)
    report, kept, lines = duplicates(scores, exclude_test_scores=(tests,))
    assert (report.num_leaked, report.num_leaks) == ({str(tests): 2}, 3)  # one of them twice
    assert (report.num_kept, {3, 20, 43} & kept) == (60 - 9 - 3, set())
    assert sum("test picture" in line for line in lines) == 3


def test_copies_that_a_list_leaves_out_hide_none_of_those_that_it_has(duplicates, tmp_path):
    """A hundred copies are worth more than the ten that the list has, of which one is to stay."""
    same = [sample(number, shown=0, spread=0.01, fit=0.8 if number < 100 else 0.5) for number in range(110)]
    found = written(tmp_path, *same, sample(110, shown=1, spread=0.01), vectors=True)
    assert duplicates(found)[0].num_kept == 2
    write_uids(tmp_path / "listed.npy", [Scores.open(found).shards[0].uids[100:]])
    report, *_ = duplicates(found, keep=tmp_path / "listed.npy")
    assert (report.num_samples, report.num_kept, report.num_duplicates) == (11, 2, 9)


def test_none_is_left_out_for_one_that_is_left_out(duplicates, tmp_path):
    """Of three in a row, of which the ends are not alike, both ends stay where the middle is worth least."""
    axes, made = np.eye(DIM), []
    for number, (angle, fit) in enumerate(zip(np.deg2rad([0, 15, 30]), (0.6, 0.5, 0.55), strict=True)):
        row = axes[0] * np.cos(angle) + axes[25] * np.sin(angle)
        made.append(reinforced(number, [row] * 3, fit * row + np.sqrt(1 - fit**2) * axes[7], [row] * 2))
    found = written(tmp_path, *made, vectors=True)
    report, kept, _ = duplicates(found, threshold=float(np.cos(np.deg2rad(20))))
    assert (report.num_duplicates, kept) == (1, {0, 2})


@pytest.mark.parametrize(("most_bytes", "expected"), [(32 * 600, 600), (32, 40), (2**30, 5000)])
def test_the_vectors_that_are_clustered_fit_into_the_memory_that_is_given(monkeypatch, most_bytes, expected):
    table = deduplication.VectorTable([np.random.default_rng(0).standard_normal((5000, 8)).astype(np.float16)])
    rows, num_rows = deduplication.VectorTable.rows, []
    monkeypatch.setattr(
        deduplication.VectorTable, "rows", lambda *given: num_rows.append(len(given[1])) or rows(*given)
    )
    centres = deduplication.find_centres(table, num_clusters=40, device=CPU, seed=0, most_bytes=most_bytes)
    assert (len(centres), sum(num_rows)) == (40, expected)


def test_every_vector_is_in_two_clusters():
    rows = normal(np.random.default_rng(0).standard_normal((900, 16))).astype(np.float16)
    table = deduplication.VectorTable([rows[:300], rows[300:300], rows[300:]])
    members = list(
        deduplication.members_of_clusters(
            table, deduplication.find_centres(table, num_clusters=7, device=CPU, seed=0), device=CPU
        )
    )
    assert len(members) == 7
    assert sorted(np.concatenate(members).tolist()) == sorted([*range(900), *range(900)])
    chosen = np.array([5, 299, 300, 899])
    np.testing.assert_array_equal(table.rows(chosen, CPU).numpy(), rows[chosen].astype(np.float32))
    centres = deduplication.find_centres(
        deduplication.VectorTable([np.eye(8, dtype=np.float16)]), num_clusters=8, device=CPU, seed=0
    )
    assert sorted(centres.argmax(1).tolist()) == list(range(8))


def test_from_shards_to_a_list_and_a_page(shards, capsys, tmp_path):
    scores, kept, sheet, unique = (tmp_path / name for name in ("scores", "kept.npy", "page.html", "unique.npy"))
    patterns = shards[0].parent / "{000..003}.tar"
    worked(capsys, "data", "score", patterns, "-o", scores, "--keep-vectors", "--quiet")
    line = "data", "filter", scores, "-o", kept, "--share", "0.8"
    worked(capsys, *line, "-o", sheet)
    assert len(kept_by(kept)) == 48
    # The spread, and at least a row of samples of each side.
    assert sheet.read_text(encoding="utf-8").count("data:image/webp") > 10
    worked(capsys, "data", "dedup", scores, "-o", unique, "--keep", kept)
    assert len(kept_by(unique)) == 40  # 4, 9, 44 and 49 have wrong captions
    refused(capsys, "kept.npy", *line)


def test_a_broken_shard_is_the_status(shards, capsys, tmp_path):
    torn = tmp_path / "torn.tar"
    torn.write_bytes(shards[0].read_bytes()[:5000])
    score = ["data", "score", torn, shards[1], "-o", tmp_path / "scores", "--quiet", "--pause-seconds", "0"]
    assert run(capsys, *score, "--strict")[0] == 1
    assert str(torn) in worked(capsys, *score)
