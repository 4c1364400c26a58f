"""A run that goes on: what is finished is found by listing, and shards are named by their paths."""

from __future__ import annotations

import json
import time
from pathlib import Path

import attrs
import pytest

from mobileclip import storage
from mobileclip.data import AugmentationSpec, card_of_shards, read_card, read_samples, write_shard
from mobileclip.data.shards.sidecars import shard_sizes
from mobileclip.datasets import JsonLinesSource
from mobileclip.engines import InlineEngine
from mobileclip.reinforce import Manifest, ReinforcementSpec, ShardEntry, TeacherEnsemble, reinforce, verify
from mobileclip.serialization import to_json
from tests.errors import fails
from tests.reinforce.conftest import picture, plain_sample, tiny_teacher

POLICY = AugmentationSpec(size=32, reference_size=32, scale=(0.3, 1.0))


def make_spec(shards, output, **choices) -> ReinforcementSpec:
    return ReinforcementSpec(
        source=shards, output=output, augmentation=POLICY, num_augmentations=1, layout="npz", num_compared=0, **choices
    )


def run(spec, teachers):
    return reinforce(spec, engine=InlineEngine(num_threads=1), teachers=teachers, show_progress=False)


@pytest.fixture
def nested(tmp_path):
    """Three folders whose shards have the same names; one sample of each folder's first has no image."""
    for place, folder in enumerate(("00", "01", "deep/02")):
        (tmp_path / "plain" / folder).mkdir(parents=True)
        for shard in range(2):
            samples = [plain_sample(f"{folder[-2:]}-{shard}-{index}", 4 * place + index) for index in range(2)]
            if shard == 0:
                samples.append(attrs.evolve(plain_sample("bare", 1), image=None))
            write_shard(tmp_path / "plain" / folder / f"{shard:08d}.tar", samples)
    return f"{tmp_path}/plain/{{00,01,deep/02}}/{{00000000..00000001}}.tar"


NAMES = [f"{folder}/{shard:08d}.tar" for folder in ("00", "01", "deep/02") for shard in range(2)]


class TestNestedFolders:
    def test_the_output_mirrors_them_and_what_changed_or_vanished_is_made_again_alone(self, nested, teachers, tmp_path):
        out, spec = tmp_path / "out", make_spec(nested, tmp_path / "out")
        report = run(spec, teachers)
        assert list(report.shards) == [str(out / name) for name in NAMES]
        assert sorted(Manifest(out)) == NAMES
        for name in NAMES:
            keys = [sample.key for sample in read_samples([out / name])]
            assert keys == [sample.key for sample in read_samples([tmp_path / "plain" / name]) if sample.image]
        assert report.skipped == {"missing_image": 3}
        noted = [path.relative_to(out).as_posix() for path in out.rglob("*.tar.jsonl")]
        assert sorted(noted) == [f"skipped/{name}.jsonl" for name in NAMES[::2]]
        # Trainings find card and sizes above.
        assert card_of_shards(report.shards) == read_card(out)
        assert shard_sizes(report.shards) == (2,) * 6
        assert shard_sizes(report.shards[-1:]) == (2,)
        write_shard(tmp_path / "plain" / "01" / "00000001.tar", [plain_sample("new", 3)])
        (out / "00" / "00000000.tar").unlink()
        again = run(spec, teachers)
        assert (again.num_done_before, again.num_samples) == (4, 11)
        assert [sample.key for sample in read_samples([out / "01" / "00000001.tar"])] == ["new"]

    def test_the_same_folder_is_no_output(self, nested, teachers, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "plain")
        with fails(ValueError):
            run(make_spec(nested, tmp_path / "link"), teachers)

    def test_an_output_of_it_is_a_source(self, nested, teachers, tmp_path):
        """As the second of two steps is: captions first, embeddings later."""
        first = run(make_spec(nested, tmp_path / "one"), teachers)
        for place, source in (("two", first.shards), ("three", tmp_path / "one")):
            second = run(make_spec(source, tmp_path / place), teachers)
            assert list(second.shards) == [str(tmp_path / place / name) for name in NAMES]


def finished_job(store, teachers, tmp_path, num_shards: int) -> ReinforcementSpec:
    """Put a finished job into a store: one real shard under very many names, in four folders."""
    with storage.atomic_write("s3://data/plain/00/00000000.tar") as stream:
        stream.write(Path(write_shard(tmp_path / "one.tar", [plain_sample("one", 1)])).read_bytes())
    names = [f"{number % 4:02d}/{number // 4:08d}.tar" for number in range(num_shards)]
    spec = make_spec(tuple(f"s3://data/plain/{name}" for name in names), "s3://data/out")
    first = attrs.evolve(spec, source="s3://data/plain/{00,01}/{00000000..00000000}.tar")
    store.objects["data/plain/01/00000000.tar"] = store.objects["data/plain/00/00000000.tar"]
    run(first, teachers)
    entry = Manifest("s3://data/out")["00/00000000.tar"]
    for name in names:
        for folder in ("plain", "out"):
            store.objects[f"data/{folder}/{name}"] = store.objects[f"data/{folder}/00/00000000.tar"]
    lines = "".join(to_json(attrs.evolve(entry, shard=name)) + "\n" for name in names)
    store.objects["data/out/manifest.jsonl"] = lines.encode()
    return spec


class TestInAStore:
    @pytest.mark.parametrize(
        ("num_shards", "most_requests"), [(1_500, 50), pytest.param(150_000, 400, marks=pytest.mark.slow)]
    )
    def test_finished_shards_are_found_by_listing(self, store, teachers, tmp_path, num_shards, most_requests):
        spec = finished_job(store, teachers, tmp_path, num_shards)
        store.requests.clear()
        started = time.process_time()
        report = run(spec, teachers)
        # Of both ends: the store is in this process too.
        assert time.process_time() - started < 60
        assert report.num_done_before == len(report.shards) == num_shards
        assert sum(store.requests.values()) <= most_requests, store.requests
        assert store.requests["HEAD"] < 40, "those of single files: cards, and the status"

    def test_what_is_missing_or_changed_is_made_again(self, store, teachers, tmp_path):
        spec = finished_job(store, teachers, tmp_path, 8)
        del store.objects["data/out/02/00000000.tar"]
        store.objects["data/out/03/00000000.tar"] += b"more"
        changed = Path(write_shard(tmp_path / "other.tar", [plain_sample("other", 2)])).read_bytes()
        store.objects["data/plain/01/00000001.tar"] = changed
        del store.objects["data/plain/02/00000001.tar"]  # what was made of it stays
        assert run(spec, teachers).num_done_before == 5
        assert [sample.key for sample in read_samples(["s3://data/out/01/00000001.tar"])] == ["other"]

    def test_no_finished_shard_is_forgotten_however_the_run_ends(self, store):
        """Every entry is in the store when `add` returns, in the long file or in the small one beside it."""
        manifest = Manifest("s3://data/out", most_in_tail=3)
        first = ShardEntry(shard="a/0.tar", fingerprint="1-2", num_samples=0, num_bytes=5)
        entries = [attrs.evolve(first, shard=f"a/{number}.tar", num_samples=number) for number in range(9)]
        uploads = 0
        for number, entry in enumerate(entries, 1):
            manifest.add(entry)
            assert Manifest("s3://data/out").entries() == tuple(entries[:number])
            uploads += not store.objects.get("data/out/manifest.tail.jsonl")
        assert uploads == 3
        renewed = attrs.evolve(entries[0], num_samples=70)
        other = Manifest("s3://data/out")
        other.add(renewed)
        assert len(Manifest("s3://data/out")) == 9
        other.close()
        assert Manifest("s3://data/out")["a/0.tar"] == renewed
        assert sorted(store.objects) == ["data/out/manifest.jsonl"]


def run_list(site, path, output, teachers):
    source = JsonLinesSource(path=path, hosts=("127.0.0.1",), samples_per_shard=4)
    with storage.use_limits(storage.StoreLimits(retry_delays_seconds=(0.0,))):
        return run(make_spec(source, output, batch_size=1), teachers)


class TestImagesThatCannotBeReached:
    @pytest.fixture
    def listed(self, site, tmp_path):
        """Two shards of four rows; the third row's server is away."""
        site.files |= {f"/{number}.png": picture(number) for number in range(8)}
        rows = [{"key": f"k{number}", "image": f"{site.url}/{number}.png", "text": f"{number}"} for number in range(8)]
        (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run_list(site, tmp_path / "list.jsonl", tmp_path / "whole", teachers_of_one())
        site.status["/2.png"] = [503] * 1000
        return tmp_path / "list.jsonl"

    def test_their_rows_alone_are_tried_again_so_many_times(self, site, listed, tmp_path):
        teachers = Counting(teachers_of_one())
        first = run_list(site, listed, tmp_path / "out", teachers)
        assert (first.num_samples, first.skipped) == (7, {"unreachable_image": 1})
        before, encoded = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}, teachers.count
        asked = []
        for _ in range(4):
            site.requests.clear()
            again = run_list(site, listed, tmp_path / "out", teachers)
            assert (again.num_samples, again.skipped) == (7, {"unreachable_image": 1})
            asked.append({path for _, path, _ in site.requests})
        assert asked == [{"/2.png"}, {"/2.png"}, set(), set()]
        assert teachers.count == encoded, "what is stored is not encoded again"
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == before

    def test_one_that_comes_back_has_its_place_in_the_shard(self, site, listed, tmp_path):
        run_list(site, listed, tmp_path / "out", teachers_of_one())
        site.status.clear()
        site.requests.clear()
        teachers = Counting(teachers_of_one())
        report = run_list(site, listed, tmp_path / "out", teachers)
        assert (report.num_samples, report.skipped, report.num_done_before) == (8, {}, 1)
        assert {path for _, path, _ in site.requests} == {"/2.png"}
        assert teachers.count == 1
        for shard in report.shards:
            assert Path(shard).read_bytes() == (tmp_path / "whole" / Path(shard).name).read_bytes()
        assert not list((tmp_path / "out" / "skipped").iterdir())
        assert run_list(site, listed, tmp_path / "out", teachers).num_done_before == 2
        checked = verify(tmp_path / "out", teachers=teachers_of_one(), show_progress=False)
        assert checked.is_good, checked

    def test_a_shard_of_which_none_was_reached_is_made_of_those_that_come_back(self, site, listed, tmp_path):
        for number in range(4):
            site.status[f"/{number}.png"] = [503] * 1000
        first = run_list(site, listed, tmp_path / "out", teachers_of_one())
        assert (first.num_samples, len(first.shards)) == (4, 1)
        site.status = {"/1.png": [404] * 1000}
        report = run_list(site, listed, tmp_path / "out", teachers_of_one())
        assert (report.num_samples, report.skipped) == (7, {"missing_image": 1})
        assert [one.key for one in read_samples(report.shards)] == ["k0", "k2", "k3", "k4", "k5", "k6", "k7"]


def teachers_of_one() -> TeacherEnsemble:
    return TeacherEnsemble([tiny_teacher("first", dim=6, size=32, seed=1)])


class Counting:
    """An ensemble that counts the pictures that it is given."""

    def __init__(self, teachers: TeacherEnsemble) -> None:
        self._teachers, self.count = teachers, 0

    def __getattr__(self, name):
        return getattr(self._teachers, name)

    def encode_images(self, pixels):
        self.count += len(next(iter(pixels.values())))
        return self._teachers.encode_images(pixels)
