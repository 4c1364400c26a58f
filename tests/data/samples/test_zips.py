"""Directories of zip files: those of numpy and torch are read, and whatever contradicts itself is refused."""

import io
import zipfile
import zlib

import numpy as np
import pytest
import torch

from mobileclip.data.samples.readers import TorchRows, zip_members

FILES = {"a.npy": b"content" * 40, "b.npy": bytes(range(256))}


def zipped(files=FILES, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            # Without the time of day, so that every process gives a test with these bytes the same name.
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def changed(place, value, *, of=b"PK\x01\x02"):
    """A zip file with other bytes in the first entry of its directory, or in its end."""
    data = bytearray(zipped())
    start = data.index(of) + place
    data[start : start + len(value)] = value
    return bytes(data)


def one_over_another():
    data = bytearray(zipped({"a.npy": b"x", "a.npz": b"y"}).replace(b"a.npz", b"a.npy"))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)
    data[second + 46 : second + 51] = b"b.npy"
    return bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_where_the_content_is(method):
    data = zipped(method=method)
    found = zip_members(data)
    assert found.keys() == FILES.keys()
    for name, content in FILES.items():
        member = found[name]
        stored = bytes(member.stored)
        assert (zlib.decompress(stored, -15) if member.is_deflated else stored) == content
        assert (member.size, member.checksum) == (len(content), zlib.crc32(content))


def test_what_numpy_and_torch_write():
    stream = io.BytesIO()
    np.savez(stream, a=np.arange(3.0))
    assert zip_members(stream.getvalue())["a.npy"].size == 128 + 24
    stream = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, stream)
    assert zip_members(stream.getvalue())["archive/data/0"].size == 12


@pytest.mark.parametrize(
    "data",
    [
        b"",
        zipped()[:-1],
        changed(10, b"\x0c\x00"),  # another method
        changed(8, b"\x01\x00"),  # encrypted
        changed(24, b"\x01\x00\x00\x00"),  # two sizes
        changed(42, b"\x05\x00\x00\x00"),  # another place
        changed(46, b"c"),  # another name
        changed(16, b"\xf0\x00\x00\x00", of=b"PK\x05\x06"),
        zipped().replace(b"b.npy", b"a.npy"),  # one name twice
        one_over_another(),
        zipped({f"{number}": b"" for number in range(501)}),
    ],
)
def test_what_is_refused(data):
    with pytest.raises(ValueError, match=r"in it|it is"):
        zip_members(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped({"a/data.pkl": b"x" * 99}, zipfile.ZIP_DEFLATED), "in it is compressed"),
        (zipped({"a/data.pkl": b"", "b/data/0": b""}), "not in one folder"),
        (zipped({}), "not in one folder"),
    ],
)
def test_archives_that_torch_does_not_write(data, said):
    with pytest.raises(ValueError, match=said):
        TorchRows(data)
