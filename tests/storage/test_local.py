"""Files of this machine: one writer at a time, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mobileclip import storage
from tests.errors import fails
from tests.preloaded import preloaded

ENTERING = """
import os, sys, time
from pathlib import Path
from mobileclip import storage

def enter(folder, end):
    entered = double = 0
    while time.monotonic() < end:
        try:
            with storage.exclusive(folder):
                entered += 1
                try:
                    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    double += 1
                    continue
                os.unlink(folder / "inside")
        except ValueError:
            pass
    os.write(1, f"{entered} {double}\\n".encode())

for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        enter(Path(sys.argv[1]), time.monotonic() + 1)
        os._exit(0)
"""


@contextmanager
def nobody():
    """Act as a user who may write nowhere."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def closed(tmp_path):
    """A folder that may be read and not written."""
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o755)
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    return folder


@pytest.mark.parametrize(
    "call",
    [
        storage.exclusive,
        lambda folder: storage.exclusive(folder / "below"),
        lambda folder: storage.atomic_write(folder / "a.txt"),
        lambda folder: storage.atomic_folder(folder / "data"),
    ],
    ids=["lock", "lock below", "file", "folder"],
)
def test_a_folder_that_cannot_be_written_to(closed, call):
    storage.write_text(closed.parent / "a.txt", "")  # all modules are loaded, some of which nobody else may read
    with nobody(), pytest.raises(PermissionError, match="written"), call(closed):
        pytest.fail("nobody may write here")


class TestExclusive:
    def test_many_processes_never_enter_together(self, tmp_path):
        command = [sys.executable, "-c", ENTERING, str(tmp_path), "4"]
        # Their output ends when the last of them has: the one that imported for all does not wait.
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counts = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
        assert len(counts) == 4
        assert sum(entered for entered, _ in counts) > 50
        assert sum(double for _, double in counts) == 0
        assert [path.name for path in tmp_path.iterdir()] == [".lock"], "whoever waits must wait for this file"

    def test_threads_and_the_same_thread_are_kept_out_too(self, tmp_path):
        with storage.exclusive(tmp_path), ThreadPoolExecutor(1) as pool:
            with fails(ValueError):
                storage.exclusive(tmp_path).__enter__()
            with fails(ValueError):
                pool.submit(storage.exclusive(tmp_path).__enter__).result()
        with storage.exclusive(tmp_path):
            pass

    def test_waiting(self, tmp_path):
        entered, leave = threading.Event(), threading.Event()

        def hold():
            with storage.exclusive(tmp_path):
                entered.set()
                leave.wait(20)

        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(hold)
            assert entered.wait(20)
            with fails(ValueError, "for 0.1 s"), storage.exclusive(tmp_path, wait_seconds=0.1):
                pytest.fail("entered twice")
            threading.Timer(0.2, leave.set).start()
            with storage.exclusive(tmp_path, wait_seconds=20):
                assert leave.is_set()
            holding.result()

    def test_a_killed_holder_lets_go(self, tmp_path):
        code = f"""
import pathlib
from mobileclip import storage
with storage.exclusive(pathlib.Path({str(tmp_path)!r})):
    print("in", flush=True)
    input()
"""
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "in\n"
            with fails(ValueError), storage.exclusive(tmp_path):
                pytest.fail("entered twice")
            process.kill()
        with storage.exclusive(tmp_path):
            pass


class TestContent:
    def test_it_changes_with_the_content_and_with_nothing_else(self, tmp_path):
        path = tmp_path / "a.bin"
        path.write_bytes(b"one")
        before = storage.content_hash(path)
        assert before == hashlib.sha256(b"one").hexdigest()
        status = path.stat()
        path.write_bytes(b"two")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert storage.fingerprint(path) == f"{status.st_size}-{status.st_mtime_ns}", "which cannot see it"
        assert storage.content_hash(path) == hashlib.sha256(b"two").hexdigest()
        os.utime(path, (0, 0))
        (tmp_path / "b.bin").write_bytes(b"two")
        assert storage.content_hashes([path, tmp_path / "b.bin", tmp_path / "c"]) == [
            *[hashlib.sha256(b"two").hexdigest()] * 2,
            "missing",
        ]

    def test_a_file_that_nobody_touched_is_read_once(self, tmp_path, monkeypatch):
        path = tmp_path / "a.bin"
        path.write_bytes(b"one")
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + 10)
        before = storage.content_hash(path)
        monkeypatch.setattr(hashlib, "sha256", lambda: pytest.fail("it was read again"))
        assert storage.content_hash(path) == before
        path.chmod(0o600)
        with pytest.raises(pytest.fail.Exception):
            storage.content_hash(path)


def test_limits_are_held_for_all_threads_and_given_back():
    with ThreadPoolExecutor(1) as pool:
        before = storage.store_limits()
        with storage.use_limits(storage.StoreLimits(stall_seconds=1.0)):
            assert pool.submit(storage.store_limits).result().stall_seconds == 1.0
        assert pool.submit(storage.store_limits).result() == before
    with pytest.raises(ValueError, match="stall_seconds"):
        storage.StoreLimits(stall_seconds=0.0)


class TestAtomic:
    def test_threads_do_not_meet(self, tmp_path):
        together = threading.Barrier(8)

        def write(number: int) -> None:
            for _ in range(20):
                together.wait(20)
                with storage.atomic_write(tmp_path / "a.bin") as stream:
                    stream.write(bytes([number]) * 100_000)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        data = (tmp_path / "a.bin").read_bytes()
        assert len(data) == 100_000
        assert len(set(data)) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def test_file_and_folder_are_on_the_disk_in_this_order(self, tmp_path, monkeypatch):
        synchronised = []

        def fsync(handle: int) -> None:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            synchronised.append((path.suffix or str(path), (tmp_path / "a.bin").exists()))

        monkeypatch.setattr(os, "fsync", fsync)
        storage.write_text(tmp_path / "a.bin", "x")
        assert synchronised == [(".tmp", False), (str(tmp_path), True)]

    def test_what_dead_processes_left_is_removed_and_what_others_write_is_not(self, tmp_path):
        code = f"""
import os
import shutil
import signal
from mobileclip import storage
with storage.atomic_write({str(tmp_path / "a.bin")!r}) as stream:
    stream.write(b"x" * 100)
    stream.flush()
    print("in", flush=True)
    input()
"""
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "in\n"
            (left,) = tmp_path.glob(".*")
            storage.write_text(tmp_path / "b", "")
            assert left.exists(), "its process lives"
            process.kill()
        place = left.name.split("-")[1]
        elsewhere = tmp_path / left.name.replace(place, "00000000")
        elsewhere.write_text("of another machine, where the number may be of a process that lives")
        old = tmp_path / left.name.replace(place, "11111111")
        old.write_text("of another machine, long ago")
        os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
        strange = tmp_path / left.name.replace(f"-{process.pid}-", f"-{'9' * 30}-")
        strange.write_text("of a number that no process has")
        _written_by_another_process(tmp_path / "b")
        assert {path.name for path in tmp_path.iterdir()} == {elsewhere.name, strange.name, "b"}

    def test_a_file_with_the_longest_name_can_be_written(self, tmp_path):
        path = tmp_path / ("x" * 255)
        storage.write_text(path, "x")
        assert path.read_text() == "x"

    def test_a_path_for_those_who_write_by_name(self, tmp_path):
        with storage.atomic_path(tmp_path / "a.bin") as path:
            path.write_bytes(b"x")
            assert not (tmp_path / "a.bin").exists()
        assert (tmp_path / "a.bin").read_bytes() == b"x"
        umask = os.umask(0)
        os.umask(umask)
        assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o666 & ~umask
        with pytest.raises(KeyError), storage.atomic_path(tmp_path / "a.bin") as path:
            raise KeyError(path.write_bytes(b"y"))
        assert (tmp_path / "a.bin").read_bytes() == b"x"
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


class TestWhatIsThere:
    """Links, permissions, pipes and devices in the place of a file that is written."""

    @pytest.mark.parametrize("is_there", [True, False], ids=["a file", "no file yet"])
    def test_a_link_stays_and_its_target_is_written(self, is_there, tmp_path):
        (tmp_path / "disk").mkdir()
        if is_there:
            (tmp_path / "disk" / "a.bin").write_bytes(b"old")
        (tmp_path / "link").symlink_to("disk/a.bin")
        (tmp_path / "other").symlink_to("link")
        storage.write_text(tmp_path / "other", "new")
        assert (tmp_path / "other").readlink() == Path("link")
        assert (tmp_path / "link").readlink() == Path("disk/a.bin")
        assert (tmp_path / "disk" / "a.bin").read_bytes() == b"new"
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["a.bin"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link", "other"]

    def test_a_link_that_leads_nowhere_is_an_error(self, tmp_path):
        (tmp_path / "link").symlink_to("missing/a.bin")
        (tmp_path / "circle").symlink_to("circle")
        for name in ("link", "circle"):
            with pytest.raises(OSError, match=name):
                storage.write_text(tmp_path / name, "x")
            assert (tmp_path / name).is_symlink()

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
    def test_a_file_keeps_its_permissions(self, mode, closed):
        closed.chmod(0o777)
        path = closed / "a.safetensors"
        with nobody():
            path.touch()
            path.chmod(mode)
            with storage.atomic_path(path) as temporary:
                assert not stat.S_IMODE(temporary.stat().st_mode) & 0o077 & ~mode, "others could read it meanwhile"
                save_file({"a": torch.zeros(2)}, temporary)
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert path.stat().st_size > 0

    def test_a_pipe_is_written_to(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit((tmp_path / "pipe").read_bytes)
            storage.write_text(tmp_path / "pipe", "x" * 100_000)
            assert read.result(20) == b"x" * 100_000
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
        assert [path.name for path in tmp_path.iterdir()] == ["pipe"]

    def test_a_device_is_written_to(self, tmp_path):
        # A terminal, in whose folder no file can be made: a wrong program must not replace this machine's /dev/null.
        reader, terminal = os.openpty()
        try:
            (tmp_path / "device").symlink_to(os.ttyname(terminal))
            for path in (tmp_path / "device", Path(os.ttyname(terminal))):
                storage.write_text(path, "content")
                assert os.read(reader, 100) == b"content"
        finally:
            os.close(reader)
            os.close(terminal)
        assert (tmp_path / "device").is_symlink()

    @pytest.mark.parametrize("is_file", [True, False], ids=["into a file", "into a pipe"])
    def test_standard_output_is_written_to(self, is_file, tmp_path):
        # Which a wrong program would replace, and not that of the machine.
        (tmp_path / "link").symlink_to("/dev/stdout")
        code = f"""
from mobileclip import storage
print("before", flush=True)
storage.require_output({str(tmp_path / "link")!r}, overwrite=False)
storage.write_text({str(tmp_path / "link")!r}, "content;")
print("behind", flush=True)
"""
        with (tmp_path / "out").open("wb") as stream:
            done = subprocess.run(
                [sys.executable, "-c", code], stdout=stream if is_file else subprocess.PIPE, check=True
            )
        written = (tmp_path / "out").read_bytes() if is_file else done.stdout
        assert written == b"before\ncontent;behind\n"


def test_others_may_read_what_a_library_would_keep_to_its_owner(tmp_path):
    before = os.umask(0o027)
    try:
        with storage.atomic_path(tmp_path / "file") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
        with storage.atomic_folder(tmp_path / "folder") as temporary:
            save_file({"a": torch.zeros(2)}, temporary / "file")
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "folder" / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


class TestAtomicFolder:
    def test_it_appears_with_all_that_is_in_it(self, tmp_path):
        place = tmp_path / "made" / "data"
        with storage.atomic_folder(place) as folder:
            (folder / "a").mkdir()
            (folder / "a" / "x").write_bytes(b"x")
            storage.write_text(folder / "y", "y")
            assert not place.exists()
        assert sorted(path.relative_to(place).as_posix() for path in place.rglob("*")) == ["a", "a/x", "y"]
        assert [path.name for path in place.parent.iterdir()] == ["data"]
        with pytest.raises(FileExistsError, match="data"), storage.atomic_folder(place):
            pytest.fail("what is there would have been replaced")

    def test_a_folder_is_replaced_whole_and_only_where_asked(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "old").write_bytes(b"old")
        with pytest.raises(KeyError), storage.atomic_folder(tmp_path / "data", overwrite=True) as folder:
            raise KeyError((folder / "x").write_bytes(b"x"))
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["old"]
        with storage.atomic_folder(tmp_path / "data", overwrite=True) as folder:
            (folder / "new").write_bytes(b"new")
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["new"]
        assert [path.name for path in tmp_path.iterdir()] == ["data"]

    def test_a_link_is_replaced_and_not_what_it_leads_to(self, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "kept").write_bytes(b"kept")
        (tmp_path / "data").symlink_to(tmp_path / "old")
        with storage.atomic_folder(tmp_path / "data", overwrite=True) as folder:
            (folder / "new").write_bytes(b"new")
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["new"]
        assert (tmp_path / "old" / "kept").read_bytes() == b"kept"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "old"]

    def test_the_folder_of_a_quicker_process_stays(self, tmp_path):
        with storage.atomic_folder(tmp_path / "data") as folder:
            (folder / "x").write_bytes(b"slow")
            (tmp_path / "data").mkdir()
            (tmp_path / "data" / "x").write_bytes(b"quick")
        assert (tmp_path / "data" / "x").read_bytes() == b"quick"
        assert [path.name for path in tmp_path.iterdir()] == ["data"]

    @pytest.mark.parametrize("goes_on", [True, False], ids=["the same again", "another file"])
    def test_killed_at_any_moment_the_old_or_the_new_comes_back(self, goes_on, tmp_path):
        for number in itertools.count(1):
            parent = tmp_path / str(number)
            (parent / "data" / "below").mkdir(parents=True)
            (parent / "data" / "old").write_text("old")
            (parent / "data" / "below" / "old").write_text("old")
            done = _replace_data(parent, kill_before=number)
            if done.status == 0:
                break
            assert done.status == -signal.SIGKILL, done.output
            if goes_on:
                again = _replace_data(parent)
                assert again.status == 0, again.output
            else:
                _written_by_another_process(parent / "other")
                (parent / "other").unlink()
            kind = "old" if (parent / "data" / "old").exists() else "new"
            whole = ["data", "data/below", f"data/below/{kind}", f"data/{kind}"]
            assert sorted(path.relative_to(parent).as_posix() for path in parent.rglob("*")) == whole
        assert number > 11

    def test_an_original_is_never_swept_where_something_else_has_taken_its_place(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "old").write_text("old")
        twin = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}.copy")
        kill = next(
            number
            for number, event in enumerate(_replace_data(twin).operations, 1)
            if event.startswith("os.rename") and ".before" not in event and ".tmp" in event
        )
        done = _replace_data(tmp_path, kill_before=kill)
        assert done.status == -signal.SIGKILL
        assert not (tmp_path / "data").exists()
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "mine").write_text("mine")
        _written_by_another_process(tmp_path / "other")
        assert [path.read_text() for path in tmp_path.glob(".mobileclip-*/data/old")] == ["old"]
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]


def _written_by_another_process(path):
    """Write a file by a process that has not swept its folder yet."""
    done = preloaded("tests.storage.replacing").call("mobileclip.storage:write_text", str(path), "", folder=path.parent)
    assert done.status == 0, done.output


def _replace_data(parent, *, kill_before=0):
    return preloaded("tests.storage.replacing").call(
        "tests.storage.replacing:replace_data",
        str(parent),
        folder=parent.parent,
        watched=parent,
        kill_before=kill_before,
    )
