"""Files of every store that fsspec knows: s3, gs, memory and others."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from datetime import datetime
from typing import Any, TypeVar

from mobileclip.extras import advice
from mobileclip.machine import raise_machine_fault
from mobileclip.storage.addresses import printable, without_secrets
from mobileclip.storage.backend import Backend, ByteStream, Info, StorageError, store_limits

T = TypeVar("T")

# Enough to keep a connection busy, little enough to hold one per open file.
_BLOCK_BYTES = 2**23
# What tells one content from another, best first; stores name it differently.
_ETAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5")
_VERSIONS = (*_ETAGS, "mtime", "LastModified", "last_modified", "created")
_PLAIN_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class FsspecBackend(Backend):
    """URLs of stores that fsspec opens."""

    def check(self, address: str, *, write: bool = False) -> None:  # noqa: ARG002 - what can be read can be written
        """Make sure that something knows such URLs."""
        from fsspec.core import split_protocol
        from fsspec.registry import get_filesystem_class

        _known(address, lambda: get_filesystem_class(split_protocol(address)[0]))

    def open(self, address: str, position: int) -> tuple[ByteStream, str]:
        """Return the file at `position`, and its version."""
        from fsspec.spec import AbstractBufferedFile

        filesystem, path = _filesystem(address)
        stream: Any = _call(address, lambda: filesystem.open(path, "rb", block_size=_BLOCK_BYTES))
        if isinstance(stream, AbstractBufferedFile):
            # It has asked already; another request would be one more for every shard.
            version = _info(_file_details(address, stream.details)).version
        else:
            version = self.info(address).version
        if isinstance(stream, io.BytesIO):
            # Files in memory are one object for all who read them; this shares the bytes and not the position.
            stream = io.BytesIO(stream.getvalue())
        _call(address, lambda: stream.seek(position))
        return _Bounded(address, stream), version

    def info(self, address: str) -> Info:
        """Return size and version."""
        filesystem, path = _filesystem(address)
        return _info(_file_details(address, _call(address, lambda: filesystem.info(path))))

    def is_directory(self, address: str) -> bool:
        """Return whether files lie below the URL."""
        filesystem, path = _filesystem(address)
        return bool(_call(address, lambda: filesystem.isdir(path)))

    def find(self, address: str, *, recursive: bool) -> dict[str, Info]:
        """Return the files below, by their names relative to the URL."""
        filesystem, path = _filesystem(address)
        try:
            if recursive:
                found = list(_call(address, lambda: filesystem.find(path, detail=True)).values())
            else:
                found = _call(address, lambda: filesystem.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        start = path.rstrip("/") + "/"
        return {
            details["name"][len(start) :]: _info(details)
            for details in found
            if details["type"] == "file" and details["name"].startswith(start)
        }

    def upload(self, source: str, address: str) -> None:
        """Put a local file there; these stores show it when it is complete."""
        filesystem, path = _filesystem(address)
        _call(address, lambda: filesystem.put_file(source, path))

    def rename(self, source: str, target: str) -> None:
        """Move a file within the store, which copies it there."""
        filesystem, path = _filesystem(source)
        _, there = _filesystem(target)
        _call(source, lambda: filesystem.mv(path, there))

    def remove(self, address: str) -> None:
        """Remove a file."""
        filesystem, path = _filesystem(address)
        _call(address, lambda: filesystem.rm_file(path))


class _Bounded:
    """A stream each read of which is bounded in time: packages of stores wait for ever, or say nothing of it."""

    def __init__(self, address: str, stream: Any) -> None:
        self._address, self._stream = address, stream

    def read(self, size: int, /) -> bytes:
        return _in_time(self._address, lambda: bytes(self._stream.read(size)))

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, /) -> int:
        return int(self._stream.seek(offset))

    def close(self) -> None:
        self._stream.close()


def _filesystem(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    # Listings must be today's: other processes write to the same store.
    filesystem, path = _known(address, lambda: url_to_fs(address, use_listings_cache=False))
    return filesystem, path


def _known(address: str, call: Callable[[], T]) -> T:
    """Return what `call` returns, with errors for the person who typed the URL."""
    try:
        return call()
    except ImportError as error:
        raise ValueError(f"{address} needs a package that is not installed ({error}): {advice('remote')}") from None
    except ValueError as error:
        raise ValueError(
            f"{address} cannot be opened: {error}; expected a path or a URL such as s3://, gs:// or https://"
        ) from None


def _call(address: str, call: Callable[[], T]) -> T:
    """Return what `call` returns, with every failure as an OSError that names the URL."""
    try:
        return _in_time(address, call)
    except StorageError:
        raise
    except _PLAIN_ERRORS as error:
        raise type(error)(f"{address}: {error}") from error
    except (ValueError, TypeError, NotImplementedError) as error:
        raise OSError(f"{address}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise_machine_fault(error)
        what = f"{address}: {type(error).__name__}: {error}"
        if "Credentials" in type(error).__name__:
            raise PermissionError(what) from error
        raise StorageError(what) from error


def _in_time(address: str, call: Callable[[], T]) -> T:
    """Return what `call` returns, or give it up after a time; its thread is left to itself then."""
    seconds = store_limits().call_seconds
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
            outcome.set_exception(error)

    # No pool: its threads would be waited for when the process ends.
    threading.Thread(target=work, daemon=True).start()
    if not wait([outcome], seconds).done:
        raise StorageError(f"{printable(without_secrets(address))}: the store did not answer within {seconds:g} s")
    return outcome.result()


def _file_details(address: str, details: Mapping[str, Any]) -> Mapping[str, Any]:
    if details["type"] == "directory":
        raise IsADirectoryError(f"{address} is a directory")
    return details


def _info(details: Mapping[str, Any]) -> Info:
    version = next((details[name] for name in _VERSIONS if details.get(name)), "")
    if isinstance(version, datetime):
        version = version.timestamp()
    etag = next((details[name] for name in _ETAGS if details.get(name)), "")
    return Info(size=details.get("size"), version=f"{version}".strip('"'), etag=f"{etag}".strip('"'))
