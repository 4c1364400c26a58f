"""Reads and writes files in the stores that fsspec supports: s3, gs, memory and others."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from datetime import datetime
from typing import Any, TypeVar

from mobileclip.extras import install_command
from mobileclip.machine import raise_machine_fault
from mobileclip.storage.backend import Backend, Info, StorageError, store_limits
from mobileclip.storage.urls import printable, without_secrets

T = TypeVar("T")

# Block size: large enough to keep a connection busy, small enough to hold one block per open file.
_BLOCK_BYTES = 2**23
# Names of content identifiers in various stores, the best first.
_ETAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5")
_VERSIONS = (*_ETAGS, "mtime", "LastModified", "last_modified", "created")
_PLAIN_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class FsspecBackend(Backend):
    """Backend for URLs of stores that fsspec supports."""

    def check(self, address: str, *, write: bool = False) -> None:  # noqa: ARG002 - readable URLs are also writable
        """Check that fsspec supports the scheme of a URL."""
        from fsspec.core import split_protocol
        from fsspec.registry import get_filesystem_class

        _known(address, lambda: get_filesystem_class(split_protocol(address)[0]))

    def open(self, address: str, position: int) -> tuple[Any, str]:
        """Return a stream of the file from byte `position`, and the version of the file."""
        from fsspec.spec import AbstractBufferedFile

        stream = _do(address, "open", "rb", block_size=_BLOCK_BYTES)
        # The opened file already has this information; `info` would cost one more request per shard.
        is_known = isinstance(stream, AbstractBufferedFile)
        version = (_info(address, stream.details) if is_known else self.info(address)).version
        if isinstance(stream, io.BytesIO):
            # All readers of a memory:// file share one stream; return a new stream with the same bytes.
            stream = io.BytesIO(stream.getvalue())
        _call(address, lambda: stream.seek(position))
        return stream, version

    def read(self, address: str, stream: Any, size: int) -> bytes:
        """Read at most `size` bytes with a timeout, because fsspec implementations may wait forever."""
        return _in_time(address, lambda: bytes(stream.read(size)))

    def info(self, address: str) -> Info:
        """Return the size, version and ETag of a file."""
        return _info(address, _do(address, "info"))

    def is_directory(self, address: str) -> bool:
        """Return whether files exist below the URL."""
        return bool(_do(address, "isdir"))

    def find(self, address: str, *, recursive: bool) -> dict[str, Info]:
        """Return the files below the URL by relative path."""
        try:
            found = _do(address, "find", detail=True).values() if recursive else _do(address, "ls", detail=True)
        except FileNotFoundError:
            return {}
        start = _filesystem(address)[1].rstrip("/") + "/"
        return {
            details["name"][len(start) :]: _info(address, details)
            for details in found
            if details["type"] == "file" and details["name"].startswith(start)
        }

    def upload(self, source: str, address: str) -> None:
        """Upload a local file; other readers see only the complete file."""
        filesystem, path = _filesystem(address)
        _call(address, lambda: filesystem.put_file(source, path))

    def rename(self, source: str, target: str) -> None:
        """Move a file within the store: copy the file, then remove the original."""
        _do(source, "mv", _filesystem(target)[1])

    def remove(self, address: str) -> None:
        """Remove a file."""
        _do(address, "rm_file")


def _do(address: str, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of the store for a URL."""
    filesystem, path = _filesystem(address)
    return _call(address, lambda: getattr(filesystem, method)(path, *arguments, **options))


def _filesystem(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    # Listings must be current, because other processes write to the same store.
    filesystem, path = _known(address, lambda: url_to_fs(address, use_listings_cache=False))
    return filesystem, path


def _known(address: str, call: Callable[[], T]) -> T:
    """Call a function, and convert import and value errors to a `ValueError` with the URL and a remedy."""
    try:
        return call()
    except ImportError as error:
        raise ValueError(
            f"{address} needs a package that is not installed ({error}): {install_command('remote')}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{address} cannot be opened: {error}; expected a path or a URL such as s3://, gs:// or https://"
        ) from None


def _call(address: str, call: Callable[[], T]) -> T:
    """Call a function, and convert every failure to an OSError that names the URL."""
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
    """Call a function in a thread with a timeout; after a timeout, the thread continues, but the result is lost."""
    seconds = store_limits().call_seconds
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            outcome.set_exception(error)

    # No thread pool, because the process would wait for the pool's threads at exit.
    threading.Thread(target=work, daemon=True).start()
    if not wait([outcome], seconds).done:
        raise StorageError(f"{printable(without_secrets(address))}: the store did not answer within {seconds:g} s")
    return outcome.result()


def _info(address: str, details: Mapping[str, Any]) -> Info:
    if details["type"] == "directory":
        raise IsADirectoryError(f"{address} is a directory")
    etag, version = (next((details[name] for name in names if details.get(name)), "") for names in (_ETAGS, _VERSIONS))
    if isinstance(version, datetime):
        version = version.timestamp()
    return Info(size=details.get("size"), version=f"{version}".strip('"'), etag=f"{etag}".strip('"'))
