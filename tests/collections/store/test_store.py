"""Rows in a folder: written whole or not at all, by one job, and read as they were when they were opened."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import attrs
import numpy as np
import pyarrow.parquet as pq
import pytest

from mobileclip.collections import INDEX, Collection, Store
from mobileclip.collections.metadata import FinishedFile, IndexMetadata
from mobileclip.collections.snapshot import take_snapshot
from mobileclip.collections.store import ReplacedIndexError, Row, write_transaction
from tests.collections.pictures import rows_of
from tests.errors import fails

DIM = 8
ABOUT = IndexMetadata(weights_sha256="0" * 64, spec="{}", version="1", dim=DIM)


def number_of(name):
    """Return the place of the one in the embedding of a row."""
    return len(name) % DIM


def row(name, **values):
    given = {"size": 10, "mtime_ns": 1, "sha256": name, "width": 4, "height": 3}
    return Row(path=name, **{**given, "embedding": np.eye(DIM, dtype=np.float32)[number_of(name)], **values})


def forked(work, *given):
    """Start a process that does some work, and return it with where it says things."""
    fork = multiprocessing.get_context("fork")
    said, saying = fork.Pipe(duplex=False)
    job = fork.Process(target=work, args=(*given, saying))
    job.start()
    saying.close()
    return job, said


@pytest.fixture
def index(tmp_path):
    return Store.create(tmp_path / "index", ABOUT)


@pytest.fixture
def one(index):
    """An index of one row."""
    with index.writing():
        index.append([row("a")])
    return index


def held(folder):
    """Return paths and ids of an index, whose embeddings are theirs."""
    snapshot = take_snapshot(Store.open(folder))
    names = [row["path"] for row in rows_of(snapshot)]
    assert snapshot.vectors.argmax(1).tolist() == [number_of(name) for name in names]
    return dict(zip(names, snapshot.ids.tolist(), strict=True))


def test_rows_come_back_as_they_were_written(index):
    written = [
        row("a", camera="A camera", taken="2024-05-01T12:30:00", latitude=48.5, longitude=-3.25),
        row("bb", part="0001", time=42.5, taken="0000-00-00T00:00:00"),  # by a camera without a clock
        row("ccc", problem="it is broken", embedding=None),
    ]
    with index.writing():
        index.append(written)
    snapshot = take_snapshot(Store.open(index.folder))
    assert snapshot.num_unreadable == 1
    for number, (found, changes) in enumerate(zip(snapshot.rows([0, 1]), ({}, {"taken": None}), strict=True)):
        expected = {**attrs.asdict(written[number]), "id": number + 1, **changes}
        assert found == {name: value for name, value in expected.items() if name != "embedding"}
    np.testing.assert_array_equal(snapshot.vectors, np.eye(DIM)[1:3])


def test_of_many_rows_the_embeddings_are_read_from_arrays_as_long_as_they_are_those_of_the_index(index):
    names = [f"{'a' * (number % DIM)}{number:06d}" for number in range(100_000)]
    with index.writing():
        index.append(map(row, names))
    token, ids, vectors, _ = Store.open(index.folder).load()
    assert vectors.argmax(1).tolist() == [number_of(name) for name in names]
    (kept,) = index.folder.glob("*.npy")
    whole = kept.read_bytes()
    for damaged in (whole, whole[:1000], whole[:-1], b""):
        kept.write_bytes(damaged)
        again = Store.open(index.folder).load()
        assert again[0] == token
        for old, new in zip((ids, vectors), again[1:3], strict=True):
            np.testing.assert_array_equal(new, old)
    with index.writing():
        index.append([row("new")], removed=ids[:1].tolist())
    _, others, moved, _ = Store.open(index.folder).load()
    assert others.tolist() == [*ids[1:].tolist(), ids[-1] + 1]
    np.testing.assert_array_equal(moved, [*vectors[1:], np.eye(DIM)[number_of("new")]])
    (new,) = index.folder.glob("*.npy")
    assert new != kept


def test_a_reader_keeps_what_it_opened_while_the_index_is_written_to(index):
    names = [chr(ord("a") + number) * (number + 1) for number in range(16)]
    with index.writing():
        index.append(map(row, names))
        kept = take_snapshot(Store.open(index.folder))
        index.append([row("x")], removed=range(1, 17, 2))
        index.append(removed=[16, 17])
        index.compact()
        index.append([row("y")])
    assert kept.vectors.argmax(1).tolist() == [number_of(name) for name in names]
    assert [row["path"] for row in rows_of(kept) if row is not None] == names[1:15:2]
    # Ids are not given again.
    assert held(index.folder) == {**dict(zip(names[1:15:2], range(2, 16, 2), strict=True)), "y": 18}


def test_a_reader_that_waits_for_a_fresh_file_to_settle_does_not_block_a_writer(one):
    """The reader holds a lock while it waits; a writer that commits meanwhile bars all further locks."""
    with closing(sqlite3.connect(one.folder / INDEX, isolation_level=None, check_same_thread=False)) as db:
        for _ in range(5):
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE state SET about = about")
            os.utime(one.folder / INDEX)
            commit = threading.Timer(0.01, db.execute, ["COMMIT"])
            began = time.monotonic()
            commit.start()
            assert Store.open(one.folder).about == ABOUT
            commit.join()
            assert time.monotonic() - began < 30


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_fails_in_the_middle_leaves_nothing(one, monkeypatch, error):
    connect = sqlite3.connect

    def torn():
        yield from (row("bb") for _ in range(5000))
        raise KeyboardInterrupt

    def full(*given, **options):
        db = connect(*given, **options)
        db.execute("PRAGMA max_page_count = 20")  # SQLite tells a full disk in the same way
        return db

    with one.writing():
        with fails(ValueError), Store.open(one.folder).writing():
            pass
        with monkeypatch.context() as patch:
            if error is OSError:
                patch.setattr(sqlite3, "connect", full)
            with fails(error):
                one.append(torn(), removed=[1], inputs=["/p"])
        assert (held(one.folder), one.inputs) == ({"a": 1}, ())
        one.append([row("ccc")])
    assert held(one.folder) == {"a": 1, "ccc": 2}


def write_on(folder, said):
    """Write to an index until the process is killed, and say how many rows are there each time."""
    index = Store.open(folder)
    with index.writing():
        while True:
            ids = [number for (number,) in index.values("id")]
            index.append([row("a" * (len(ids) + more)) for more in range(3)], removed=ids[-1:])
            said.send(len(index.values("id")))
            index.compact()


@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_acknowledged_rows_outlive_kills(index, num_kills):
    """A killed process leaves the lock open, every row that it acknowledged, and no embedding of another row."""
    for number in range(num_kills):
        job, said = forked(write_on, index.folder)
        count = [said.recv() for _ in range(1 + number % 4)][-1]
        job.kill()
        job.join()
        with suppress(EOFError):
            while True:
                count = said.recv()
        assert len(take_snapshot(Store.open(index.folder))) in (count, count + 2)
        held(index.folder)


def test_a_new_index_takes_an_empty_folder(index, tmp_path):
    with fails(FileExistsError):
        Store.create(index.folder, ABOUT)
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", ABOUT)
    with fails(FileNotFoundError, INDEX):
        Store.open(tmp_path)


def test_finished_files_are_renewed_and_forgotten_and_a_folder_may_move(index, tmp_path):
    first, second = (FinishedFile(path="/a.tar", num_bytes=1, mtime_ns=time) for time in (1, 2))
    with index.writing():
        index.append([row("a")], finished=[first], inputs=["/b", "/a"])
        index.append(finished=[second], inputs=["/a"])
    moved = Store.open(index.folder.rename(tmp_path / "an index #1"))
    assert (moved.finished, moved.inputs) == ((second,), ("/b", "/a"))
    with moved.writing():
        moved.forget(["/a.tar"], inputs=["/b"])
    assert (moved.finished, moved.inputs, held(moved.folder)) == ((), ("/a",), {"a": 1})


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no database" * 99),
        lambda file: os.truncate(file, 40_000),
        "DROP TABLE images",
        "UPDATE state SET about = '{}'",
        "UPDATE embeddings SET embedding = x'00'",
    ],
)
def test_damage_is_told_by_the_name_of_the_file(one, damage):
    file = one.folder / INDEX
    if callable(damage):
        damage(file)
    else:
        with sqlite3.connect(file) as db:
            db.execute(damage)
        db.close()
    with fails(ValueError, INDEX):
        take_snapshot(Store.open(one.folder))


def index_of_one_name(folder, name, count):
    """Make an index whose rows and embeddings tell which one it is."""
    made = Store.create(folder / name, ABOUT)
    with made.writing():
        made.append(row(name, part=str(number)) for number in range(count))
    return made


def test_an_index_that_is_overwritten_in_place_gives_no_rows_of_the_other(tmp_path):
    served, new = (index_of_one_name(tmp_path, name, 4) for name in ("a", "bb"))
    before = take_snapshot(served)
    shutil.copytree(new.folder, served.folder, dirs_exist_ok=True)
    for read in (lambda: before.rows([0, 1]), lambda: before.column("path")):
        with pytest.raises(ReplacedIndexError):
            read()
    assert set(held(served.folder)) == {"bb"}


def overwrite_on(sources, target, _):
    while True:
        for source in sources:
            with (target / INDEX).open("r+b") as file:
                file.write((source / INDEX).read_bytes())
            time.sleep(0.03)


def test_while_an_index_is_overwritten_a_reader_gets_one_or_the_other(tmp_path):
    """Two files of one size take turns in one place, without a lock, as by `cp`."""
    sources = [index_of_one_name(tmp_path, name, 3000).folder for name in ("a", "bb")]
    target = Path(shutil.copytree(sources[0], tmp_path / "served"))
    job, _ = forked(overwrite_on, sources, target)
    end = time.monotonic() + 3
    try:
        while time.monotonic() < end:
            with suppress(OSError):  # it is overwritten all the time, and says so
                _, ids, vectors, _ = Store.open(target).load()
                assert (len(ids), len(set(vectors.argmax(1).tolist()))) == (3000, 1)
    finally:
        job.kill()
        job.join()


def as_nobody(folder, seconds, said):
    """Read an index as another user for some seconds, and say how often that went well, and what went wrong."""
    os.setgid(65534)
    os.setuid(65534)
    done, problems, end = 0, [], time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            assert rows_of(take_snapshot(Store.open(folder)))
            done += 1
        except Exception as error:  # noqa: BLE001, PERF203 - whatever it is, it is told
            problems.append(repr(error))
    said.send((done, problems[:5]))  # a pipe holds no more than 64 KiB until it is read


@pytest.fixture
def opened(one):
    """An index of one row that every user may read, where another one is asked."""
    if os.getuid() != 0:
        pytest.skip("another user is asked")
    for place in (one.folder, *one.folder.parents):
        if place.name.startswith(("test_", "pytest-", "popen-", "index")):
            place.chmod(0o755)
    # Another user may not read the files of this Python: what a read imports is imported first.
    assert held(one.folder)
    return one


def test_a_reader_without_write_permission_reads_beside_a_writer(opened):
    before = sorted(path.name for path in opened.folder.iterdir())
    job, said = forked(as_nobody, opened.folder, 2.0)
    with opened.writing():
        while job.is_alive():
            opened.append([row("a" * 3)] * 50)
            time.sleep(0.02)
            opened.append(removed=[number for (number,) in opened.values("id")][1:])
            opened.compact()
            time.sleep(0.02)
    done, problems = said.recv()
    assert (done >= 5, problems) == (True, [])
    assert sorted(path.name for path in opened.folder.iterdir()) == before


def die_in_a_transaction(folder, _):
    with write_transaction(folder) as db:
        db.execute("PRAGMA cache_size = 1")
        db.executemany("INSERT INTO inputs VALUES (?)", ((f"/{number:0900}",) for number in range(500)))
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_is_told_to_whoever_may_not_write(opened):
    forked(die_in_a_transaction, opened.folder)[0].join()
    assert (opened.folder / f"{INDEX}-journal").stat().st_size > 0
    reader, said = forked(as_nobody, opened.folder, 0.2)
    done, problems = said.recv()
    reader.join()
    assert (done, problems != []) == (0, True)
    assert held(opened.folder) == {"a": 1}, "whoever may write brings it back"


def test_rows_are_exported_for_others_and_read_again(index, tmp_path):
    file = tmp_path / "rows.parquet"
    given = [row("a", taken="2024-05-01T12:30:00"), row("bb", time=42.5), row("ccc", problem="torn", embedding=None)]
    with index.writing():
        index.append(given)
    assert Collection(index).export(file) == 3
    table = pq.read_table(file)
    assert table["path"].to_pylist() == ["a", "bb", "ccc"]
    assert table["embedding"].to_pylist()[0] == [0, 1, 0, 0, 0, 0, 0, 0]
    exported = Collection.open(file)
    other, _ = Collection.create_merged(tmp_path / "other", exported, show_progress=False)
    assert held(other.path) == held(exported.path) == {"a": 1, "bb": 2}
    assert other.store.values("taken", "time", "problem") == index.values("taken", "time", "problem")
    with fails(FileExistsError):
        Collection(index).export(file)
    with fails(OSError), exported.store.writing():
        pass
    pq.write_table(table.drop_columns(["path"]).replace_schema_metadata(None), file)
    with fails(ValueError):
        Collection.open(file)
