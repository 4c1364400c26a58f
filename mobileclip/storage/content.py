"""A fingerprint of a file's content, since size and time may stay when the content changes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from mobileclip.storage.addresses import AnyPath, is_remote, local_path
from mobileclip.storage.files import file_info, open_read

# Reading goes on beside hashing, and neither gains from more.
_MOST_THREADS = 8
_BLOCK_BYTES = 2**20
# A file that was changed just now may be changed again before the system's clock for files moves on.
_SETTLED_SECONDS = 2.0
_MOST_KNOWN = 100_000

_known: dict[tuple[str, int, int, int, int, int], str] = {}


def content_hash(path: AnyPath) -> str:
    """Return the SHA-256 of a file, or what its store says in place of one, such as an ETag.

    A file of this machine is read, once a process as long as the system says that nobody touched it; that takes about a
    second for a gigabyte. One of a store that says no more than size and time is read as well.

    Raises:
        OSError: if there is no such file, or it cannot be read.
    """
    if is_remote(path):
        info = file_info(path)
        return f"{info.size} {info.etag}" if info.etag else _read(path)
    file = local_path(path)
    status = file.stat()
    # The third time is that of the last change of any kind, which no program can put back.
    times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    key = (str(file.absolute()), status.st_dev, status.st_ino, *times)
    if key in _known:
        return _known[key]
    found = _read(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = found
    return found


def content_hashes(paths: Iterable[AnyPath]) -> list[str]:
    """Return `content_hash` of several files, which are read side by side; `missing` for those that are not there.

    Raises:
        OSError: if one cannot be read.
    """
    with ThreadPoolExecutor(_MOST_THREADS) as pool:
        return list(pool.map(_hash_or_missing, paths))


def _hash_or_missing(path: AnyPath) -> str:
    try:
        return content_hash(path)
    except FileNotFoundError:
        return "missing"


def _read(path: AnyPath) -> str:
    digest = hashlib.sha256()
    with open_read(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
