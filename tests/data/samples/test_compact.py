"""The compact record: rounding, single rows, and what becomes of damaged and forged ones."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from mobileclip.data import BadSampleError
from mobileclip.data.samples.compact import MAX_HEADER_BYTES, CompactRecord, round_to_bfloat16, write_record
from mobileclip.data.samples.limits import MAX_DIM
from tests.errors import fails

CONTENT = {"paug.json": {"param_aug": [[[0, 0, 5, 5], [[1, 0.3]]]]}, "syn.json": {"syn_text": ["ein Kater", "a cat"]}}


def arrays(dim: int = 96, **counts: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(dim)
    counts = counts or {"image_emb": 3, "text_emb": 1, "syn_text_emb": 2}
    return {name: rng.standard_normal((count, dim)).astype(np.float32) for name, count in counts.items()}


def read_all(data: bytes) -> dict[str, np.ndarray]:
    record = CompactRecord(data)
    return {
        name: np.array([record.row(name, index) for index in range(count)], np.float32).reshape(count, dim)
        for name, (count, dim) in record.shapes.items()
    }


def record(header: object, rows: list[bytes], *, text: bytes | None = None, table: bytes | None = None) -> bytes:
    """Return a record whose checksums are right, whatever else is wrong."""
    compressed = zlib.compress(json.dumps(header).encode() if text is None else text)
    if table is None:
        table = b"".join(struct.pack("<II", len(row), zlib.crc32(row)) for row in rows)
    start = struct.pack("<4sHII", b"MCRF", 1, len(compressed), len(table) // 8)
    return b"".join((start, struct.pack("<I", zlib.crc32(start + compressed + table)), compressed, table, *rows))


def header(**changes: object) -> dict[str, object]:
    return {"dim": 4, "precision": "int8", "rows": {"image_emb": 1}, "content": {}} | changes


finite = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 4), st.integers(1, 70)), elements=st.floats(-(2.0**120), 2.0**120, width=32)
)


class TestValues:
    @given(hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
    def test_bfloat16_is_rounded_as_torch_rounds(self, values):
        expected = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(round_to_bfloat16(values), expected)

    def test_bfloat16_ties(self):
        bits = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0xBF808000, 0x00008000, 0x00018000], np.uint32)
        assert round_to_bfloat16(bits.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80, 0, 2]

    @given(finite)
    def test_bfloat16_round_trip(self, array):
        back = read_all(write_record({}, {"a": array}, "bfloat16"))["a"]
        expected = torch.from_numpy(array.copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(back.view(np.uint32), expected.view(np.uint32))

    @given(finite)
    def test_int8_error_and_repetition(self, array):
        data = write_record({}, {"a": array}, "int8")
        back = read_all(data)["a"]
        for row, original in zip(back, array, strict=True):
            scale = max(np.abs(original).max() / 127 * (1 + 2.0**-14), 2.0**-100)
            assert np.abs(row.astype(np.float64) - original).max() <= scale / 2 * (1 + 1e-6)
        assert write_record({}, {"a": back}, "int8") == data

    @pytest.mark.parametrize("precision", ["bfloat16", "int8"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
    def test_what_cannot_be_stored_is_refused(self, precision, value):
        array = np.ones((2, 5), np.float32)
        array[1, 3] = value
        with fails(BadSampleError, "not_finite"):
            write_record({}, {"a": array}, precision)


class TestRecord:
    @pytest.mark.parametrize("precision", ["bfloat16", "int8"])
    def test_what_it_says_of_itself(self, precision):
        data = write_record(CONTENT, arrays(), precision)
        read = CompactRecord(data)
        assert read.content == CONTENT
        assert (read.precision, read.dim) == (precision, 96)
        assert read.shapes == {"image_emb": (3, 96), "text_emb": (1, 96), "syn_text_emb": (2, 96)}
        assert write_record(CONTENT, arrays(), precision) == data

    def test_an_array_may_be_empty(self):
        data = write_record({}, {"a": np.ones((2, 3)), "b": np.empty((0, 3)), "c": np.zeros((1, 3))}, "bfloat16")
        found = {name: array.tolist() for name, array in read_all(data).items()}
        assert found == {"a": [[1.0] * 3] * 2, "b": [], "c": [[0.0] * 3]}

    def test_a_row_is_read_without_the_others(self):
        data = write_record({}, arrays(512), "bfloat16")
        whole = CompactRecord(data)
        expected = whole.row("text_emb", 0)
        start, end = (int(whole._ends[place]) for place in (2, 3))
        rows_start = start - int(whole._table["length"][:3].sum())
        zeroed = data[:rows_start] + bytes(start - rows_start) + data[start:end] + bytes(len(data) - end)
        read = CompactRecord(zeroed)
        np.testing.assert_array_equal(read.row("text_emb", 0), expected)
        for name in ("image_emb", "syn_text_emb"):
            with fails(BadSampleError, "1", name):
                read.row(name, 1)

    def test_there_is_no_such_row(self):
        read = CompactRecord(write_record({}, arrays(), "int8"))
        for index in (-1, 3):
            with fails(IndexError, str(index)):
                read.row("image_emb", index)

    def test_sizes(self):
        """The exponents of normal numbers have 2.6 bits; the rest of a bfloat16 is as good as random."""
        for precision, least, most in (("bfloat16", 1.31, 1.36), ("int8", 0.9, 0.98)):
            assert least < len(write_record({}, arrays(1536, image_emb=30), precision)) / 30 / 1536 < most

    def test_incompressible_and_constant_rows(self):
        rng = np.random.default_rng(0)
        bits = rng.integers(0, 2**32, (4, 300), dtype=np.uint32) & 0xBFFFFFFF
        for array in (bits.view(np.float32), np.full((4, 300), 2.5, np.float32), np.zeros((4, 300), np.float32)):
            back = read_all(write_record({}, {"a": array}, "bfloat16"))["a"]
            np.testing.assert_array_equal(back, torch.from_numpy(array.copy()).bfloat16().float().numpy())

    @pytest.mark.parametrize(
        ("given", "content", "said"),
        [
            *(
                ({name: np.ones(shape) for name, shape in shapes.items()}, {}, "")
                for shapes in ({}, {"a": 3}, {"a": (1, 3), "b": (1, 4)}, {"a": (1, 0)}, {"a": (1, MAX_DIM + 1)})
            ),
            ({"a": np.ones((1, 3))}, {"text": "x" * MAX_HEADER_BYTES}, "1048576"),
        ],
    )
    def test_what_no_record_can_hold(self, given, content, said):
        with fails(ValueError, said):
            write_record(content, given, "int8")


DATA = {precision: write_record(CONTENT, arrays(48), precision) for precision in ("bfloat16", "int8")}


class TestDamage:
    """Nothing but the intended error, and never a number that was not written."""

    def assert_refused(self, data: bytes) -> None:
        with pytest.raises(BadSampleError) as caught:
            read_all(data)
        assert caught.value.reason == "bad_record"

    @pytest.mark.parametrize("precision", DATA)
    def test_every_flipped_bit_and_every_cut_is_noticed(self, precision):
        data = DATA[precision]
        for place in range(len(data)):
            self.assert_refused(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
            self.assert_refused(data[:place])
        self.assert_refused(data + b"\0")

    @given(st.data())
    @settings(max_examples=200)
    def test_forged_with_right_checksums(self, data):
        """Either it is refused, or it gives what a writer could have written: rows of finite numbers."""
        dim = data.draw(st.sampled_from([1, 4, 9, 64, MAX_DIM, MAX_DIM + 1, 0, -1, True, None, 2.0, "4"]))
        precision = data.draw(st.sampled_from(["int8", "bfloat16", "float32", None]))
        any_rows = st.dictionaries(st.text(max_size=3), st.integers(-1, 3), max_size=3)
        rows = data.draw(any_rows | st.sampled_from([{"a": True}, {"a": 1 << 40}, {"a": None}, [1], None]))
        content = data.draw(st.sampled_from([{}, [], None]))
        stored = data.draw(st.lists(st.binary(max_size=80), max_size=4))
        forged = record({"dim": dim, "precision": precision, "rows": rows, "content": content}, stored)
        with contextlib.suppress(BadSampleError):
            assert all(np.isfinite(array).all() for array in read_all(forged).values())

    @pytest.mark.parametrize(
        ("forged", "message"),
        [
            (record(None, [], text=b"{"), "malformed"),
            (record(None, [], text=b"\xff\xfe\xff"), "malformed"),
            (record(None, [], text=b"[" * 100_000), "malformed"),
            (record([], []), "not a JSON object"),
            (record(header(dim=0), [bytes(8)]), "the dim is 0"),
            (record(header(dim=True), [bytes(8)]), "the dim is True"),
            (record(header(precision="float64"), [bytes(8)]), "the precision is 'float64'"),
            (record(header(content=[]), [bytes(8)]), "the content"),
            (record(header(rows={"a": -1}), [bytes(8)]), "numbers of rows"),
            (record(header(rows={"a": 1 << 62}), [bytes(8)]), "the table has 1"),
            (record(header(), [b"\0\0\x80\x3f" + bytes(5)]), "malformed|does not hold"),
            (record(header(), [bytes(8)]), "the scale of a row is 0"),
            (record(header(), [struct.pack("<f", np.nan) + bytes(4)]), "the scale of a row is nan"),
            (record(header(), [struct.pack("<f", 3e38) + bytes(4)]), "the scale of a row is 3"),
            (record(header(dim=64), [bytes(4)]), "too few for 64 numbers"),
            (record(header(dim=64), [struct.pack("<f", 1) + zlib.compress(bytes(64))]), "malformed|does not hold"),
            (record(header(dim=2, precision="bfloat16"), [bytes(2) + b"\xff\xff"]), "not_finite"),
            (record(header(), [], table=struct.pack("<II", 1 << 31, 0)), "the table declares"),
            (struct.pack("<4sHIII", b"MCRF", 2, 0, 0, 0), "version 2, but this library reads version 1"),
            (struct.pack("<4sHIII", b"MCRF", 1, 0, 1 << 31, 0), "header and table need"),
            (struct.pack("<4sHIII", b"MCRF", 1, 1 << 31, 0, 0), "header and table need"),
        ],
    )
    def test_the_reason_is_said(self, forged, message):
        with pytest.raises(BadSampleError, match=message) as caught:
            read_all(forged)
        assert caught.value.reason == ("not_finite" if message == "not_finite" else "bad_record")

    def test_a_bomb_does_not_go_off(self):
        inflated = bytes(1 << 25)
        stream = zlib.compressobj(9, zlib.DEFLATED, -15)
        row = struct.pack("<f", 1) + stream.compress(inflated) + stream.flush()
        bombs = [
            record(None, [], text=b'{"a": "' + inflated + b'"}'),
            record(header(dim=1536), [row]),
            record(header(dim=MAX_DIM, rows={"a": 50_000}), [b""] * 50_000),
        ]
        del inflated
        tracemalloc.start()
        try:
            for bomb in bombs:
                self.assert_refused(bomb)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 << 20
