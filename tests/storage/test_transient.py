"""Which errors may be otherwise at another time: not those of what is missing, closed, or broken."""

from __future__ import annotations

import bz2
import errno
import gzip
import os
import tarfile
import urllib.error

import pytest

from mobileclip.storage import StorageError, is_transient, open_read


def error_of(call) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - of any kind
        return error
    raise AssertionError("it raised nothing")


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE, errno.EMFILE)),
        *(StorageError("away"), TimeoutError("timed out"), ConnectionResetError("reset"), MemoryError()),
        urllib.error.URLError("no route to host"),
    ],
    ids=repr,
)
def test_a_store_a_disk_a_network_and_memory_may_come_back(error):
    assert is_transient(error)


def test_what_is_missing_or_broken_stays_so(tmp_path):
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(b"torn" * 400)
    broken = [
        error_of(lambda: gzip.GzipFile(torn).read()),
        error_of(lambda: bz2.BZ2File(torn).read()),
        error_of(lambda: tarfile.TarFile(torn)),
        error_of((tmp_path / "missing").read_bytes),
        error_of(tmp_path.read_bytes),
        error_of((torn / "below").read_bytes),
        error_of(lambda: open_read(str(tmp_path / "missing")).__enter__()),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("it is of no use"),
        KeyError("member"),
    ]
    assert [repr(error) for error in broken if is_transient(error)] == []
