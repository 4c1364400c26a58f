"""Scores, filters and near duplicates of reinforced shards with planted noise, copies and leaks."""

import hashlib
import json
import tracemalloc

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mobileclip.cli import main
from mobileclip.data import ImageTextSample, ReinforcedPipelineSpec, UidList, write_shard
from mobileclip.data.loading.uids import PAIR, sorted_uids, uid_of, write_uids
from mobileclip.data.shards.files import read_shard
from mobileclip.datasets.curation.duplicates import (
    DuplicatesSpec,
    VectorTable,
    find_centres,
    find_duplicates,
    members_of_clusters,
)
from mobileclip.datasets.curation.filtering import FilterSpec, filter_samples
from mobileclip.datasets.curation.scores import Scores, ScoreSpec, columns_of, image_vector, score_shards, similarities
from mobileclip.engines import InlineEngine, LocalEngine, Retries, read_set_aside
from mobileclip.inputs import ImageInput
from tests.data.made_samples import golden, make_sample
from tests.engines.conftest import forked_workers  # noqa: F401  a fixture
from tests.errors import fails

DIM, COLUMNS = 32, columns_of((20, 12))
NUM_SHARDS, PER_SHARD = 4, 15
PER_TABLE = 5_000


def sample(number, *, direction, fit=0.6, spread=0.05):
    """Return a sample whose image lies in a direction, and whose captions fit so well."""
    rng = np.random.default_rng(number)
    views = direction + spread * rng.standard_normal((3, DIM))
    text = np.empty(DIM)
    for columns in COLUMNS:
        image = direction[columns] / np.linalg.norm(direction[columns])
        other = rng.standard_normal(image.shape)
        other -= (other @ image) * image
        text[columns] = fit * image + np.sqrt(1 - fit**2) * other / np.linalg.norm(other)
    syn = np.stack([text, -text])
    return make_sample(
        number,
        dim=DIM,
        image_emb=views.astype(np.float32),
        text_emb=text[None].astype(np.float32),
        syn_text_emb={"syn_text": syn.astype(np.float32)},
    )


def direction(number):
    return np.random.default_rng(10_000 + number).standard_normal(DIM)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Sixty samples: every fifth has a wrong caption; 40 to 49 show what 0 to 9 do, and their captions fit less."""
    folder = tmp_path_factory.mktemp("shards")
    made = []
    for number in range(NUM_SHARDS * PER_SHARD):
        shown = number - 40 if 40 <= number < 50 else number
        fit = 0.1 if number % 5 == 4 else 0.55 if number >= 40 else 0.6
        made.append(sample(number, direction=direction(shown), fit=fit))
    paths = []
    for start in range(NUM_SHARDS):
        paths.append(folder / f"{start:03d}.tar")
        write_shard(paths[-1], made[start * PER_SHARD : (start + 1) * PER_SHARD], layout="npz")
    return paths


def scored(shards, output, *, engine=None, **choices):
    spec = ScoreSpec(shards=[str(path) for path in shards], output=output, **choices)
    return score_shards(spec, engine=engine, show_progress=False)


@pytest.fixture(scope="module")
def scores(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "scores"
    report = scored(shards, folder, vectors=True)
    assert (report.num_samples, report.skipped, report.failed) == (60, {}, ())
    return folder


def keys_of(path):
    """Return the numbers of the samples that a list keeps."""
    listed = UidList(path)
    return {number for number in range(NUM_SHARDS * PER_SHARD) if listed(f"{number:06d}", {})}


class TestSimilarity:
    def test_it_is_the_mean_of_the_cosines_over_the_augmentations(self):
        one = sample(1, direction=direction(1))
        found = similarities(one, COLUMNS)
        for number, columns in enumerate(COLUMNS):
            cosines = torch.nn.functional.cosine_similarity(
                torch.from_numpy(one.image_emb[:, columns]), torch.from_numpy(one.text_emb[0, columns])
            )
            assert found.real[number] == pytest.approx(float(cosines.mean()), abs=1e-6)
        np.testing.assert_allclose(found.best, found.real, atol=1e-6)
        np.testing.assert_allclose(found.synthetic, 0, atol=1e-6)

    def test_without_synthetic_captions_there_is_none(self):
        one = attrs.evolve(sample(1, direction=direction(1)), syn_captions={}, syn_text_emb={})
        found = similarities(one, COLUMNS)
        assert np.isnan(found.synthetic).all()
        assert np.isnan(found.best).all()

    def test_a_product_of_vectors_is_the_mean_over_the_teachers(self):
        one, two = (sample(number, direction=direction(number), spread=0) for number in (1, 2))
        product = image_vector(one, COLUMNS) @ image_vector(two, COLUMNS)
        cosines = [
            np.dot(one.image_emb[0, columns], two.image_emb[0, columns])
            / np.linalg.norm(one.image_emb[0, columns])
            / np.linalg.norm(two.image_emb[0, columns])
            for columns in COLUMNS
        ]
        assert product == pytest.approx(np.mean(cosines), abs=1e-6)
        assert image_vector(one, COLUMNS) @ image_vector(one, COLUMNS) == pytest.approx(1)


class TestUids:
    def test_the_json_counts_then_the_key_then_its_hash(self):
        digits = "0123456789abcdef" * 2
        halves = (int(digits[:16], 16), int(digits[16:], 16))
        assert uid_of("a", {"json": json.dumps({"uid": digits}).encode()}) == halves
        assert uid_of(digits, {}) == halves
        hashed = hashlib.sha256(b"picture 7").hexdigest()
        assert uid_of("picture 7", {}) == (int(hashed[:16], 16), int(hashed[16:32], 16))

    def test_a_list_is_sorted_and_has_each_uid_once(self, tmp_path):
        rng = np.random.default_rng(0)
        uids = np.empty(5000, PAIR)
        uids["f0"], uids["f1"] = rng.integers(0, 2**64, 5000, dtype=np.uint64), rng.integers(0, 9, 5000)
        uids["f0"][:100] = uids["f0"][100]
        path = tmp_path / "uids.npy"
        assert write_uids(path, [uids[:3000], uids[2000:]]) == len(np.unique(uids))
        found = np.load(path)
        assert found.dtype == PAIR
        np.testing.assert_array_equal(found, np.unique(uids))
        np.save(tmp_path / "numpys.npy", found)
        assert path.read_bytes() == (tmp_path / "numpys.npy").read_bytes()
        np.testing.assert_array_equal(sorted_uids(uids), found)
        listed = UidList(path)
        other = uids.copy()
        other["f1"] += 9
        assert listed.contains(uids).all()
        assert not listed.contains(other).any()

    def test_an_empty_list(self, tmp_path):
        assert write_uids(tmp_path / "none.npy", []) == 0
        assert len(np.load(tmp_path / "none.npy")) == 0


class TestScores:
    def test_they_are_of_every_sample_in_order(self, shards, scores):
        found = Scores.open(scores)
        assert [one.shard for one in found.shards] == [str(path) for path in shards]
        assert [key for one in found.shards for key in one.keys] == [f"{number:06d}" for number in range(60)]
        assert found.teachers == (("teachers", DIM),)
        expected = similarities(sample(17, direction=direction(17)), columns_of((DIM,)))
        assert found.shards[1].similarity("real")[2] == pytest.approx(expected.real[0], abs=1e-6)
        assert found.shards[1].vectors.shape == (PER_SHARD, DIM)

    def test_they_are_a_table_that_others_query(self, scores):
        one = Scores.open(scores).shards[1]
        table = pq.read_table(one.path).to_pylist()
        assert [row["key"] for row in table] == one.keys
        assert [(int(row["uid"][:16], 16), int(row["uid"][16:], 16)) for row in table] == one.uids.tolist()
        for caption in ("real", "synthetic", "best"):
            np.testing.assert_array_equal([row[caption] for row in table], one.similarity(caption))
            np.testing.assert_array_equal(
                [row[f"{caption}_by_teacher"] for row in table], one.similarity(caption, "teachers")[:, None]
            )

    def test_the_first_release_s_layout(self, tmp_path):
        report = scored([golden("npz")], tmp_path / "scores")
        assert report.num_samples == sum(1 for _ in read_shard(golden("npz"), print))
        real = Scores.open(tmp_path / "scores").shards[0].similarity("real")
        assert np.isfinite(real).all()

    def test_what_is_scored_is_not_read_again(self, shards, tmp_path):
        scored(shards[:2], tmp_path)
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
        assert len(times) == 2
        report = scored(shards[:3], tmp_path)
        assert report.num_samples == 45
        assert all(path.stat().st_mtime_ns == time for path, time in times.items())
        assert len(list(tmp_path.rglob("*.parquet"))) == 3

    def test_vectors_can_come_later(self, shards, tmp_path):
        scored(shards[:1], tmp_path)
        with fails(ValueError):
            _ = Scores.open(tmp_path).shards[0].vectors
        scored(shards[:1], tmp_path, vectors=True)
        assert len(Scores.open(tmp_path).shards[0].vectors) == PER_SHARD

    @pytest.mark.slow
    def test_two_processes_do_the_same(self, shards, scores, tmp_path):
        scored(shards[:2], tmp_path, vectors=True, engine=LocalEngine(num_workers=2, devices=("cpu",)))
        for one, two in zip(Scores.open(scores).shards, Scores.open(tmp_path).shards, strict=False):
            assert one.path.read_bytes() == two.path.read_bytes()

    def test_a_shard_that_breaks_off_has_none_and_is_tried_again(self, shards, tmp_path):
        torn = tmp_path / "torn.tar"
        whole = shards[0].read_bytes()
        torn.write_bytes(whole[: len(whole) // 2])
        report = scored([torn, shards[1]], tmp_path / "scores", engine=InlineEngine(retries=Retries(pause_seconds=0.0)))
        assert report.num_samples == PER_SHARD
        assert [shard for shard, _ in report.failed] == [str(torn)]
        assert "truncated_shard" in report.failed[0][1]
        assert [aside.tries for aside in read_set_aside(tmp_path / "scores")] == [1]
        torn.write_bytes(whole)
        again = scored([torn, shards[1]], tmp_path / "scores")
        assert (again.num_samples, again.failed) == (2 * PER_SHARD, ())

    def test_broken_samples_are_counted(self, tmp_path):
        good = sample(1, direction=direction(1))
        narrow = make_sample(2, dim=7)
        write_shard(tmp_path / "0.tar", [good, narrow], layout="npz")
        report = scored([tmp_path / "0.tar"], tmp_path / "scores")
        assert (report.num_samples, report.skipped) == (1, {"wrong_dim": 1})

    def test_other_teachers_are_refused(self, scores, tmp_path):
        write_shard(tmp_path / "0.tar", [make_sample(2, dim=7)], layout="npz")
        with fails(ValueError, "32", "7"):
            scored([tmp_path / "0.tar"], scores)

    def test_shards_without_embeddings_say_so(self, tmp_path):
        write_shard(tmp_path / "0.tar", [ImageTextSample(key="a", captions=("a",), image=b"x")])
        with fails(ValueError):
            scored([tmp_path / "0.tar"], tmp_path / "scores")

    @pytest.mark.parametrize("content", ["", "[]", '{"teachers": 1, "shards": {}}', "{"])
    def test_a_damaged_folder_is_named(self, content, tmp_path):
        (tmp_path / "scores.json").write_text(content)
        with fails(ValueError, "scores.json"):
            Scores.open(tmp_path)

    def test_damaged_scores_are_named(self, shards, tmp_path):
        scored(shards[:1], tmp_path)
        (path,) = tmp_path.rglob("*.parquet")
        path.write_bytes(path.read_bytes()[:200])
        with fails(ValueError):
            Scores.open(tmp_path).shards[0].similarity("real")


class TestFilter:
    def test_a_threshold_parts_wrong_captions_from_right_ones(self, scores, tmp_path):
        report = filter_samples(FilterSpec(scores=scores, output=tmp_path / "kept.npy", threshold=0.3))
        assert (report.num_samples, report.num_kept, report.num_without) == (60, 48, 0)
        assert keys_of(tmp_path / "kept.npy") == {number for number in range(60) if number % 5 != 4}
        assert report.counts.sum() == 60
        assert str(report) == "48 of 60 samples kept (80.0%), similarity 0.3000 and more"

    @pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 1.0])
    def test_a_share_keeps_the_most_similar(self, scores, share, tmp_path):
        report = filter_samples(FilterSpec(scores=scores, output=tmp_path / "kept.npy", share=share))
        every = np.concatenate([one.similarity("real") for one in Scores.open(scores).shards])
        best = set(np.argsort(-every)[: round(share * 60)].tolist())
        assert keys_of(tmp_path / "kept.npy") == best
        assert every[sorted(best)].min() >= report.threshold

    def test_synthetic_captions_can_decide(self, scores, tmp_path):
        report = filter_samples(FilterSpec(scores=scores, output=tmp_path / "a.npy", caption="best", threshold=0.3))
        assert report.num_kept == 48
        mean = filter_samples(FilterSpec(scores=scores, output=tmp_path / "b.npy", caption="synthetic", threshold=0.3))
        assert mean.num_kept == 0

    def test_samples_without_such_captions_are_counted(self, tmp_path):
        bare = attrs.evolve(sample(1, direction=direction(1)), syn_captions={}, syn_text_emb={})
        write_shard(tmp_path / "0.tar", [bare, sample(2, direction=direction(2))], layout="pth.gz")
        scored([tmp_path / "0.tar"], tmp_path / "scores")
        spec = FilterSpec(scores=tmp_path / "scores", output=tmp_path / "kept.npy", caption="best", share=1.0)
        report = filter_samples(spec)
        assert (report.num_kept, report.num_without) == (1, 1)
        assert keys_of(tmp_path / "kept.npy") == {2}

    def test_one_of_share_and_threshold(self, scores, tmp_path):
        for choices in ({}, {"share": 0.5, "threshold": 0.1}):
            with fails(ValueError):
                FilterSpec(scores=scores, output=tmp_path / "kept.npy", **choices)

    def test_memory_does_not_grow_with_the_number_of_shards(self, scores, tmp_path):
        one, rng = Scores.open(scores).shards[0], np.random.default_rng(0)
        schema = pq.read_schema(one.path)
        values = pa.array(rng.uniform(0, 1, PER_TABLE).astype(np.float32))
        lists = pa.FixedSizeListArray.from_arrays(values, 1)
        digits = [f"{number:032x}" for number in range(PER_TABLE)]
        columns = [
            lists if "by_teacher" in name else digits if name in ("uid", "key") else values for name in schema.names
        ]
        pq.write_table(pa.table(dict(zip(schema.names, columns, strict=True))), tmp_path / "0.parquet")
        peaks = []
        for count in (2, 22):
            folder = tmp_path / str(count)
            folder.mkdir()
            for number in range(count):
                (folder / f"{number}.parquet").symlink_to(tmp_path / "0.parquet")
            about = {"teachers": [["one", DIM]], "shards": {str(number): f"{number}.tar" for number in range(count)}}
            (folder / "scores.json").write_text(json.dumps(about))
            tracemalloc.start()
            report = filter_samples(FilterSpec(scores=folder, output=tmp_path / "kept.npy", share=0.001))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert report.num_samples == count * PER_TABLE
        assert (peaks[1] - peaks[0]) / (20 * PER_TABLE) < 5  # bytes for every further sample

    def test_an_unknown_teacher(self, scores, tmp_path):
        with fails(ValueError, "teacher"):
            filter_samples(FilterSpec(scores=scores, output=tmp_path / "kept.npy", share=0.5, teacher="teacher"))


def duplicates(scores, tmp_path, **choices):
    spec = DuplicatesSpec(scores=scores, output=tmp_path / "kept.npy", pairs=tmp_path / "pairs.tsv", **choices)
    return find_duplicates(spec)


class TestDuplicates:
    @pytest.mark.parametrize("num_clusters", [1, 3, None])
    def test_of_two_that_show_the_same_the_better_one_is_kept(self, scores, num_clusters, tmp_path):
        report = duplicates(scores, tmp_path, num_clusters=num_clusters)
        every = np.concatenate([one.similarity("real") for one in Scores.open(scores).shards])
        worse = {min((number, number + 40), key=lambda one: every[one]) for number in range(10)}
        assert keys_of(tmp_path / "kept.npy") == set(range(60)) - worse
        assert (report.num_samples, report.num_kept, report.num_duplicates) == (60, 50, 10)
        lines = [line.split("\t") for line in (tmp_path / "pairs.tsv").read_text().splitlines()[1:]]
        assert {int(line[1]) for line in lines} == worse
        assert all(abs(int(line[1]) - int(line[3])) == 40 and float(line[5]) >= 0.95 for line in lines)

    def test_pictures_of_a_test_are_left_out(self, scores, tmp_path):
        tests = [sample(100 + number, direction=direction(number)) for number in (3, 20, 70)]
        write_shard(tmp_path / "test.tar", tests, layout="npz")
        scored([tmp_path / "test.tar"], tmp_path / "test_scores", vectors=True)
        report = duplicates(scores, tmp_path, exclude_test_scores=(tmp_path / "test_scores",))
        assert report.num_leaked == {str(tmp_path / "test_scores"): 2}
        assert report.num_leaks == 3  # one of them twice
        assert not {3, 20, 43} & keys_of(tmp_path / "kept.npy")
        assert report.num_kept == 60 - 9 - 3
        assert "2 pictures of" in str(report)
        assert sum("test picture" in line for line in (tmp_path / "pairs.tsv").read_text().splitlines()) == 3

    def test_a_list_to_begin_with(self, scores, tmp_path):
        filter_samples(FilterSpec(scores=scores, output=tmp_path / "fitting.npy", threshold=0.3))
        report = duplicates(scores, tmp_path, keep=tmp_path / "fitting.npy")
        # Number 4, 9, 44 and 49 have wrong captions.
        assert (report.num_samples, report.num_duplicates, report.num_kept) == (48, 8, 40)

    def test_a_picture_that_stands_there_hundreds_of_times_is_kept_once(self, tmp_path):
        same = [sample(number, direction=direction(0), spread=0.01) for number in range(150)]
        write_shard(tmp_path / "0.tar", same, layout="npz")
        scored([tmp_path / "0.tar"], tmp_path / "scores", vectors=True)
        assert duplicates(tmp_path / "scores", tmp_path).num_kept == 1

    def test_copies_that_a_list_leaves_out_hide_none_of_those_that_it_has(self, tmp_path):
        """Forty copies are worth more than the ten that the list has, of which one is to stay."""
        fits = [0.8 if number < 40 else 0.5 for number in range(50)]
        same = [sample(number, direction=direction(0), spread=0.01, fit=fit) for number, fit in enumerate(fits)]
        other = sample(50, direction=direction(1), spread=0.01)
        write_shard(tmp_path / "0.tar", [*same, other], layout="npz")
        scored([tmp_path / "0.tar"], tmp_path / "scores", vectors=True)
        uids = Scores.open(tmp_path / "scores").shards[0].uids
        write_uids(tmp_path / "listed.npy", [uids[40:]])
        report = duplicates(tmp_path / "scores", tmp_path, keep=tmp_path / "listed.npy")
        assert (report.num_samples, report.num_kept, report.num_duplicates) == (11, 2, 9)

    def test_none_is_left_out_for_one_that_is_left_out(self, tmp_path):
        """Of three in a row, of which the ends are not alike, both ends stay where the middle is worth least."""
        angles = np.deg2rad([0, 15, 30])
        rows = [np.eye(DIM)[0] * np.cos(angle) + np.eye(DIM)[25] * np.sin(angle) for angle in angles]
        made = []
        for number, (row, fit) in enumerate(zip(rows, (0.6, 0.5, 0.55), strict=True)):
            made.append(
                make_sample(
                    number,
                    dim=DIM,
                    image_emb=np.tile(row, (3, 1)).astype(np.float32),
                    text_emb=(fit * row + np.sqrt(1 - fit**2) * np.eye(DIM)[7])[None].astype(np.float32),
                    syn_text_emb={"syn_text": np.tile(row, (2, 1)).astype(np.float32)},
                )
            )
        write_shard(tmp_path / "0.tar", made, layout="npz")
        scored([tmp_path / "0.tar"], tmp_path / "scores", vectors=True)
        report = duplicates(tmp_path / "scores", tmp_path, threshold=float(np.cos(np.deg2rad(20))))
        assert report.num_duplicates == 1
        assert keys_of(tmp_path / "kept.npy") == {0, 2}

    def test_scores_of_other_teachers_are_refused(self, scores, tmp_path):
        write_shard(tmp_path / "0.tar", [make_sample(2, dim=7)], layout="npz")
        scored([tmp_path / "0.tar"], tmp_path / "other", vectors=True)
        with fails(ValueError):
            duplicates(scores, tmp_path, exclude_test_scores=(tmp_path / "other",))

    def test_as_many_clusters_as_vectors_have_each_its_vector(self):
        table, cpu = VectorTable([np.eye(8, dtype=np.float16)]), torch.device("cpu")
        centres = find_centres(table, num_clusters=8, device=cpu, seed=0)
        assert sorted(centres.argmax(1).tolist()) == list(range(8))
        assert centres.max(1).values.tolist() == [1.0] * 8

    def test_the_vectors_that_are_clustered_fit_into_the_memory_that_is_given(self):
        class Counted(VectorTable):
            num_rows = 0

            def rows(self, indices, device):
                self.num_rows += len(indices)
                return super().rows(indices, device)

        rows = np.random.default_rng(0).standard_normal((5000, 8)).astype(np.float16)
        for most_bytes, expected in ((32 * 600, 600), (32, 40), (2**30, 5000)):
            table = Counted([rows])
            centres = find_centres(table, num_clusters=40, device=torch.device("cpu"), seed=0, most_bytes=most_bytes)
            assert (len(centres), table.num_rows) == (40, expected)

    def test_every_vector_is_in_two_clusters(self):
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((900, 16))
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
        table = VectorTable([rows[:300], rows[300:300], rows[300:]])
        cpu = torch.device("cpu")
        centres = find_centres(table, num_clusters=7, device=cpu, seed=0)
        members = list(members_of_clusters(table, centres, device=cpu))
        assert len(members) == 7
        assert sorted(np.concatenate(members).tolist()) == sorted([*range(900), *range(900)])
        chosen = np.array([5, 299, 300, 899])
        np.testing.assert_array_equal(table.rows(chosen, cpu).numpy(), rows[chosen].astype(np.float32))


class TestCommands:
    def test_from_shards_to_a_list_and_a_page(self, shards, capsys, tmp_path):
        patterns = str(shards[0].parent / "{000..003}.tar")
        main(["data", "score", patterns, "-o", str(tmp_path / "scores"), "--keep-vectors", "--quiet"])
        assert "60 samples have scores" in capsys.readouterr().out
        kept, sheet = tmp_path / "kept.npy", tmp_path / "page.html"
        filtered = ["data", "filter", str(tmp_path / "scores"), "-o", str(kept), "--share", "0.8"]
        main([*filtered, "-o", str(sheet)])
        assert "48 of 60 samples kept (80.0%)" in capsys.readouterr().out
        page = sheet.read_text(encoding="utf-8")
        for title in ("left out, the least similar", "kept, the most similar"):
            assert title in page
        # The spread, and at least a row of samples of each side.
        assert page.count("data:image/webp") > 10
        main(["data", "dedup", str(tmp_path / "scores"), "-o", str(tmp_path / "unique.npy"), "--keep", str(kept)])
        assert "40 of 48 samples kept" in capsys.readouterr().out
        with pytest.raises(SystemExit):
            main(filtered)
        assert "is there already" in capsys.readouterr().err

    def test_a_broken_shard_is_the_status(self, shards, capsys, tmp_path):
        torn = tmp_path / "torn.tar"
        torn.write_bytes(shards[0].read_bytes()[:5000])
        score = ["data", "score", str(torn), str(shards[1]), "-o", str(tmp_path / "scores"), "--quiet"]
        with pytest.raises(SystemExit) as stop:
            main([*score, "--pause-seconds", "0", "--strict"])
        assert stop.value.code == 1
        main([*score, "--pause-seconds", "0"])
        (line,) = {line for line in capsys.readouterr().out.splitlines() if "could not be read to their end" in line}
        assert line.startswith("1 shards could not be read to their end, the first: ")
        assert "the archive ends within 000000.png" in line


def test_training_takes_the_list(shards, scores, tmp_path):
    filter_samples(FilterSpec(scores=scores, output=tmp_path / "kept.npy", threshold=0.3))
    pipeline = ReinforcedPipelineSpec(
        shards=tuple(map(str, shards)),
        uids=tmp_path / "kept.npy",
        image=ImageInput(size=32),
        batch_size=4,
        sampling="endless",
        num_samples=48,
    ).build()
    keys = [int(key) for batch in pipeline.epoch(0) for key in batch.keys]
    assert sorted(keys) == [number for number in range(60) if number % 5 != 4]
