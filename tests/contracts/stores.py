"""Contract suite of stores: files are written atomically, read, listed, renamed and removed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from mobileclip import storage
from mobileclip.storage import AnyPath

_LARGE = 3_000_000


def check_store(base: AnyPath) -> None:
    """Check that files are written, read, listed, renamed and removed in a store as in a folder of this machine.

    What is read is what was written, whole, in parts, by two readers at once, and as a copy. A file appears when it is
    whole; what fails, or is interrupted, leaves nothing, and the old file as it was. Listing shows what another process
    has just written, not what is in hidden folders. A fingerprint changes with the content. What is missing is a
    `FileNotFoundError`, a folder an `IsADirectoryError`, and a file of more bytes than the limit is refused.

    Args:
        base: a folder that is empty, or a URL that fsspec opens; files are written to it, and stay there.

    Raises:
        AssertionError: if something of it is not so.
    """
    assert not storage.is_directory(base) or not storage.find_files(base)
    _check_contents(storage.join(base, "contents"))
    _check_writing(storage.join(base, "writing"))
    _check_listing(storage.join(base, "listing"))
    _check_refusals(storage.join(base, "refusals"))


def _write(path: str, data: bytes) -> str:
    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        stream.write(data)
    return path


def _read(path: str) -> bytes:
    return storage.read_bytes(path, limit=2 * _LARGE)


def _check_contents(base: str) -> None:
    data = os.urandom(_LARGE)
    path = storage.join(base, "a.bin")
    assert not storage.exists(path)
    assert storage.read_if_exists(path, limit=9) is None
    _write(path, data)
    assert storage.exists(path)
    assert storage.size(path) == _LARGE
    assert _read(path) == data
    with storage.open_read(path) as one, storage.open_read(path) as other:
        for start, stop in ((1_234_567, 1_235_567), (_LARGE - 7, _LARGE), (0, 2_000_000)):
            for stream in (one, other):
                stream.seek(start)
                assert stream.read(stop - start) == data[start:stop], f"bytes {start} to {stop} are others"
        assert one.read() == other.read() == data[2_000_000:], "two readers disturb each other"
    with storage.local_copy(path) as copy:
        assert copy.read_bytes() == data
    assert copy.exists() != storage.is_remote(path), "the copy is left behind"
    empty = _write(storage.join(base, "empty"), b"")
    assert (storage.size(empty), _read(empty)) == (0, b"")
    before = storage.fingerprint(path)
    assert storage.fingerprint(path) == before
    time.sleep(0.01)
    _write(path, bytes(reversed(data)))
    assert storage.fingerprint(path) != before


def _check_writing(base: str) -> None:
    path = storage.join(base, "a.bin")
    storage.make_directory_of(path)
    for old in (b"", b"old"):
        if old:
            _write(path, old)
        for error in (KeyboardInterrupt, ValueError):
            with suppress(error), storage.atomic_write(path) as stream:
                stream.write(os.urandom(_LARGE))
                assert storage.exists(path) == bool(old), "it is there before it is whole"
                raise error
            with suppress(error), storage.atomic_file(path) as temporary:
                temporary.write_bytes(b"half")
                raise error
            files = storage.list_files(base)
            assert len(files) == bool(old), files
            assert not old or _read(path) == old
    with storage.atomic_file(path) as temporary:
        temporary.write_bytes(b"by path")
    assert _read(path) == b"by path"
    _write(storage.join(base, "b.bin"), b"replaced")
    other = storage.rename(path, "b.bin")
    assert (other, _read(other), storage.exists(path)) == (storage.join(base, "b.bin"), b"by path", False)
    storage.remove(other)
    storage.remove(other)
    assert not storage.exists(other)


def _check_listing(base: str) -> None:
    names = ["a.tar", "b.tar", "c.txt", ".d.tar", "below/e.tar", ".trash/f.tar", "below/__MACOSX/deeper/g.tar"]
    for name in reversed(names):
        _write(storage.join(base, name), name.encode())
    top = storage.local_path(base) if not storage.is_remote(base) else base
    expected = [f"{top}/{name}" for name in (".d.tar", "a.tar", "b.tar", "below/e.tar")]
    assert sorted(storage.list_files(base, ".tar")) == expected[:3]
    assert sorted(storage.list_files(base, ".tar", recursive=True)) == expected
    passed_over: list[str] = []
    found = storage.find_files(base, passed_over=lambda name, _: passed_over.append(name))
    assert sorted(found) == [".d.tar", "a.tar", "b.tar", "below/e.tar", "c.txt"]
    assert sorted(passed_over) == [".trash", "below/__MACOSX"]
    assert len(set(found.values())) == len(found), f"fingerprints are the same: {found}"
    assert storage.find_sizes(base) == {name: len(name) for name in names[:4]}
    below = storage.join(base, "below")
    assert storage.is_directory(base)
    assert storage.is_directory(below)
    assert not storage.exists(below)
    assert not storage.is_directory(storage.join(base, "a.tar"))
    _write(storage.join(base, "new.tar"), b"")
    assert "new.tar" in storage.find_files(base), "a file that was just written is not listed"
    assert not storage.list_files(storage.join(base, "nowhere"))


def _check_refusals(base: str) -> None:
    path = _write(storage.join(base, "below/a.bin"), b"content")
    folder, missing = storage.join(base, "below"), storage.join(base, "nothing")
    looks: tuple[Callable[[str], object], ...] = (storage.size, storage.fingerprint, _read)
    for look in looks:
        with pytest.raises(FileNotFoundError):
            look(missing)
        with pytest.raises(IsADirectoryError):
            look(folder)
    with pytest.raises(FileNotFoundError):
        storage.rename(missing, "c.bin")
    with pytest.raises(FileNotFoundError), storage.local_copy(missing):
        pass
    for read in (storage.read_bytes, storage.read_if_exists):
        with pytest.raises(OSError, match="6"):
            read(path, limit=6)
    assert storage.read_if_exists(folder, limit=9) is None
