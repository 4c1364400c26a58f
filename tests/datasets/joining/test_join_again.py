"""Joining again: after changes on either side, after what broke, and after every kill."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mobileclip import storage
from mobileclip.data import ReinforcementCard, write_card
from mobileclip.data.samples.limits import SAMPLE_LIMITS
from mobileclip.datasets.joining import PLACES, ScanUnit
from mobileclip.engines import held, read_set_aside
from mobileclip.storage import StorageError
from tests.data.made_samples import encoded, write_raw
from tests.datasets.joining.world import SIZE, Data, contents, damage_half, files_of, times_of
from tests.errors import fails
from tests.survives import Moment, Program, Survival


class Breaking(io.FileIO):
    """A file of a store that is away after the first half."""

    def __init__(self, path):
        super().__init__(path)
        self.middle = Path(path).stat().st_size // 2

    def read(self, size=-1):
        if self.tell() >= self.middle:
            raise StorageError("away for a moment")
        return super().read(size)


def reading(monkeypatch, opener, path, most=100):
    """Return what scans a shard, of which one is opened by another function, at most so many times."""
    real, opened = ScanUnit.read, []

    def scan(unit):
        with monkeypatch.context() as context:
            if unit.shard == path and len(opened) < most:
                opened.append(path)
                context.setattr(storage, "open_read", opener)
            return real(unit)

    return scan


def test_the_index_is_made_once_and_a_second_run_writes_nothing(data, monkeypatch):
    index = data.root / "places"
    first = data.join(index=str(index))
    before = times_of(data.output)
    monkeypatch.setattr(ScanUnit, "read", lambda *_: pytest.fail("a shard was read again"))
    assert data.join(index=str(index)) == first
    assert times_of(data.output) == before
    assert data.join(index=str(index), output=str(data.root / "second")).joined == 20
    assert not list(index.glob(".mobileclip-*.scratch"))


def test_what_is_damaged_in_the_index_is_read_again(data):
    data.join()
    expected = files_of(data.output)
    (data.output / "00001.tar").unlink()
    (data.output / "00002.tar").write_bytes(b"cut")
    (data.output / "join" / "00000.parquet").write_text("{")
    for path in sorted((data.output / "index").rglob("*.*"))[::2]:
        path.write_bytes(path.read_bytes()[:-1])
    data.join()
    assert files_of(data.output) == expected
    (data.output / "00001.tar").unlink()
    (damaged,) = [path for path in (data.output / "index").rglob("*.places.*") if b"00002.tar" in path.read_bytes()]
    content = damaged.read_bytes()
    column = pq.ParquetFile(damaged).metadata.row_group(0).column(0)
    last = column.data_page_offset + column.total_compressed_size - 1
    damaged.write_bytes(content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :])
    with fails(ValueError):
        data.join()
    data.join()
    assert files_of(data.output) == expected


def test_an_index_is_shared_by_joins_of_different_keys_and_hashes(data):
    index = str(data.root / "shared")
    for number, by in enumerate(("key", "uid", "key")):
        output = str(data.root / f"out{number}")
        report = data.join(
            index=index, by=by, output=output, continue_on_mismatch=True, placeholder_threshold=10 * (number > 0)
        )
        assert report.joined == (0 if by == "uid" else 20)


def test_shards_whose_images_are_the_same_are_left_as_they_are(tmp_path):
    data = Data(tmp_path, count=24, per_reinforced=6, per_images=6, shuffled=False)
    late, pattern = data.images / "00000.tar", str(data.images / "{00000..00003}.tar")
    content = late.read_bytes()
    late.unlink()
    report = data.join(images=pattern, continue_on_mismatch=True)
    assert (report.joined, report.complete, list(report.images.unreadable)) == (18, False, [str(late)])
    before = times_of(data.output)
    late.write_bytes(content)
    changed = data.images / "00002.tar"
    members = contents(changed)
    next(iter(members.values()))["png"] = encoded(*SIZE, seed=77)
    write_raw(changed, members)
    report = data.join(images=pattern)
    assert (report.joined, report.is_good, report.complete, report.unused_keys) == (24, True, True, 0)
    assert dict(times_of(data.output).items() - before.items()).keys() == {"00000.tar", "00002.tar"}
    data.join(images=pattern, output=str(tmp_path / "anew"))
    found, anew = (files_of(folder) | {"join.json": b""} for folder in (data.output, tmp_path / "anew"))
    assert found == anew


def test_a_reinforced_shard_that_broke_off(data):
    path = data.reinforced / "00001.tar"
    content = damage_half(path)
    report = data.join()
    assert (report.complete, 14 <= report.joined < 20) == (False, True)
    assert "truncated_shard" in report.unfinished[str(path)]
    path.write_bytes(content)
    assert data.join().joined == 20


def test_names_that_could_not_be_read_to_the_end(data, monkeypatch):
    """What is not named seems to have no image; the next run reads it again."""
    path = str(data.reinforced / "00001.tar")
    with monkeypatch.context() as context:
        context.setattr(ScanUnit, "read", reading(context, Breaking, path))
        report = data.join()
    assert (13 < report.joined < 20, report.is_good) == (True, False)
    assert "away for a moment" in report.unfinished[path]
    report = data.join()
    assert (report.joined, report.unused_keys, report.is_good) == (20, 0, True)
    assert data.join() == report


@pytest.mark.parametrize("num_broken", [1, 3])
def test_an_image_shard_that_is_away_is_tried_again_and_then_listed(data, monkeypatch, num_broken):
    broken = []

    def away(path):
        broken.append(path)
        raise StorageError("away for a moment")

    monkeypatch.setattr(ScanUnit, "read", reading(monkeypatch, away, str(data.images / "00001.tar"), num_broken))
    report = data.join()
    assert len(broken) == num_broken
    assert report.is_good == (num_broken == 1)
    assert report.joined == (20 if num_broken == 1 else 14)
    if num_broken > 1:
        assert report.images.unreadable == {broken[0]: "StorageError: away for a moment"}
        (aside,) = read_set_aside(data.output)
        assert (aside.unit, aside.tries) == (f"image shard 1, {broken[0]}", 3)
    assert data.join().joined == 20
    assert read_set_aside(data.output) == ()


def test_a_shard_whose_reader_was_lost_counts_for_nothing(data):
    """Of another time, or of no time, may be what the index has of it."""
    about = {"name": "a", "fingerprint": "some", "kind": PLACES, "by": "key", "limits": SAMPLE_LIMITS}
    unit = ScanUnit(shard=str(data.images / "00000.tar"), folder=data.root / "places", **about)
    assert unit.read().num_records == 6
    lost = unit.left("a worker that had it died")
    assert (lost.num_records, lost.problem, lost.fingerprint) == (0, "a worker that had it died", "")
    assert unit.known() is None


def test_one_join_at_a_time(data):
    with held(str(data.output)), fails(ValueError):
        data.join()


def test_a_reinforced_shard_that_is_not_there(data):
    report = data.join(reinforced=str(data.reinforced / "{00000..00003}.tar"))
    assert report.joined == 20
    assert report.unfinished == {str(data.reinforced / "00003.tar"): "there is no such file"}
    assert [aside.unit for aside in read_set_aside(data.output)] == ["00003.tar"]


def left_by_join(folder):
    """What counts of an output, and what no run may leave behind."""
    left = (folder / "joined" / "index").glob(".mobileclip-*.scratch")
    return files_of(folder / "joined") | {path.name: b"left" for path in left}


@pytest.mark.slow
def test_two_processes_are_killed_at_any_moment_and_run_again(tmp_path):
    """A real process, SIGKILL at moments all over its run, then once more in peace: the same files."""

    def prepare(folder):
        data = Data(folder, count=120, per_reinforced=6, per_images=5)
        write_card(data.reinforced, ReinforcementCard(layout="npz", num_augmentations=3))
        (data.images / "00004.tar").unlink()

    line = ("-m", "mobileclip.cli", "data", "join", "--quiet", "-j", "2")
    images = "images/{00000..00003}.tar::images/{00005..00023}.tar"
    program = Program(
        line=(*line, "reinforced/{00000..00019}.tar", images, "-o", "joined"),
        prepare=prepare,
        # Most of the time goes into importing: signs of work are waited for.
        progress=lambda folder: (folder / "joined/index").exists() + len([*(folder / "joined/join").glob("*.parquet")]),
        most=16,
        read=left_by_join,
    )
    places = ((1, 0.0), (0, 0.02), (3, 0.003), (5, 0.011), (7, 0.0))
    survival = Survival.of(program, tmp_path / "survival")
    assert json.loads(survival.expected["join.json"])["left_out"] == {"no_image": 5}
    assert not survival.problems(*(Moment(more=more, seconds=seconds, alone=True) for more, seconds in places))
