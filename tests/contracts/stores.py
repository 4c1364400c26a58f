"""Contract suite of stores: files are written atomically, read, listed, renamed and removed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from mobileclip import storage
from mobileclip.storage import AnyPath
from mobileclip.testing.comparing import first_line

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
        AssertionError: if something of it is not so; the message says what.

    Examples:
        >>> check_store("memory://mobileclip/testing")
        >>> check_store("memory://mobileclip/testing")
        Traceback (most recent call last):
        AssertionError: memory://mobileclip/testing is not empty; give a folder or a URL of its own
    """
    files = storage.find_files(base) if storage.is_directory(base) else {}
    assert not files, f"{base} is not empty; give a folder or a URL of its own"
    try:
        _check_contents(storage.join(base, "contents"))
        _check_writing(storage.join(base, "writing"))
        _check_listing(storage.join(base, "listing"))
        _check_refusals(storage.join(base, "refusals"))
    except (OSError, ValueError) as error:
        raise AssertionError(f"a file below {base} cannot be used: {first_line(error)}") from error


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
    assert not storage.exists(path), f"{path} is there before it is written"
    assert storage.read_if_exists(path, limit=9) is None, f"{path} is read before it is written"
    _write(path, data)
    assert storage.exists(path), f"{path} is not there once it is written"
    assert storage.size(path) == _LARGE, f"{path} has {storage.size(path)} bytes, not the {_LARGE} that were written"
    assert _read(path) == data, f"{path} has another content than was written"
    with storage.open_read(path) as one, storage.open_read(path) as other:
        for start, stop in ((1_234_567, 1_235_567), (_LARGE - 7, _LARGE), (0, 2_000_000)):
            for stream in (one, other):
                stream.seek(start)
                assert stream.read(stop - start) == data[start:stop], f"bytes {start} to {stop} of {path} are others"
        whole = one.read() == other.read() == data[2_000_000:]
        assert whole, f"two readers of {path} disturb each other"
    with storage.local_copy(path) as copy:
        assert copy.read_bytes() == data, f"a copy of {path} has another content"
    assert copy.exists() != storage.is_remote(path), f"the copy of {path} is left behind"
    empty = _write(storage.join(base, "empty"), b"")
    assert (storage.size(empty), _read(empty)) == (0, b""), f"{empty} was written without a byte, and has some"
    before = storage.fingerprint(path)
    assert storage.fingerprint(path) == before, f"the fingerprint of {path} changes, and the file does not"
    time.sleep(0.01)
    _write(path, bytes(reversed(data)))
    assert storage.fingerprint(path) != before, f"the fingerprint of {path} is what it was before the file changed"


def _check_writing(base: str) -> None:
    path = storage.join(base, "a.bin")
    storage.make_directory_of(path)
    for old in (b"", b"old"):
        if old:
            _write(path, old)
        for error in (KeyboardInterrupt, ValueError):
            with suppress(error), storage.atomic_write(path) as stream:
                stream.write(os.urandom(_LARGE))
                assert storage.exists(path) == bool(old), f"{path} is there before it is whole"
                raise error
            with suppress(error), storage.atomic_file(path) as temporary:
                temporary.write_bytes(b"half")
                raise error
            files = storage.list_files(base)
            assert len(files) == bool(old), f"writing {path} fails, and there are {files}"
            assert not old or _read(path) == old, f"writing {path} fails, and what was there is not as it was"
    with storage.atomic_file(path) as temporary:
        temporary.write_bytes(b"by path")
    assert _read(path) == b"by path", f"{path} has another content than the file that was written for it"
    _write(storage.join(base, "b.bin"), b"replaced")
    other = storage.rename(path, "b.bin")
    is_moved = other == storage.join(base, "b.bin") and _read(other) == b"by path" and not storage.exists(path)
    assert is_moved, f"{path} is not renamed to b.bin beside it: {storage.list_files(base)}"
    storage.remove(other)
    storage.remove(other)
    assert not storage.exists(other), f"{other} is still there once it is removed"


def _check_listing(base: str) -> None:
    names = ["a.tar", "b.tar", "c.txt", ".d.tar", "below/e.tar", ".trash/f.tar", "below/__MACOSX/deeper/g.tar"]
    for name in reversed(names):
        _write(storage.join(base, name), name.encode())
    top = storage.local_path(base) if not storage.is_remote(base) else base
    expected = [f"{top}/{name}" for name in (".d.tar", "a.tar", "b.tar", "below/e.tar")]
    _same(f"files of {base}", storage.list_files(base, ".tar"), expected[:3])
    _same(f"files below {base}", storage.list_files(base, ".tar", recursive=True), expected)
    passed_over: list[str] = []
    found = storage.find_files(base, passed_over=lambda name, _: passed_over.append(name))
    _same(f"names below {base}", found, [".d.tar", "a.tar", "b.tar", "below/e.tar", "c.txt"])
    _same(f"hidden folders below {base}", passed_over, [".trash", "below/__MACOSX"])
    assert len(set(found.values())) == len(found), f"files below {base} have one fingerprint: {found}"
    _same(f"sizes in {base}", storage.find_sizes(base).items(), [(name, len(name)) for name in sorted(names[:4])])
    below = storage.join(base, "below")
    is_told = storage.is_directory(base) and storage.is_directory(below) and not storage.exists(below)
    is_told = is_told and not storage.is_directory(storage.join(base, "a.tar"))
    assert is_told, f"files and folders of {base} are mixed up"
    _write(storage.join(base, "new.tar"), b"")
    assert "new.tar" in storage.find_files(base), f"a file that was just written is not listed in {base}"
    assert not storage.list_files(storage.join(base, "nowhere")), f"a folder that is not in {base} has files"


def _check_refusals(base: str) -> None:
    path = _write(storage.join(base, "below/a.bin"), b"content")
    folder, missing = storage.join(base, "below"), storage.join(base, "nothing")
    looks: tuple[Callable[[str], object], ...] = (storage.size, storage.fingerprint, _read)
    for look in looks:
        _refused(look, missing, FileNotFoundError)
        _refused(look, folder, IsADirectoryError)
    _refused(lambda one: storage.rename(one, "c.bin"), missing, FileNotFoundError)
    _refused(lambda one: storage.local_copy(one).__enter__(), missing, FileNotFoundError)
    _refused(lambda one: storage.read_bytes(one, limit=6), path, OSError)
    _refused(lambda one: storage.read_if_exists(one, limit=6), path, OSError)
    assert storage.read_if_exists(folder, limit=9) is None, f"{folder} is read as a file, and is a folder"


def _refused(call: Callable[[str], object], path: str, wanted: type[Exception]) -> None:
    try:
        given = call(path)
    except Exception as error:
        if isinstance(error, wanted):
            return
        raise AssertionError(
            f"{path} is to be refused with {wanted.__name__}, and gives {first_line(error)}"
        ) from error
    raise AssertionError(f"{path} is to be refused with {wanted.__name__}, and gives {given!r:.100}")


def _same(what: str, found: Iterable[object], expected: Sequence[object]) -> None:
    assert sorted(found, key=str) == sorted(expected, key=str), f"{what} are {sorted(found, key=str)}, not {expected}"
