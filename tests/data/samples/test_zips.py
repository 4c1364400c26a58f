"""Directories of zip files: those of numpy and torch are read, and whatever contradicts itself is refused."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch

from mobileclip.data.samples import TorchRows, zip_members
from mobileclip.tensor_files import CheckpointError

FILES = {"a.npy": b"content" * 40, "b.npy": bytes(range(256))}


def zipped(files=FILES, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            # Without the time of day, so that every process gives a test with these bytes the same name.
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def read(data, **options):
    return zip_members(io.BytesIO(data), len(data), **options)


def changed(place, value, *, of=b"PK\x01\x02"):
    """A zip file with other bytes in the first entry of its directory, or in its end."""
    data = bytearray(zipped())
    start = data.index(of) + place
    data[start : start + len(value)] = value
    return bytes(data)


def with_comment():
    stream = io.BytesIO(zipped())
    with zipfile.ZipFile(stream, "a") as archive:
        archive.comment = b"a comment"
    return stream.getvalue()


def one_over_another():
    data = bytearray(zipped({"a.npy": b"x", "a.npz": b"y"}).replace(b"a.npz", b"a.npy"))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)
    data[second + 46 : second + 51] = b"b.npy"
    return bytes(data)


def in_a_longer_form(num_bytes):
    """A zip file whose end has 64 bits, and says that its directory has so many bytes."""
    data = zipped()
    count, size, start = struct.unpack("<8xHHII2x", data[-22:])[1:]
    longer = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, num_bytes or size, start)
    # The locator points at the start of the file, where there is no such form.
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
    return data[:-22] + longer + locator + data[-22:-10] + b"\xff" * 8 + bytes(2)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_where_the_content_is(method):
    data = zipped(method=method)
    found = read(data)
    assert found.keys() == FILES.keys()
    for name, content in FILES.items():
        member = found[name]
        stored = data[member.start : member.start + member.stored_size]
        assert (zlib.decompress(stored, -15) if member.is_deflated else stored) == content
        assert (member.size, member.checksum) == (len(content), zlib.crc32(content))


def test_what_numpy_and_torch_write():
    stream = io.BytesIO()
    np.savez(stream, a=np.arange(3.0))
    assert read(stream.getvalue())["a.npy"].size == 128 + 24
    stream = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, stream)
    assert read(stream.getvalue())["archive/data/0"].size == 12


def test_the_longer_form():
    assert read(in_a_longer_form(0)).keys() == FILES.keys()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no zip file"),
        (zipped()[:-1], "cut off"),
        (with_comment(), "no zip file"),
        (changed(20, b"\x05\x00", of=b"PK\x05\x06"), "with a comment"),
        (changed(10, b"\x0c\x00"), "another method"),
        (changed(8, b"\x01\x00"), "encrypted"),
        (changed(24, b"\x01\x00\x00\x00"), "two sizes"),
        (changed(42, b"\x05\x00\x00\x00"), "points elsewhere"),
        (changed(46, b"c"), "points elsewhere"),
        (changed(16, b"\xf0\x00\x00\x00", of=b"PK\x05\x06"), "damaged|points elsewhere"),
        (changed(10, b"\xff\xff", of=b"PK\x05\x06"), "names 2 files, and says that it names 65,535"),
        (changed(26, b"\x09\x00", of=b"PK\x03\x04"), "two names"),
        (
            zipped({"a.npy": bytes(99)}).replace(b"\x05\x00\x00\x00a.npy", b"\x05\x00\x01\x00a.npy", 1),
            "with its directory",
        ),
        (zipped().replace(b"b.npy", b"a.npy"), "'a.npy' is there twice"),
        (one_over_another(), "points elsewhere"),
        (changed(20, b"\xff\x0f\x00\x00" * 2), "share bytes"),
        (in_a_longer_form(1 << 40), "at most 16,777,216 are read"),
    ],
)
def test_what_is_refused(data, said):
    with pytest.raises(CheckpointError, match=said):
        read(data)


def test_no_more_of_a_directory_is_read_than_asked_for():
    data = zipped({f"{number}": b"" for number in range(30)})
    assert len(read(data)) == 30
    with pytest.raises(CheckpointError, match="its directory has 1,430 bytes, and at most 1,429 are read"):
        read(data, directory_bytes=1429)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped({"a/data.pkl": b"x" * 99}, zipfile.ZIP_DEFLATED), "in it is compressed"),
        (zipped({"a/data.pkl": b"", "b/data/0": b""}), "not in one folder"),
        (zipped({}), "not in one folder"),
    ],
)
def test_archives_that_torch_does_not_write(data, said):
    with pytest.raises(CheckpointError, match=said):
        TorchRows(data)
