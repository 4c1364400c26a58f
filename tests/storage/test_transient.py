"""Which errors may be otherwise at another time: not those of what is missing, closed, or broken."""

import bz2
import errno
import gzip
import os
import tarfile
import urllib.error

from mobileclip.storage import StorageError, is_transient, open_read


def error_of(call) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - of any kind
        return error
    raise AssertionError("it raised nothing")


def test_a_store_a_disk_a_network_and_memory_may_come_back():
    errors = [OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE, errno.EMFILE)]
    errors += [StorageError("away"), TimeoutError("timed out"), ConnectionResetError("reset"), MemoryError()]
    errors += [urllib.error.URLError("no route to host")]
    assert [repr(error) for error in errors if not is_transient(error)] == []


def test_what_is_missing_or_broken_stays_so(tmp_path):
    torn, missing = tmp_path / "torn.tar.gz", tmp_path / "missing"
    torn.write_bytes(b"torn" * 400)
    calls = [lambda: gzip.GzipFile(torn).read(), lambda: bz2.BZ2File(torn).read(), lambda: tarfile.TarFile(torn)]
    calls += [missing.read_bytes, tmp_path.read_bytes, (torn / "below").read_bytes]
    calls += [open_read(str(missing)).__enter__]
    broken = [PermissionError(errno.EACCES, "Permission denied"), ValueError("it is of no use"), KeyError("member")]
    assert [repr(error) for error in (*map(error_of, calls), *broken) if is_transient(error)] == []
