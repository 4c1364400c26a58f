"""Rows in a folder: written whole or not at all, by one job, and read as they were when they were opened."""

import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mobileclip.collections import Collection, ModelSource
from mobileclip.collections.store import (
    INDEX,
    MANIFEST,
    About,
    FinishedFile,
    Row,
    Store,
    is_on_network,
    take_snapshot,
)
from tests.errors import fails

DIM = 8
ABOUT = About(weights_sha256="0" * 64, spec="{}", version="1", dim=DIM)
OLD = Path(__file__).parent / "layout1"
EMBEDDINGS = "embeddings-00000000.float16"


def row(name, **values):
    vector = np.zeros(DIM, np.float32)
    vector[len(name) % DIM] = 1
    given = {"size": 10, "mtime_ns": 1, "sha256": name, "width": 4, "height": 3, "embedding": vector, **values}
    return Row(path=f"/p/{name}", **given)


@pytest.fixture
def index(tmp_path):
    return Store.create(tmp_path / "index", ABOUT)


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "old")


def paths(snapshot):
    return [row["path"] for row in snapshot.rows(range(len(snapshot)))]


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
        row("bb", part="0001", time=42.5, taken="0000-00-00T00:00:00"),
        row("ccc", problem="it is broken", embedding=None),
    ]
    with index.writing():
        index.append(written)
    snapshot = take_snapshot(Store.open(index.folder))
    assert snapshot.num_unreadable == 1
    first, second = snapshot.rows([0, 1])
    assert first == {
        "id": 1,
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
    # A camera without a clock writes no date.
    assert (second["part"], second["time"], second["taken"]) == ("0001", 42.5, None)
    np.testing.assert_array_equal(snapshot.vectors, np.stack([one.embedding for one in written[:2]]))


def test_what_is_removed_is_gone_and_ids_are_not_given_again(index):
    with index.writing():
        index.append([row("a"), row("b")])
        index.append([row("c")], removed=[1])
        index.append(removed=[1, 3])
        index.compact()
        index.append([row("d")])
    assert held(index.folder) == {"b": 2, "d": 4}


def test_a_reader_keeps_what_it_opened_while_embeddings_are_written_anew(index):
    names = [chr(ord("a") + number) * (number + 1) for number in range(16)]
    with index.writing():
        index.append(map(row, names))
        kept = take_snapshot(Store.open(index.folder))
        index.append(removed=range(1, 17, 2))
        index.compact()
        assert not (index.folder / EMBEDDINGS).exists()
        index.append([row("x")])
    assert kept.vectors.argmax(1).tolist() == [number_of(name) for name in names]
    assert paths_there(kept) == {f"/p/{name}" for name in names[1::2]}
    assert held(index.folder) == {**{name: number for number, name in enumerate(names, 1) if number % 2 == 0}, "x": 17}
    (size,) = {path.stat().st_size for path in index.folder.glob("embeddings-*")}
    assert size == 9 * DIM * 2


def paths_there(snapshot):
    return {row["path"] for row in snapshot.rows(range(len(snapshot))) if row is not None}


def test_what_a_killed_job_has_left_is_overwritten_or_removed_by_the_next(index):
    with index.writing():
        index.append([row("a")])
    with (index.folder / EMBEDDINGS).open("ab") as file:
        file.write(b"of no row")
    left, others = index.folder / "embeddings-00000007.float16", index.folder / "mine.float16"
    for path in (left, others):
        path.write_bytes(b"half")
    assert held(index.folder) == {"a": 1}
    with index.writing():
        index.append([row("bb")])
    assert held(index.folder) == {"a": 1, "bb": 2}
    assert (left.exists(), others.exists()) == (False, True)


def test_what_fails_in_the_middle_leaves_nothing(index):
    def torn():
        yield from (row("bb") for _ in range(5000))
        raise KeyboardInterrupt

    with index.writing():
        index.append([row("a")])
        with pytest.raises(KeyboardInterrupt):
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


def test_what_was_acknowledged_outlives_twenty_kills(index):
    """A killed process leaves the lock open, every row that it said was there, and no embedding of another row."""
    fork = multiprocessing.get_context("fork")
    for number in range(20):
        said, saying = fork.Pipe(duplex=False)
        job = fork.Process(target=write_on, args=(index.folder, saying))
        job.start()
        count = [said.recv() for _ in range(1 + number % 4)][-1]
        job.kill()
        job.join()
        saying.close()
        with suppress(EOFError):
            while True:
                count = said.recv()
        assert len(held(index.folder)) in (count, count + 2)


def test_a_second_writer_is_refused(index):
    with (
        index.writing(),
        fails("storage.another-job-working-wait"),
        Store.open(index.folder).writing(),
    ):
        pass


def test_threads_read_while_one_writes(index):
    with index.writing(), ThreadPoolExecutor(4) as pool:
        for number in range(20):
            index.append([row("a" * number)])
            assert {len(one) for one in pool.map(lambda _: held(index.folder), range(4))} == {number + 1}


def test_a_new_index_takes_an_empty_folder(index, tmp_path):
    with fails("collections.holds-something-already-open"):
        Store.create(index.folder, ABOUT)
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", ABOUT)
    with pytest.raises(FileNotFoundError, match=r"is no index: there is no index\.sqlite in it"):
        Store.open(tmp_path)


def test_finished_files_are_renewed_and_forgotten(index):
    first, second = (FinishedFile(path="/a.tar", num_bytes=1, mtime_ns=time) for time in (1, 2))
    with index.writing():
        index.append(finished=[first], inputs=["/b", "/a"])
        index.append(finished=[second], inputs=["/a"])
        assert (index.finished, index.inputs) == ((second,), ("/b", "/a"))
        index.forget(["/a.tar"], inputs=["/b"])
    assert (index.finished, index.inputs) == ((), ("/a",))


def test_a_moved_folder_is_the_same_index(index, tmp_path):
    with index.writing():
        index.append([row("a")])
    moved = index.folder.rename(tmp_path / "an index #1")
    with Store.open(moved).writing():
        Store.open(moved)
    assert held(moved) == {"a": 1}


def execute(folder, *statements):
    with sqlite3.connect(folder / INDEX) as db:
        for one in statements:
            db.execute(one)
    db.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / EMBEDDINGS).write_bytes(b"x"), f"{EMBEDDINGS} is damaged"),
        (lambda folder: (folder / EMBEDDINGS).unlink(), f"{EMBEDDINGS} is gone"),
        (lambda folder: (folder / INDEX).write_bytes(b"no database" * 99), f"{INDEX} is damaged"),
        (lambda folder: os.truncate(folder / INDEX, 5000), f"{INDEX} is damaged"),
        (lambda folder: execute(folder, "DROP TABLE pictures"), f"{INDEX} is damaged"),
        (lambda folder: execute(folder, "UPDATE state SET vectors = '../other'"), "'../other'"),
        (lambda folder: execute(folder, "UPDATE state SET about = '{}'"), f"{INDEX} is damaged"),
        (lambda folder: execute(folder, "UPDATE pictures SET place = 9"), "other embeddings than there are"),
    ],
)
def test_damage_is_told_by_the_name_of_the_file(index, damage, message):
    with index.writing():
        index.append([row("a")])
    damage(index.folder)
    with pytest.raises(ValueError, match=message):
        take_snapshot(Store.open(index.folder))


def flip(folder, place):
    """Change one bit of an embedding."""
    with (folder / EMBEDDINGS).open("r+b") as file:
        file.seek(2 * DIM * place)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(("place", "is_last"), [(0, False), (4095, False), (4096, True), (4999, True)])
def test_an_embedding_that_is_not_what_was_written_is_told(index, tmp_path, place, is_last):
    """One that was written last to whoever reads, and any other to whoever writes, or copies the index."""
    with index.writing():
        index.append(row("a") for _ in range(5000))
    flip(index.folder, place)
    message = f"{EMBEDDINGS} is damaged: of the embeddings {'4,096 to 4,999' if is_last else '0 to 4,095'}"
    if is_last:
        with pytest.raises(ValueError, match=message):
            take_snapshot(Store.open(index.folder))
    else:
        assert len(take_snapshot(Store.open(index.folder))) == 5000
    with pytest.raises(ValueError, match=message), index.writing():
        pass
    with pytest.raises(ValueError, match=message):
        Collection.create_copy(tmp_path / "copy", Collection(index))
    flip(index.folder, place)
    assert len(Collection.create_copy(tmp_path / "copy", Collection(index))) == 5000


def test_an_index_without_sums_gets_them_when_it_is_written_to(index):
    with index.writing():
        index.append([row("a"), row("bb")])
    execute(index.folder, "DROP TABLE sums")
    assert held(index.folder) == {"a": 1, "bb": 2}
    with index.writing():
        pass
    flip(index.folder, 0)
    with pytest.raises(ValueError, match=f"{EMBEDDINGS} is damaged"):
        held(index.folder)


def read_as_nobody(folder, temporary, said):
    tempfile.tempdir = temporary
    os.setgid(65534)
    os.setuid(65534)
    said.send(held(folder))


@pytest.mark.skipif(os.getuid() != 0, reason="another user is asked")
@pytest.mark.parametrize("layout", [1, 2])
def test_whoever_may_only_read_the_folder_reads_the_index(index, old, tmp_path, layout):
    folder = old if layout == 1 else index.folder
    if layout == 2:
        with index.writing():
            index.append([row("a")])
    for place in (tmp_path, *tmp_path.parents):
        if place.name.startswith(("test_", "pytest-", "popen-")):
            place.chmod(0o755)
    before, expected = sorted(path.name for path in folder.iterdir()), held(folder)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary").chmod(0o777)
    fork = multiprocessing.get_context("fork")
    said, saying = fork.Pipe(duplex=False)
    job = fork.Process(target=read_as_nobody, args=(folder, str(tmp_path / "temporary"), saying))
    job.start()
    saying.close()
    assert said.recv() == expected
    job.join()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_on_a_disk_of_the_network_it_does_without_a_log(index, monkeypatch):
    mounts = f"/dev/sda / ext4 rw 0 0\nhost:/a {index.folder.parent} nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: mounts)
    with index.writing(), ThreadPoolExecutor(1) as pool:
        index.append([row("a")])
        assert pool.submit(held, index.folder).result() == {"a": 1}
        assert not list(index.folder.glob("*-wal"))
        index.append([row("bb")])
    snapshot = take_snapshot(Store.open(index.folder))
    os.truncate(index.folder / EMBEDDINGS, 0)  # by another machine, which ends whoever looks at a file that is mapped
    assert snapshot.vectors.argmax(1).tolist() == [1, 2]
    index.folder.joinpath(EMBEDDINGS).write_bytes(snapshot.vectors.tobytes())
    assert held(index.folder) == {"a": 1, "bb": 2}
    monkeypatch.undo()
    with index.writing():
        assert list(index.folder.glob("*-wal"))


def test_disks_of_the_network_are_told_by_what_is_mounted():
    mounts = "/dev/sda / ext4 rw 0 0\nhost:/a /net/my\\040home nfs4 rw 0 0\n/dev/sdb /net/my\\040home/disk xfs rw 0 0\n"
    found = [is_on_network(Path(one), mounts) for one in ("/home", "/net/my home/a", "/net/my home/disk/a", "/net")]
    assert found == [False, True, False, False]


OLD_ROWS = {"a": 0, "ccc": 2, "dddd": 3}


def test_an_index_of_before_is_read_and_brought_over_when_it_is_written_to(old):
    before = sorted(path.name for path in old.iterdir())
    assert held(old) == OLD_ROWS
    store = Store.open(old)
    snapshot = take_snapshot(store)
    assert (snapshot.num_unreadable, store.inputs, len(store.finished)) == (1, ("/p",), 1)
    assert store.about.model == ModelSource(model="mobileclip_s0")
    assert sorted(path.name for path in old.iterdir()) == before, "who reads changes nothing"
    with store.writing():
        store.append([row("x" * 7)])
    assert held(old) == {**OLD_ROWS, "x" * 7: 6}
    assert {path.name for path in old.iterdir()} == {INDEX, EMBEDDINGS, ".lock"}
    first, third, frame = take_snapshot(Store.open(old)).rows([0, 1, 2])
    assert (first["camera"], first["taken"], first["latitude"]) == ("A camera", "2024-05-01T12:30:00", 48.5)
    assert (third["part"], third["taken"], frame["time"]) == ("0001", None, 42.5)
    assert Store.open(old).inputs == ("/p",)


def test_bringing_an_index_over_may_be_stopped_anywhere(old, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        patch.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt), Store.open(old).writing():
            pass
    assert held(old) == OLD_ROWS
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stopped)
        with pytest.raises(KeyboardInterrupt), Store.open(old).writing():
            pass
    assert (old / MANIFEST).exists()
    assert held(old) == OLD_ROWS
    with Store.open(old).writing():
        assert not (old / MANIFEST).exists()
    assert held(old) == OLD_ROWS


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "00000001.parquet").write_bytes(b"x"), "00000001.parquet is damaged"),
        (lambda folder: (folder / "00000001.parquet").unlink(), "00000001.parquet is gone"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff"), "manifest.json is damaged"),
        (lambda folder: narrow(folder / MANIFEST), "00000000.parquet cannot be read"),
    ],
)
def test_damage_of_an_index_of_before_is_told_too(old, damage, message):
    damage(old)
    with pytest.raises(ValueError, match=message):
        take_snapshot(Store.open(old))


def test_rows_are_exported_for_others_and_read_again(index, tmp_path):
    file = tmp_path / "rows.parquet"
    given = [row("a", taken="2024-05-01T12:30:00"), row("bb", time=42.5), row("ccc", problem="torn", embedding=None)]
    with index.writing():
        index.append(given)
    assert Collection(index).export(file) == 3
    table = pq.read_table(file)
    assert table["path"].to_pylist() == ["/p/a", "/p/bb", "/p/ccc"]
    assert table["embedding"].to_pylist()[0] == [0, 1, 0, 0, 0, 0, 0, 0]
    other = Collection.create_copy(tmp_path / "other", Collection.open(file))
    assert (held(file), held(other.path)) == ({"a": 1, "bb": 2}, {"a": 1, "bb": 2})
    assert other.store.values("taken", "time", "problem") == index.values("taken", "time", "problem")
    with pytest.raises(FileExistsError):
        Collection(index).export(file)
    with pytest.raises(OSError, match="cannot be written to"), Store.open(file).writing():
        pass
    pq.write_table(table.drop_columns(["path"]).replace_schema_metadata(None), file)
    with pytest.raises(ValueError, match="holds no rows of an index"):
        Store.open(file)


def narrow(manifest):
    manifest.write_text(manifest.read_text().replace('"dim": 8', '"dim": 7'))
