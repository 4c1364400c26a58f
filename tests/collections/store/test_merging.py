"""Indexes joined: of each file the latest rows, of each index all or nothing."""

import errno
import os

import attrs
import pytest

from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.collections.store import Store
from tests.collections.pictures import assert_same_rows, draw, pack, rows_of
from tests.errors import fails

OPTIONS = IndexOptions(precision="float32", show_progress=False)


@pytest.fixture
def make(tmp_path, telling_file):
    def made(name, *inputs):
        index = Collection.create(tmp_path / name, ModelSource(checkpoint=str(telling_file)))
        if inputs:
            index.add(*inputs, options=OPTIONS)
        return index

    return made


@pytest.fixture
def folders(tmp_path):
    for number in range(6):
        draw(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    pack(tmp_path / "a" / "00.tar", 10, 11)
    (tmp_path / "b" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "a", tmp_path / "b"


def names(index):
    return sorted(row["path"].rsplit("/", 1)[1] for row in rows_of(index.snapshot))


def test_joined_indexes_are_one_of_all_pictures(make, folders, tmp_path, monkeypatch):
    first, second = make("first", folders[0]), make("second", folders[1])
    joined = Collection.create_like(tmp_path / "joined", first)
    report = joined.merge(first, second, show_progress=False)
    assert str(report) == "9 rows copied"
    assert_same_rows(joined, make("whole", *folders))
    assert len(set(joined.snapshot.ids.tolist())) == 8
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("nothing is new"))
    report = joined.add(*folders, options=OPTIONS)
    assert (report.num_unchanged, report.num_unreadable, report.num_removed) == (8, 1, 0)
    assert str(joined.merge(first, second, show_progress=False)) == "0 rows copied, 9 known already"
    assert len(first) == 5


def test_of_a_file_that_two_hold_the_latest_rows_are_kept(make, folders, tmp_path):
    old = make("old", folders[0])
    draw(folders[0] / "0.png", 100, size=(60, 60))
    os.utime(folders[0] / "0.png", ns=(2**62, 2**62))
    new = make("new", folders[0])
    joined = Collection.create_like(tmp_path / "joined", old)
    assert str(joined.merge(old, new, show_progress=False)) == "6 rows copied, 1 older ones replaced, 4 known already"
    assert_same_rows(joined, new)
    backwards = Collection.create_like(tmp_path / "backwards", old)
    backwards.merge(new, old, show_progress=False)
    assert_same_rows(backwards, new)


def test_a_shard_that_was_read_to_its_end_is_preferred(make, folders, tmp_path, monkeypatch):
    whole = make("whole", folders[0] / "00.tar")
    begun = make("begun")
    with begun.store.writing():
        (row,) = whole.store.rows([1])
        begun.store.append([attrs.evolve(row, id=None)])
    for name, others in (("one", (begun, whole)), ("other", (whole, begun))):
        joined = Collection.create_like(tmp_path / name, whole)
        joined.merge(*others, show_progress=False)
        assert_same_rows(joined, whole)
        assert joined.store.finished == whole.store.finished


def test_a_merge_that_is_stopped_has_copied_whole_indexes(make, folders, tmp_path, monkeypatch):
    first, second = make("first", folders[0]), make("second", folders[1])
    second.add(draw(tmp_path / "c" / "9.png", 9), options=OPTIONS)
    joined = Collection.create_like(tmp_path / "joined", first)
    fsync, written = os.fsync, []

    def stop(file):
        written.append(file)
        if len(written) == 2:  # when the second one's embeddings are written
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop)
        with pytest.raises(OSError, match="make room and run this again"):
            joined.merge(first, second, show_progress=False)
    again = Collection.open(joined.path)
    assert_same_rows(again, first)
    assert str(again.merge(first, second, show_progress=False)) == "5 rows copied, 5 known already"
    assert len(again) == 9


def test_an_index_of_another_model_is_refused_by_name(make, folders, tmp_path, small_file):
    index = make("index", folders[0])
    other = Collection.create(tmp_path / "other", ModelSource(checkpoint=str(small_file)))
    with fails("inference.two-models-whose-embeddings", "the index", "index", "other", "weights"):
        index.merge(other)
    with fails("collections.index-merged-itself-give"):
        index.merge(Collection.open(index.path))


def test_an_index_that_is_written_to_meanwhile_is_told(make, folders, monkeypatch, tmp_path):
    index, blocks = make("index", folders[0]), Store.blocks

    def written(self, ids):
        monkeypatch.undo()
        index.forget(folders[0])
        yield from blocks(self, ids)

    monkeypatch.setattr(Store, "blocks", written)
    joined = Collection.create_like(tmp_path / "joined", index)
    with fails("collections.written-meanwhile-run-again", "index"):
        joined.merge(index, show_progress=False)
    assert len(Collection.open(joined.path)) == 0
