"""Zip files of arrays: those of numpy and torch are read, and whatever contradicts itself is refused."""

import io
import zipfile

import numpy as np
import pytest
import torch

from mobileclip.data.samples.readers import NpzRows, TorchRows
from tests.build.torch_files import torch_bytes
from tests.errors import fails

LIMIT = 2**20


def npy(count=4):
    stream = io.BytesIO()
    np.save(stream, np.arange(2.0 * count, dtype=np.float32).reshape(count, 2))
    return stream.getvalue()


def zipped(files=None, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in (files or {"a.npy": npy(), "b.npy": npy()}).items():
            # Without the time of day, so that every process gives a test with these bytes the same name.
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def changed(place, value, *, of=b"PK\x01\x02", data=None):
    """A zip file with other bytes in the first entry of its directory, or in its end."""
    made = bytearray(data or zipped())
    start = made.index(of) + place
    made[start : start + len(value)] = value
    return bytes(made)


def one_over_another():
    data = bytearray(zipped({"a.npy": npy(), "a.npz": npy()}).replace(b"a.npz", b"a.npy"))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)
    data[second + 46 : second + 51] = b"b.npy"
    return bytes(data)


def read_all(data):
    rows = NpzRows(data, limit=LIMIT)
    return {name: [rows.row(name, index) for index in range(shape[0])] for name, shape in rows.shapes.items()}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_members(method):
    for rows in read_all(zipped(method=method)).values():
        np.testing.assert_array_equal(rows, np.arange(8.0).reshape(4, 2))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        zipped()[:-1],
        changed(10, b"\x0c\x00"),  # another method
        changed(8, b"\x01\x00"),  # encrypted
        changed(20, b"\x01\x00\x00\x00"),  # fewer bytes than it has
        changed(24, b"\x01\x00\x00\x00"),  # two sizes
        changed(20, b"\xff\xff\x00\x00"),  # more bytes than the archive has
        changed(42, b"\x05\x00\x00\x00"),  # another place
        changed(42, b"\xff\xff\x00\x00"),  # a place behind the end
        changed(46, b"c"),  # another name
        changed(16, b"\xf0\x00\x00\x00", of=b"PK\x05\x06"),
        zipped().replace(b"b.npy", b"a.npy"),  # one name twice
        one_over_another(),
        zipped({f"{number}": b"" for number in range(501)}),
    ],
)
def test_what_is_refused(data):
    with fails(ValueError):
        NpzRows(data, limit=LIMIT)


def torch_file():
    return torch_bytes({"image_emb": torch.arange(8.0).reshape(4, 2), "text_emb": torch.ones(3, 2)})


def directory_entry(data, name):
    return data.index(name, data.index(b"PK\x01\x02")) - 46


@pytest.mark.parametrize("claimed", [0, 4, 31, 33, 1000, 2**31])
def test_a_member_of_a_torch_file_that_is_cut_or_reaches_into_the_next_is_refused(claimed):
    data = bytearray(torch_file())
    start = directory_entry(data, b"archive/data/0")
    assert int.from_bytes(data[start + 20 : start + 24], "little") == 32
    data[start + 20 : start + 28] = claimed.to_bytes(4, "little") * 2
    with fails(ValueError):
        TorchRows(bytes(data))


def test_a_number_of_a_torch_file_that_changed_is_noticed():
    """By the checksum: gzip has one of its own, and a file that is stored without it has none."""
    data = bytearray(torch_file())
    data[data.index(np.float32(7).tobytes()) + 2] ^= 1
    with fails(ValueError, "CRC"):
        TorchRows(bytes(data))


@pytest.mark.parametrize("kind", ["npz", "torch"])
def test_members_that_overlap_are_refused(kind):
    """Each claims the bytes of all that follow: read one by one, a small file would be a large one."""
    data = bytearray(zipped() if kind == "npz" else torch_file())
    position, total = data.index(b"PK\x01\x02"), len(data)
    while data[position : position + 4] == b"PK\x01\x02":
        data[position + 20 : position + 28] = (total - 100).to_bytes(4, "little") * 2
        position += 46 + sum(int.from_bytes(data[position + at : position + at + 2], "little") for at in (28, 30, 32))
    with fails(ValueError, "overlap"):
        _ = NpzRows(bytes(data), limit=LIMIT) if kind == "npz" else TorchRows(bytes(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped({"a/data.pkl": b"x" * 99}, zipfile.ZIP_DEFLATED), "in the archive is compressed"),
        (zipped({"a/data.pkl": b"", "b/data/0": b""}), "not in one folder"),
        (zipped({"a": b""}), "not a torch file"),
    ],
)
def test_archives_that_torch_does_not_write(data, said):
    with pytest.raises(ValueError, match=said):
        TorchRows(data)
