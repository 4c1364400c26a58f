"""Files of this machine: one writer at a time, and files that are there whole or not at all."""

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
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mobileclip import storage
from mobileclip.storage import require_output, require_output_folder
from tests.errors import fails
from tests.forking import FORKING
from tests.preloaded import preloaded
from tests.storage.processes import child, enter_often, hold_lock, write_without_end
from tests.waiting import wait_for


def tree(folder):
    """Return the content of each file below a folder, by path, and None for each empty folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def plant(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


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


def test_a_folder_that_cannot_be_written_to(closed):
    storage.write_text(closed.parent / "a.txt", "")  # all modules are loaded, some of which nobody else may read
    calls = (storage.exclusive(closed), storage.exclusive(closed / "below"))
    calls += (storage.atomic_write(closed / "a.txt"), storage.atomic_folder(closed / "data"))
    for call in calls:
        with nobody(), fails(PermissionError, "written"), call:
            pytest.fail("nobody may write here")


def test_many_processes_never_enter_together(tmp_path):
    with FORKING.Pool(4) as pool:
        entered, double = zip(*pool.map(enter_often, [tmp_path] * 4, chunksize=1), strict=True)
    assert (sum(entered) > 50, sum(double)) == (True, 0)
    assert list(tree(tmp_path)) == [".lock"], "whoever waits must wait for this file"


def test_threads_are_kept_out_unless_they_wait(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        with storage.exclusive(tmp_path):
            for enter in (lambda call: call(), lambda call: pool.submit(call).result()):
                with fails(ValueError):
                    enter(storage.exclusive(tmp_path).__enter__)
            with fails(ValueError, "for 0.1 s"), storage.exclusive(tmp_path, wait_seconds=0.1):
                pytest.fail("entered twice")
            waiting = pool.submit(storage.exclusive(tmp_path, wait_seconds=20).__enter__)
            time.sleep(0.2)
            assert not waiting.done()
        waiting.result()


def test_a_killed_holder_lets_go(tmp_path):
    process = child(hold_lock, tmp_path)
    wait_for((tmp_path / "held").exists)
    with fails(ValueError), storage.exclusive(tmp_path):
        pytest.fail("entered twice")
    process.kill()
    process.join()
    with storage.exclusive(tmp_path):
        pass


def test_it_changes_with_the_content_and_with_nothing_else(tmp_path):
    path, other = tmp_path / "a.bin", tmp_path / "b.bin"
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    path.write_bytes(b"one")
    assert storage.content_hash(path) == one
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert storage.fingerprint(path) == f"{status.st_size}-{status.st_mtime_ns}", "which cannot see it"
    assert storage.content_hash(path) == two
    os.utime(path, (0, 0))
    other.write_bytes(b"two")
    assert storage.content_hashes([path, other, tmp_path / "c"]) == [two, two, "missing"]


def test_a_file_that_nobody_touched_is_read_once(tmp_path, monkeypatch):
    path, clock = tmp_path / "a.bin", time.time
    path.write_bytes(b"one")
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
    with fails(ValueError, "stall_seconds"):
        storage.StoreLimits(stall_seconds=0.0)


def test_threads_do_not_meet(tmp_path):
    together = threading.Barrier(8)

    def write(number: int) -> None:
        for _ in range(20):
            together.wait(20)
            storage.write_text(tmp_path / "a.bin", f"{number}" * 100_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    (name, data), *others = tree(tmp_path).items()
    assert (name, len(data), len(set(data)), others) == ("a.bin", 100_000, 1, [])


def test_file_and_folder_are_on_the_disk_in_this_order(tmp_path, monkeypatch):
    synchronised = []

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        synchronised.append((path.suffix or str(path), (tmp_path / "a.bin").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write_text(tmp_path / "a.bin", "x")
    assert synchronised == [(".tmp", False), (str(tmp_path), True)]


def test_what_dead_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    process = child(write_without_end, tmp_path / "a.bin")
    (left,) = wait_for(lambda: [*tmp_path.glob(".*")])
    storage.write_text(tmp_path / "b", "")
    assert left.exists(), "its process lives"
    process.kill()
    process.join()
    _, place, number, _ = left.name.split("-")
    elsewhere, old = (left.name.replace(place, digit * 8) for digit in "01")
    strange = left.name.replace(f"-{number}-", f"-{'9' * 30}-")  # of no process
    plant(tmp_path, dict.fromkeys((elsewhere, old, strange), ""))
    os.utime(tmp_path / old, (time.time() - 2 * 24 * 3600,) * 2)
    _written_by_another_process(tmp_path / "b")
    assert tree(tmp_path).keys() == {elsewhere, strange, "b"}


def test_a_path_for_those_who_write_by_name(tmp_path):
    path = tmp_path / ("x" * 255)  # the longest name
    with storage.atomic_path(path) as temporary:
        temporary.write_bytes(b"x")
        assert not path.exists()
    with pytest.raises(KeyError), storage.atomic_path(path) as temporary:
        raise KeyError(temporary.write_bytes(b"y"))
    assert tree(tmp_path) == {path.name: "x"}


@pytest.mark.parametrize("is_there", [True, False], ids=["a file", "no file yet"])
def test_a_link_stays_and_its_target_is_written(is_there, tmp_path):
    plant(tmp_path / "disk", {"a.bin": "old"})
    if not is_there:
        (tmp_path / "disk" / "a.bin").unlink()
    (tmp_path / "link").symlink_to("disk/a.bin")
    (tmp_path / "other").symlink_to("link")
    storage.write_text(tmp_path / "other", "new")
    assert [(tmp_path / name).readlink() for name in ("other", "link")] == [Path("link"), Path("disk/a.bin")]
    assert tree(tmp_path) == dict.fromkeys(("disk/a.bin", "link", "other"), "new")


@pytest.mark.parametrize(("name", "target"), [("link", "missing/a.bin"), ("circle", "circle")])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path, name, target):
    (tmp_path / name).symlink_to(target)
    with fails(OSError, name):
        storage.write_text(tmp_path / name, "x")
    assert (tmp_path / name).is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_keeps_its_permissions(mode, closed):
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


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        storage.write_text(pipe, "x" * 100_000)
        assert read.result(20) == "x" * 100_000
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_a_device_is_written_to(tmp_path):
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
def test_standard_output_is_written_to(is_file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/dev/stdout")  # a wrong program would replace the link, and not that of the machine
    code = f"""
from mobileclip import storage
from mobileclip.storage import require_output, require_output_folder
print("before", flush=True)
storage.require_output({str(link)!r}, overwrite=False)
storage.write_text({str(link)!r}, "content;")
print("behind", flush=True)
"""
    with (tmp_path / "out").open("wb") as stream:
        out = stream if is_file else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert ((tmp_path / "out").read_bytes() if is_file else done.stdout) == b"before\ncontent;behind\n"


def test_others_may_read_what_a_library_would_keep_to_its_owner(tmp_path):
    before = os.umask(0o027)
    try:
        with storage.atomic_path(tmp_path / "file") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
        with storage.atomic_folder(tmp_path / "folder") as temporary:
            save_file({"a": torch.zeros(2)}, temporary / "file")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("file")} == {0o640}


def test_it_appears_with_all_that_is_in_it_and_is_replaced_only_where_asked(tmp_path):
    place = tmp_path / "made" / "data"
    with storage.atomic_folder(place) as folder:
        plant(folder, {"a/x": "x", "y": "y"})
        assert not place.exists()
    with fails(FileExistsError, "data"), storage.atomic_folder(place):
        pytest.fail("what is there would have been replaced")
    with pytest.raises(KeyError), storage.atomic_folder(place, overwrite=True) as folder:
        raise KeyError((folder / "x").write_bytes(b"x"))
    assert tree(tmp_path) == {"made/data/a/x": "x", "made/data/y": "y"}
    with storage.atomic_folder(place, overwrite=True) as folder:
        plant(folder, {"new": "new"})
    assert tree(tmp_path) == {"made/data/new": "new"}


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path):
    plant(tmp_path / "old", {"kept": "kept"})
    (tmp_path / "data").symlink_to(tmp_path / "old")
    with storage.atomic_folder(tmp_path / "data", overwrite=True) as folder:
        plant(folder, {"new": "new"})
    assert tree(tmp_path) == {"data/new": "new", "old/kept": "kept"}


def test_the_folder_of_a_quicker_process_stays(tmp_path):
    with storage.atomic_folder(tmp_path / "data") as folder:
        plant(folder, {"x": "slow"})
        plant(tmp_path / "data", {"x": "quick"})
    assert tree(tmp_path) == {"data/x": "quick"}


@pytest.mark.parametrize("goes_on", [True, False], ids=["the same again", "another file"])
def test_killed_at_any_moment_the_old_or_the_new_comes_back(goes_on, tmp_path):
    both = [{f"data/{one}": one, f"data/below/{one}": one} for one in ("old", "new")]
    for number in itertools.count(1):
        parent = tmp_path / str(number)
        plant(parent, both[0])
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
        assert tree(parent) in both
    assert number > 11


def test_an_original_is_never_swept_where_something_else_has_taken_its_place(tmp_path):
    plant(tmp_path, {"data/old": "old"})
    twin = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}.copy")
    kill = next(
        number
        for number, event in enumerate(_replace_data(twin).operations, 1)
        if event.startswith("os.rename") and ".before" not in event and ".tmp" in event
    )
    assert _replace_data(tmp_path, kill_before=kill).status == -signal.SIGKILL
    assert not (tmp_path / "data").exists()
    plant(tmp_path, {"data/mine": "mine"})
    _written_by_another_process(tmp_path / "other")
    assert [path.read_text() for path in tmp_path.glob(".mobileclip-*/data/old")] == ["old"]
    assert tree(tmp_path / "data") == {"mine": "mine"}


OUTPUTS = [
    ("deep/er/new.npz", False, None),
    ("there.npz", False, FileExistsError),
    ("there.npz", True, None),
    ("link.npz", False, FileExistsError),  # to nowhere
    ("folder.npz", True, IsADirectoryError),
    ("there.npz/x.npz", True, NotADirectoryError),
    *((name, True, ValueError) for name in ("e.csv", "e", "npz", "e.npz.gz", ".npz")),
]


@pytest.mark.parametrize(("name", "overwrite", "kind"), OUTPUTS)
def test_what_is_there_is_kept_unless_a_file_may_be_replaced(tmp_path, name, overwrite, kind):
    plant(tmp_path, {"there.npz": "work of hours"})
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.npz").mkdir()
    if kind is None:
        require_output(tmp_path / name, overwrite=overwrite, suffixes=(".npz", ".npy"))
    else:
        with fails(kind, ".npz"):
            require_output(tmp_path / name, overwrite=overwrite, suffixes=(".npz", ".npy"))
    assert {path.name for path in tmp_path.iterdir()} == {"there.npz", "link.npz", "folder.npz"}
    assert (tmp_path / "there.npz").read_text() == "work of hours"


def test_a_folder_that_cannot_be_written_to_is_refused_now(closed):
    with nobody(), fails(OSError, "Permission denied"):
        require_output(closed / "x.npz", overwrite=False)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no such folder")
def test_a_folder_that_takes_no_files_is_refused_whatever_its_permissions_say():
    with fails(OSError, "/proc"):
        require_output("/proc/new/x.npz", overwrite=False)


@pytest.mark.parametrize("address", ["s3://bucket/x.npz", Path("https://host/x.npz")])
def test_an_address_is_refused_and_makes_no_folder_of_its_name(address):
    with fails(ValueError):
        require_output(address, overwrite=True)


def test_a_folder_is_replaced_where_it_is_one_of_its_kind(tmp_path):
    folder, card = tmp_path / "out", {"marker": "card.json"}
    require_output_folder(folder, overwrite=False, **card)
    folder.mkdir()
    require_output_folder(folder, overwrite=False, **card)
    (folder / "card.json").touch()
    with fails(FileExistsError):
        require_output_folder(folder, overwrite=False, **card)
    require_output_folder(folder, overwrite=True, **card)
    with fails(NotADirectoryError):
        require_output_folder(folder / "card.json", overwrite=True, **card)
    (folder / "card.json").rename(folder / "thesis.txt")
    with fails(FileExistsError, "card"):
        require_output_folder(folder, overwrite=True, **card)


STATES = [
    *((unused, "home/.local/state/mobileclip") for unused in (None, "", "a/relative/one")),
    ("/elsewhere", "/elsewhere/mobileclip"),
]


@pytest.mark.parametrize(("given", "where"), STATES)
def test_the_state_lies_in_the_home_of_the_user_or_where_the_environment_says(monkeypatch, tmp_path, given, where):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_STATE_HOME", given)
    assert storage.state_folder() == tmp_path / where


def test_there_is_no_state_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "here")
    assert storage.state_folder() is None

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert storage.state_folder() is None


PROCESSES = "tests.storage.processes"


def _written_by_another_process(path):
    """Write a file by a process that has not swept its folder yet."""
    done = preloaded(PROCESSES).call("mobileclip.storage:write_text", str(path), "", folder=path.parent)
    assert done.status == 0, done.output


def _replace_data(parent, **choices):
    given = {"folder": parent.parent, "watched": parent, **choices}
    return preloaded(PROCESSES).call(f"{PROCESSES}:replace_data", str(parent), **given)


@pytest.mark.parametrize(("nanoseconds", "stored"), [(-1, -1), (2**63 - 1, 2**63 - 1), (2**63, -(2**63))])
def test_times_that_64_bits_cannot_hold_are_wrapped(nanoseconds, stored):
    assert storage.modified_ns(SimpleNamespace(st_mtime_ns=nanoseconds)) == stored
