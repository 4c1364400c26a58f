"""Rows in a folder: written whole or not at all, by one job, and read as they were when they were opened."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

import attrs
import numpy as np
import pyarrow.parquet as pq
import pytest

from mobileclip.collections import INDEX, Collection, Store
from mobileclip.collections.metadata import FinishedFile, IndexMetadata
from mobileclip.collections.snapshot import take_snapshot
from mobileclip.collections.store import ReplacedIndexError, Row, write_transaction
from tests.errors import fails

DIM = 8
ABOUT = IndexMetadata(weights_sha256="0" * 64, spec="{}", version="1", dim=DIM)


def row(name, **values):
    vector = np.zeros(DIM, np.float32)
    vector[len(name) % DIM] = 1
    given = {"size": 10, "mtime_ns": 1, "sha256": name, "width": 4, "height": 3, "embedding": vector, **values}
    return Row(path=f"/p/{name}", **given)


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


def paths(snapshot):
    return [row["path"] for row in snapshot.rows(range(len(snapshot))) if row is not None]


def number_of(name):
    """Return the place of the one in the embedding of a row."""
    return len(name) % DIM


def held(folder):
    """Return paths and ids of an index, whose embeddings are theirs."""
    snapshot = take_snapshot(Store.open(folder))
    names = [path.removeprefix("/p/") for path in paths(snapshot)]
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
    np.testing.assert_array_equal(snapshot.vectors, np.stack([one.embedding for one in written[:2]]))


def test_what_is_removed_is_gone_and_ids_are_not_given_again(index):
    with index.writing():
        index.append([row("a"), row("b")])
        index.append([row("c")], removed=[1])
        index.append(removed=[1, 3])
        index.compact()
        index.append([row("d")])
    assert held(index.folder) == {"b": 2, "d": 4}


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
        for one, other in zip(again[1:3], (ids, vectors), strict=True):
            np.testing.assert_array_equal(one, other)
    with index.writing():
        index.append([row("new")], removed=ids[:1].tolist())
    _, others, moved, _ = Store.open(index.folder).load()
    assert others.tolist() == [*ids[1:].tolist(), ids[-1] + 1]
    np.testing.assert_array_equal(moved[:-1], vectors[1:])
    assert moved[-1].argmax() == number_of("new")
    (new,) = index.folder.glob("*.npy")
    assert new != kept


def test_a_reader_keeps_what_it_opened_while_the_index_is_written_to(index):
    names = [chr(ord("a") + number) * (number + 1) for number in range(16)]
    with index.writing():
        index.append(map(row, names))
        kept = take_snapshot(Store.open(index.folder))
        index.append([row("x")], removed=range(1, 17, 2))
        index.compact()
    assert kept.vectors.argmax(1).tolist() == [number_of(name) for name in names]
    assert paths(kept) == [f"/p/{name}" for name in names[1::2]]
    assert held(index.folder) == {**{name: number for number, name in enumerate(names, 1) if number % 2 == 0}, "x": 17}


@pytest.mark.parametrize("cause", ["interrupted", "full disk"])
def test_what_fails_in_the_middle_leaves_nothing(index, monkeypatch, cause):
    connect = sqlite3.connect

    def torn():
        yield from (row("bb") for _ in range(5000))
        raise KeyboardInterrupt

    def full(*given, **options):
        db = connect(*given, **options)
        db.execute("PRAGMA max_page_count = 20")  # SQLite tells a full disk in the same way
        return db

    with index.writing():
        index.append([row("a")])
        with fails(ValueError), Store.open(index.folder).writing():
            pass
        with monkeypatch.context() as patch:
            if cause == "full disk":
                patch.setattr(sqlite3, "connect", full)
            with fails(OSError if cause == "full disk" else KeyboardInterrupt):
                index.append(torn(), removed=[1], inputs=["/p"])
        assert (held(index.folder), index.inputs) == ({"a": 1}, ())
        index.append([row("ccc")])
    assert held(index.folder) == {"a": 1, "ccc": 2}


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
        assert len(held(index.folder)) in (count, count + 2)


def test_a_new_index_takes_an_empty_folder(index, tmp_path):
    with fails(FileExistsError):
        Store.create(index.folder, ABOUT)
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", ABOUT)
    with fails(FileNotFoundError, "index.sqlite"):
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


def execute(folder, *statements):
    with sqlite3.connect(folder / INDEX) as db:
        for one in statements:
            db.execute(one)
    db.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / INDEX).write_bytes(b"no database" * 99),
        lambda folder: os.truncate(folder / INDEX, 40_000),
        lambda folder: execute(folder, "DROP TABLE pictures"),
        lambda folder: execute(folder, "UPDATE state SET about = '{}'"),
        lambda folder: execute(folder, "UPDATE embeddings SET embedding = x'00'"),
    ],
)
def test_damage_is_told_by_the_name_of_the_file(index, damage):
    with index.writing():
        index.append([row("a")])
    damage(index.folder)
    with fails(ValueError, INDEX):
        take_snapshot(Store.open(index.folder))


def other_index(folder, letter, count=4):
    """Make an index whose rows and embeddings tell which one it is."""
    other = Store.create(folder, ABOUT)
    with other.writing():
        other.append(row(letter * (1 + "ab".index(letter)), part=str(number)) for number in range(count))
    return other


def test_an_index_that_is_overwritten_in_place_gives_no_rows_of_the_other(tmp_path):
    served, new = other_index(tmp_path / "served", "a"), other_index(tmp_path / "new", "b")
    before = take_snapshot(served)
    shutil.copytree(new.folder, served.folder, dirs_exist_ok=True)
    with pytest.raises(ReplacedIndexError):
        before.rows([0, 1])
    with pytest.raises(ReplacedIndexError):
        before.column("path")
    assert set(paths(take_snapshot(Store.open(served.folder)))) == {"/p/bb"}


def overwrite_on(sources, target, _):
    while True:
        for source in sources:
            with (target / INDEX).open("r+b") as file:
                file.write((source / INDEX).read_bytes())
            time.sleep(0.03)


def test_while_an_index_is_overwritten_a_reader_gets_one_or_the_other(tmp_path):
    """Two files of one size take turns in one place, without a lock, as by `cp`."""
    sources = [other_index(tmp_path / letter, letter, 3000).folder for letter in "ab"]
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
            assert paths(take_snapshot(Store.open(folder)))
            done += 1
        except Exception as error:  # noqa: BLE001, PERF203 - whatever it is, it is told
            problems.append(repr(error))
    said.send((done, problems[:5]))  # a pipe holds no more than 64 KiB until it is read


def opened_to_all(*folders):
    for folder in folders:
        for place in (folder, *folder.parents):
            if place.name.startswith(("test_", "pytest-", "popen-", "index")):
                place.chmod(0o755)


@pytest.mark.skipif(os.getuid() != 0, reason="another user is asked")
def test_a_reader_without_write_permission_reads_beside_a_writer(index):
    with index.writing():
        index.append([row("a")])
    opened_to_all(index.folder)
    # Another user may not read the files of this Python: what a read imports is imported first.
    assert paths(take_snapshot(Store.open(index.folder)))
    before = sorted(path.name for path in index.folder.iterdir())
    job, said = forked(as_nobody, index.folder, 4.0)
    with index.writing():
        while job.is_alive():
            index.append([row("a" * 3)] * 50)
            time.sleep(0.02)
            index.append(removed=[number for (number,) in index.values("id")][1:])
            index.compact()
            time.sleep(0.02)
    done, problems = said.recv()
    assert problems == []
    assert done >= 5
    assert sorted(path.name for path in index.folder.iterdir()) == before


def die_in_a_transaction(folder, _):
    with write_transaction(folder) as db:
        db.execute("PRAGMA cache_size = 1")
        db.executemany("INSERT INTO inputs VALUES (?)", ((f"/{number:0900}",) for number in range(500)))
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.getuid() != 0, reason="another user is asked")
def test_what_a_killed_writer_left_is_told_to_whoever_may_not_write(index):
    with index.writing():
        index.append([row("a")])
    opened_to_all(index.folder)
    forked(die_in_a_transaction, index.folder)[0].join()
    assert (index.folder / f"{INDEX}-journal").stat().st_size > 0
    reader, said = forked(as_nobody, index.folder, 0.2)
    done, problems = said.recv()
    reader.join()
    assert done == 0
    assert problems
    assert held(index.folder) == {"a": 1}, "whoever may write brings it back"


def test_rows_are_exported_for_others_and_read_again(index, tmp_path):
    file = tmp_path / "rows.parquet"
    given = [row("a", taken="2024-05-01T12:30:00"), row("bb", time=42.5), row("ccc", problem="torn", embedding=None)]
    with index.writing():
        index.append(given)
    assert Collection(index).export(file) == 3
    table = pq.read_table(file)
    assert table["path"].to_pylist() == ["/p/a", "/p/bb", "/p/ccc"]
    assert table["embedding"].to_pylist()[0] == [0, 1, 0, 0, 0, 0, 0, 0]
    other, _ = Collection.create_merged(tmp_path / "other", Collection.open(file), show_progress=False)
    assert held(other.path) == held(Collection.open(file).path) == {"a": 1, "bb": 2}
    assert other.store.values("taken", "time", "problem") == index.values("taken", "time", "problem")
    with pytest.raises(FileExistsError):
        Collection(index).export(file)
    with fails(OSError), Collection.open(file).store.writing():
        pass
    pq.write_table(table.drop_columns(["path"]).replace_schema_metadata(None), file)
    with fails(ValueError):
        Collection.open(file)
