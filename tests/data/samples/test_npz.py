"""Rows of an npz: those of numpy, and damage that is noticed."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mobileclip.data import BadSampleError, read_embeddings
from mobileclip.data.samples.readers import NpzRows, write_npz, write_pth_gz
from tests.errors import fails

LIMIT = 2**20
RNG = np.random.default_rng(0)
ARRAYS = {
    "image_emb": RNG.standard_normal((5, 48)).astype(np.float32),
    "text_emb": RNG.standard_normal((3, 48)).astype(np.float32),
}
DATA = write_npz(ARRAYS)


def saved(compressed: bool = True, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4", "i1"])
@pytest.mark.parametrize("compressed", [True, False])
def test_rows_in_any_order(compressed, dtype):
    arrays = {name: (4 * array).astype(dtype) for name, array in ARRAYS.items()}
    rows = read_embeddings("a.npz", saved(compressed, **arrays), limit=LIMIT)
    assert rows.shapes == {"image_emb": (5, 48), "text_emb": (3, 48)}
    for name, index in (("text_emb", 2), ("image_emb", 1), ("image_emb", 4), ("text_emb", 0), ("image_emb", 0)):
        row = rows.row(name, index)
        assert row.dtype == np.float32
        np.testing.assert_array_equal(row, arrays[name][index].astype(np.float32))


def test_no_more_is_inflated_than_the_row_needs(monkeypatch):
    inflated, read = [], zipfile.ZipExtFile.read

    def counted(self, size=-1):
        content = read(self, size)
        inflated.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    rows = NpzRows(DATA, limit=LIMIT)
    rows.row("image_emb", 1)
    rows.row("image_emb", 0)
    assert sum(inflated) == 2 * 128 + 2 * 48 * 4
    rows.row("image_emb", 2)
    assert sum(inflated) == 2 * 128 + 3 * 48 * 4


@pytest.mark.parametrize("compressed", [True, False])
def test_rows_of_columns(compressed):
    array = np.asfortranarray(ARRAYS["image_emb"])
    rows = NpzRows(saved(compressed, image_emb=array), limit=LIMIT)
    assert rows.shapes == {"image_emb": (5, 48)}
    for index in (3, 0, 4):
        np.testing.assert_array_equal(rows.row("image_emb", index), array[index])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 5)])
def test_arrays_without_rows(shape):
    assert NpzRows(saved(image_emb=np.zeros(shape)), limit=LIMIT).shapes == {"image_emb": shape}


HEADER = DATA.index(b"image_emb.npy") + len(b"image_emb.npy")


@pytest.mark.parametrize(
    "data",
    [
        *(saved(image_emb=some) for some in (np.array(["a"]), np.array([None], dtype=object), np.zeros(2, "V3"))),
        *(DATA[:-cut] for cut in (1, 30, 200, len(DATA) // 2)),
        DATA[:HEADER] + b"\xff" * 40 + DATA[HEADER + 40 :],
    ],
    ids=["text", "objects", "bytes", *(f"cut {number}" for number in range(4)), "damaged header"],
)
def test_what_is_refused(data):
    with fails(BadSampleError):
        read_embeddings("a.npz", data, limit=LIMIT)


def test_a_number_too_large_for_float32_and_no_such_row():
    with fails(BadSampleError):
        NpzRows(saved(image_emb=np.full((1, 2), 1e300)), limit=LIMIT).row("image_emb", 0)
    with fails(IndexError, "5"):
        NpzRows(DATA, limit=LIMIT).row("image_emb", 5)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(DATA) - 1), change=st.integers(1, 255))
def test_whoever_reads_to_the_end_notices_every_changed_byte(place, change):
    damaged = bytearray(DATA)
    damaged[place] ^= change
    try:
        rows = read_embeddings("a.npz", bytes(damaged), limit=LIMIT)
        read = {name: [rows.row(name, index) for index in reversed(range(len(ARRAYS[name])))] for name in rows.shapes}
    except (BadSampleError, KeyError):
        return
    # What changed was a time, a version or a name, but no number.
    for name in set(read) & set(ARRAYS):
        np.testing.assert_array_equal(read[name][::-1], ARRAYS[name])


def test_wild_numbers_of_a_damaged_stream():
    wild = {"image_emb": np.full((2, 8), 1e30, np.float32)}
    rows = NpzRows(write_npz(wild), limit=LIMIT)
    with fails(BadSampleError, "0", "image_emb", "1e+30"):
        rows.row("image_emb", 0)
    rows.row("image_emb", 1)  # the end: the checksum says that they are meant
    np.testing.assert_array_equal(rows.row("image_emb", 0), wild["image_emb"][0])


@pytest.mark.parametrize(("name", "write"), [("a.npz", write_npz), ("a.pth.gz", write_pth_gz)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite(name, write, value):
    array = ARRAYS["image_emb"].copy()
    array[2, 7] = value
    rows = read_embeddings(name, write({"image_emb": array}), limit=LIMIT)
    rows.row("image_emb", 1)
    with fails(BadSampleError, "2", "image_emb"):
        rows.row("image_emb", 2)


@pytest.mark.parametrize("name", ["a.npz", "a.pth.gz"])
def test_no_more_than_the_limit_is_read(name):
    data = DATA if name.endswith("npz") else write_pth_gz(ARRAYS)
    with fails(BadSampleError, name, "1,000") as caught:
        read_embeddings(name, data, limit=1000)
    assert caught.value.reason == "too_large"
