"""Pickles of strangers: what tensors need is read, nothing is called, and no more is taken than there is."""

import pickle
import struct
import tracemalloc

import pytest

from mobileclip.data.samples import Global, unpickled
from mobileclip.tensor_files import CheckpointError


def described(steps):
    return unpickled(b"\x80\x02" + steps)[0]


def doubled(end):
    """Steps to a dictionary and a tuple that holds a tuple twice, that holds a tuple twice, fifty times over."""
    return b"})" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(50)) + end


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -5, 2**14, 2**40, -(2**70), 0.5, None, True], "b": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))},
        "ä",
        {},
    ],
)
def test_what_is_made_of_plain_parts_comes_back(value):
    data = pickle.dumps(value, 2)
    assert unpickled(b"before" + data + b"behind", 6) == (value, 6 + len(data))


def test_a_name_is_no_more_than_a_name():
    assert described(b"cos\nsystem\n.") == Global("os system")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (b"cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "it calls 'os system', which could run anything"),
        (b"X\x02\x00\x00\x00id)R.", "it calls 'str'"),
        (b"(X\x02\x00\x00\x00idios\nsystem\n.", "instruction b'i'"),
        (b"(cos\nsystem\nX\x02\x00\x00\x00ido.", "instruction b'o'"),
        (b"cos\nsystem\n)\x81.", r"instruction b'\\x81'"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", r"instruction b'\\x93'"),
        (b"\x82\x01.", r"instruction b'\\x82'"),
        (b"Pnumber\n.", "instruction b'P'"),
        (b"cos\nsystem\n}b.", "it holds an object that is no tensor"),
        (b"X\x02\x00\x00\x00idQ.", "malformed|something else"),
        (doubled(b")s."), "it has a tuple where the name of a tensor belongs"),
        (b"(" + doubled(b")u."), "it has a tuple where the name of a tensor belongs|malformed"),
        (b"]K\x00K\x01s.", "malformed"),
        (b"h\x07.", "malformed"),
        (b"t.", "malformed"),
        (b".", "malformed"),
        (b"}", "cut off"),
        (b"X\xff\xff\xff\xff.", "cut off"),
        (b"T\xff\xff\xff\xff.", "malformed"),
        (b"]" * 300_001 + b".", "more than 300,000 instructions"),
    ],
)
def test_everything_else_is_refused(steps, said):
    with pytest.raises(CheckpointError, match=said):
        described(steps)


@pytest.mark.parametrize("place", [2**27, 2**32 - 1])
def test_what_is_remembered_takes_no_memory_for_its_number(place):
    tracemalloc.start()
    try:
        assert described(b"}r" + struct.pack("<I", place) + b"j" + struct.pack("<I", place) + b".") == {}
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
