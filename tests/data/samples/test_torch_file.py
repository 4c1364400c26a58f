"""Tensors of a file that torch wrote: those of torch, and nothing that is run."""

from __future__ import annotations

import gzip
import pickle
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mobileclip.data import BadSampleError, read_embeddings
from mobileclip.data.samples.readers import TorchRows, described_tensors, write_pth_gz
from mobileclip.tensor_files import CheckpointError
from tests.build.torch_files import torch_bytes
from tests.errors import fails

LIMIT = 2**20
RNG = np.random.default_rng(0)
ARRAYS = {
    "image_emb": RNG.standard_normal((5, 24)).astype(np.float32),
    "text_emb": RNG.standard_normal((3, 24)).astype(np.float32),
}
TENSORS = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}


@pytest.mark.parametrize(
    ("is_direct", "value"),
    [
        *(
            (True, {name: tensor.to(dtype) for name, tensor in TENSORS.items()})
            for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float64)
        ),
        (True, {f"syn_text_{number}_emb": torch.randn(number % 7 + 1, 300).bfloat16() for number in range(40)}),
        (True, {"image_emb": TENSORS["image_emb"][1:4], "text_emb": TENSORS["image_emb"][4:]}),  # of one storage
        (True, {}),
        (False, {"image_emb": torch.randn(4, 3).T, "text_emb": torch.randn(1, 4)}),
        (False, {"image_emb": torch.nn.Parameter(torch.randn(2, 3))}),
        (False, {"image_emb": torch.randn(1, 3).expand(5, 3), "text_emb": torch.randn(9, 7)[2:8:2, 1:4]}),
        (False, {"image_emb": torch.zeros(0, 3)}),
    ],
)
def test_rows_in_any_order(is_direct, value):
    rows = TorchRows(torch_bytes(value)) if is_direct else read_embeddings("a.pth.gz", torch_bytes(value), limit=LIMIT)
    assert rows.shapes == {name: tuple(tensor.shape) for name, tensor in value.items()}
    for name, tensor in reversed(value.items()):
        for index in reversed(range(len(tensor))):
            row = rows.row(name, index)
            assert row.dtype == np.float32
            np.testing.assert_array_equal(row, tensor[index].detach().float().numpy())


@pytest.mark.parametrize(
    "value", [{"image_emb": torch.zeros(4, 3, 2)}, {"image_emb": torch.ones(2, 3, dtype=torch.int64)}]
)
def test_other_tensors_are_refused(value):
    with fails(BadSampleError, "bad_embedding", "a.pth.gz"):
        read_embeddings("a.pth.gz", torch_bytes(value), limit=LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        *(torch_bytes(value) for value in ([1, 2], {"image_emb": "text"}, {1: torch.zeros(1, 2)}, torch.zeros(2, 2))),
        torch_bytes({"image_emb": torch.zeros(1, 2)}, pickle_protocol=pickle.HIGHEST_PROTOCOL),
    ],
    ids=["list", "text", "number", "tensor", "other protocol"],
)
def test_no_dictionary_of_tensors(data):
    with fails(ValueError):
        TorchRows(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_descriptions(data):
    """Whatever the bytes, the file is read or refused, and what is read has the shape that it says."""
    damaged = bytearray(torch_bytes(TENSORS))
    start = damaged.index(b"data.pkl")
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(start, start + 300))] = data.draw(st.integers(0, 255))
    try:
        rows = TorchRows(bytes(damaged))
    except ValueError:
        return
    for name, (count, dim) in rows.shapes.items():
        with suppress(BadSampleError):
            assert count == 0 or rows.row(name, 0).shape == (dim,)


@pytest.mark.parametrize(
    ("said", "instead"), [(b"QK\x00", b"Qh\x00"), (b"K\x06K\x04\x86", b"h\x00K\x04\x86")], ids=["offset", "shape"]
)
def test_a_number_that_is_none(said, instead):
    """The dictionary itself, once more, where a number is expected."""
    data = torch_bytes({"image_emb": torch.zeros(6, 4)})
    assert data.count(said) == 1
    with fails(CheckpointError):
        TorchRows(data.replace(said, instead))


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        lambda data: gzip.compress(gzip.compress(data)),
        lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
        lambda data: gzip.compress(data) + bytes(20),
        bytes,
    ],
)
def test_however_it_is_compressed(compress):
    rows = read_embeddings("a.pth.gz", compress(torch_bytes(TENSORS)), limit=LIMIT)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(rows.row(name, 2), array[2])


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data[:-4] + b"\xff" * 4, lambda data: data[:200]]
)
def test_damaged_compression(change):
    with fails(BadSampleError, "bad_embedding"):
        read_embeddings("a.pth.gz", change(write_pth_gz(ARRAYS)), limit=LIMIT)


# Instructions of pickles: what tensors need is read, nothing is called, and no more is taken than there is.


def doubled(end):
    """Steps to a dictionary and a tuple that holds a tuple twice, that holds a tuple twice, fifty times over."""
    return b"})" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(50)) + end


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (b"cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "it calls 'os system', which could run any code"),
        (b"X\x02\x00\x00\x00id)R.", "it calls 'str'"),
        (b"(X\x02\x00\x00\x00idios\nsystem\n.", "instruction b'i'"),
        (b"(cos\nsystem\nX\x02\x00\x00\x00ido.", "instruction b'o'"),
        (b"cos\nsystem\n)\x81.", r"instruction b'\\x81'"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", r"instruction b'\\x93'"),
        (b"\x82\x01.", r"instruction b'\\x82'"),
        (b"Pnumber\n.", "instruction b'P'"),
        (b"cos\nsystem\n}b.", "instruction b'b'"),
        (b"cos\nsystem\n.", "something other"),
        (b"}X\x01\x00\x00\x00aK\x01s.", "something other"),
        (b"X\x02\x00\x00\x00idQ.", "malformed|something other"),
        (doubled(b")s."), "the file has a tuple, expected the name of a tensor"),
        (b"(" + doubled(b")u."), "the file has a tuple, expected the name of a tensor|malformed"),
        (b")K\x00K\x01s.", "malformed"),
        (b"]", "instruction b'\\]'"),
        (b"h\x07.", "malformed"),
        (b"t.", "malformed"),
        (b".", "malformed"),
        (b"}", "truncated"),
        (b"X\xff\xff\xff\xff.", "truncated"),
        (b"T\xff\xff\xff\xff.", "instruction b'T'"),
    ],
)
def test_everything_else_is_refused(steps, said):
    with pytest.raises(ValueError, match=said):
        described_tensors(b"\x80\x02" + steps)


@pytest.mark.parametrize("place", [2**27, 2**32 - 1])
def test_what_is_remembered_takes_no_memory_for_its_number(place):
    tracemalloc.start()
    try:
        assert described_tensors(b"\x80\x02}r%bj%b." % ((struct.pack("<I", place),) * 2)) == {}
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
