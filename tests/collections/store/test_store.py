"""Rows in a folder: written whole or not at all, by one job, and read as they were when they were opened."""

import attrs
import numpy as np
import pyarrow.parquet as pq
import pytest

from mobileclip.collections import Manifest, Segment
from mobileclip.collections.store import (
    FinishedFile,
    Row,
    Store,
    read_manifest,
    take_snapshot,
    write_manifest,
    write_segment,
)
from tests.errors import fails

DIM = 8
MANIFEST = Manifest(weights_sha256="0" * 64, spec="{}", version="1", dim=DIM)


def row(name, **values):
    vector = np.zeros(DIM, np.float32)
    vector[len(name) % DIM] = 1
    given = {"size": 10, "mtime_ns": 1, "sha256": name, "width": 4, "height": 3, "embedding": vector, **values}
    return Row(path=f"/p/{name}", **given)


@pytest.fixture
def index(tmp_path):
    return Store.create(tmp_path / "index", MANIFEST)


def paths(index):
    return take_snapshot(index).table["path"].to_pylist()


def test_rows_of_before_there_were_videos_are_read(index):
    with index.writing():
        index.append([row("a"), row("bb")])
        (segment,) = index.manifest.segments
        old = index.read()[0][1].drop_columns(["time"])
        index._commit(attrs.evolve(index.manifest, segments=(write_segment(index.folder, segment.name, old),)))
        index.append([row("ccc", time=1.0)])
    snapshot = take_snapshot(Store.open(index.folder))
    assert snapshot.table["time"].to_pylist() == [None, None, 1.0]
    assert snapshot.table["path"].to_pylist() == ["/p/a", "/p/bb", "/p/ccc"]
    assert snapshot.vectors.shape == (3, DIM)


def test_a_segment_says_which_columns_may_be_empty(index):
    """A part of the format: what says otherwise is refused."""
    with index.writing():
        index.append([row("a")])
    (segment,) = index.manifest.segments
    fields = pq.read_schema(index.folder / segment.name)
    assert [field.name for field in fields if not field.nullable] == [
        "id", "path", "size", "mtime_ns", "sha256", "width", "height", "embedding",
    ]  # fmt: skip


def test_rows_come_back_as_they_were_written(index):
    written = [
        row("a", camera="A camera", taken="2024-05-01T12:30:00", latitude=48.5, longitude=-3.25),
        row("bb", part="0001", time=42.5),
        row("ccc", problem="it is broken", embedding=np.zeros(DIM, np.float32)),
    ]
    with index.writing():
        index.append(written)
    snapshot = take_snapshot(Store.open(index.folder))
    assert snapshot.num_unreadable == 1
    assert snapshot.row(0) == {
        "id": 0,
        "path": "/p/a",
        "part": None,
        "size": 10,
        "mtime_ns": 1,
        "sha256": "a",
        "width": 4,
        "height": 3,
        "camera": "A camera",
        "taken": "2024-05-01T12:30:00",
        "latitude": 48.5,
        "longitude": -3.25,
        "time": None,
        "problem": None,
    }
    assert (snapshot.row(1)["part"], snapshot.row(1)["time"]) == ("0001", 42.5)
    np.testing.assert_array_equal(snapshot.vectors, np.stack([one.embedding for one in written[:2]]))


def test_a_segment_is_a_table_that_others_read(index):
    with index.writing():
        index.append([row("a")])
    table = pq.read_table(index.folder / "00000000.parquet")
    assert table["path"].to_pylist() == ["/p/a"]
    assert table["embedding"].to_pylist() == [[0, 1, 0, 0, 0, 0, 0, 0]]


def test_what_is_removed_is_gone_and_ids_stay(index):
    with index.writing():
        index.append([row("a"), row("b")])
        index.append([row("c")], removed=[("00000000.parquet", 0)])
        index.append((), removed=[("00000000.parquet", 0)])
    snapshot = take_snapshot(index)
    assert snapshot.table["path"].to_pylist() == ["/p/b", "/p/c"]
    assert snapshot.ids.tolist() == [1, 2]


def test_small_segments_are_merged_and_a_reader_keeps_what_it_opened(index):
    names = [chr(ord("a") + number) for number in range(17)]
    with index.writing():
        for name in names:
            index.append([row(name)])
        late = Store.open(index.folder)
        reader = Store.open(index.folder)
        kept = take_snapshot(reader)
        index.append((), removed=[("00000001.parquet", 0)])
        index.merge()
    assert [path.name for path in index.folder.glob("*.parquet")] == ["00000017.parquet"]
    assert kept.table["path"].to_pylist() == [f"/p/{name}" for name in names]
    # This one has the manifest of before the merge, whose segments are gone.
    snapshot = take_snapshot(late)
    assert snapshot.table["path"].to_pylist() == [f"/p/{name}" for name in names if name != "b"]
    assert snapshot.ids.tolist() == [0, *range(2, 17)]


def test_a_segment_with_many_removed_rows_is_written_anew(index):
    with index.writing():
        index.append([row(name) for name in "abcd"])
        index.append((), removed=[("00000000.parquet", 0), ("00000000.parquet", 2)])
        index.merge()
        assert [one.removed for one in index.manifest.segments] == [()]
        assert paths(index) == ["/p/b", "/p/d"]
        index.append((), removed=[("00000001.parquet", 0), ("00000001.parquet", 1)])
        index.merge()
    assert index.manifest.segments == ()
    assert paths(index) == []


def test_what_a_killed_job_has_left_is_removed_by_the_next(index):
    left, others = index.folder / "00000007.parquet", index.folder / "mine.parquet"
    for path in (left, others):
        path.write_bytes(b"half")
    with index.writing():
        assert not left.exists()
    assert others.exists()


def test_a_second_writer_is_refused(index):
    with (
        index.writing(),
        fails("storage.another-job-working-wait"),
        Store.open(index.folder).writing(),
    ):
        pass


def test_a_new_index_takes_an_empty_folder(index, tmp_path):
    with fails("collections.holds-something-already-open"):
        Store.create(index.folder, MANIFEST)
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", MANIFEST)
    with fails("collections.index-manifest-json-make"):
        Store.open(tmp_path)


def test_finished_files_are_renewed_and_forgotten(index):
    first, second = (FinishedFile(path="/a.tar", num_bytes=1, mtime_ns=time) for time in (1, 2))
    with index.writing():
        index.append((), finished=[first])
        index.append((), finished=[second])
        assert read_manifest(index.folder).finished == (second,)
        index.forget(["/a.tar"])
    assert read_manifest(index.folder).finished == ()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "00000000.parquet").write_bytes(b"x"), "00000000.parquet is damaged"),
        (lambda folder: (folder / "00000000.parquet").unlink(), "a segment is gone"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "manifest.json is damaged"),
    ],
)
def test_damage_is_told_by_the_name_of_the_file(index, damage, message):
    with index.writing():
        index.append([row("a")])
    damage(index.folder)
    with pytest.raises(ValueError, match=message):
        take_snapshot(Store.open(index.folder))


def test_a_segment_of_other_columns_is_refused(index):
    with index.writing():
        index.append([row("a")])
    (segment,) = index.manifest.segments
    narrow = attrs.evolve(index.manifest, dim=DIM - 1)
    write_manifest(index.folder, narrow)
    with fails("collections.holds-other-rows-columns", segment.name):
        take_snapshot(Store.open(index.folder))


def test_a_manifest_names_what_is_wrong_with_it():
    segment = {"num_rows": 2, "num_bytes": 9, "sha256": "0" * 64}
    with fails("collections.rows-others-these-said"):
        Segment(name="00000000.parquet", removed=(2,), **segment)
    with pytest.raises(ValueError, match="name"):
        Segment(name="../00000000.parquet", **segment)
    one = Segment(name="00000000.parquet", **segment)
    with fails("collections.segment-twice"):
        attrs.evolve(MANIFEST, segments=(one, one))
