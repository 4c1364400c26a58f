"""Stored embeddings from strangers: npz, torch files and compact records that lie, explode or are something else."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobileclip.data import Skip, SkipReport, read_reinforced_samples
from mobileclip.data.samples.members import parse_stored_sample, sample_members
from mobileclip.data.shards.files import parse, read_shard
from tests.data.made_samples import make_sample, write_raw
from tests.trials.harness import Case, Outcome, PickledCanary

SAMPLES = {layout: sample_members(make_sample(1), layout) for layout in ("npz", "pth.gz", "compact")}
ARRAYS = {"image_emb": np.ones((3, 6), np.float32), "text_emb": np.ones((3, 6), np.float32)}


def read(name: str, content: bytes, folder: Path, *, right: bool | None = None) -> Outcome:
    """Put a member into a sample between two good ones, and read the shard as training and as verification do."""
    layout = {"npz": "npz", "pth.gz": "pth.gz", "reinforced": "compact"}[name]
    bad = {**SAMPLES[layout], name: content}
    path = write_raw(folder / "a.tar", {"a": SAMPLES[layout], "bad": bad, "z": SAMPLES[layout]})
    report = SkipReport(log=False)
    samples = {one.key: one for one in read_reinforced_samples(path, report)}
    assert {"a", "z"} <= samples.keys()
    assert report.num_skipped == ("bad" not in samples)
    skips: list[Skip] = []
    for raw in read_shard(path, skips.append):
        stored = parse(raw, parse_stored_sample, skips.append)
        if stored is not None:
            with contextlib.suppress(ValueError):
                assert np.isfinite(stored.row("image_emb", 2)).all()
    if right is not None:
        assert ("bad" in samples) == right, report
    if "bad" in samples:
        assert samples["bad"].image_emb.shape == (3, 6)
        assert np.isfinite(samples["bad"].image_emb).all()
        return "accepted"
    return "skipped"


def npz(arrays: dict[str, Any], *, compressed: bool = True, **options: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays, **options)
    return stream.getvalue()


def npy(descr: str, shape: str, *, fortran: str = "False", content: bytes = bytes(72), more: str = "") -> bytes:
    """Return a file of numpy's with the header that is given."""
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, {more}}}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_array(content: bytes, **others: bytes) -> bytes:
    """Return an npz whose image_emb is the given file."""
    good = npy("'<f4'", "(3, 6)")
    return zipped({"image_emb.npy": content, "text_emb.npy": good, **others})


def patched(data: bytes, place: int, value: bytes, *, of: bytes = b"PK\x01\x02") -> bytes:
    """Return a zip whose first entry in the directory says something else."""
    start = data.index(of) + place
    return data[:start] + value + data[start + len(value) :]


def overlapping() -> bytes:
    """Return a zip in which all entries of the directory are one file, as the best bombs are made."""
    data = bytearray(zipped({"image_emb.npy": npy("'<f4'", "(3, 6)"), "text_emb.npy": npy("'<f4'", "(3, 6)")}))
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    data[second + 42 : second + 46] = bytes(4)
    return bytes(data)


def npz_cases() -> Iterator[tuple[str, bytes, bool | None]]:
    """Yield name, content, and whether it must be read."""
    good = npz(ARRAYS)
    yield "as it should be", good, True
    yield "in the order of columns", npz({name: np.asfortranarray(array) for name, array in ARRAYS.items()}), True
    yield "not compressed", npz(ARRAYS, compressed=False), True
    yield "of another byte order", npz({name: array.astype(">f4") for name, array in ARRAYS.items()}), True
    for name, shape in {
        "16 TB": "(4194304, 1048576)",
        "2^63 rows": "(9223372036854775807, 6)",
        "-3 rows": "(-3, 6)",
        "5,000 digits": f"({'9' * 5000}, 6)",
        "a million dims": "(" + "1, " * 20 + ")",
        "rows of another number": "(4, 6)",
        "no rows": "(0, 6)",
        "a fraction": "(3.0, 6)",
        "a call": "(__import__('os').system('id'), 6)",
        "true": "(True, 6)",
    }.items():
        yield f"a shape of {name}", with_array(npy("'<f4'", shape)), False
    yield "3.4 GB in the order of columns", with_array(npy("'<f4'", "(29155, 29155)", fortran="True")), False
    for name, descr in {
        "objects": "'|O'",
        "text": "'<U6'",
        "structures": "[('a', '<f4')]",
        "complex numbers": "'<c8'",
        "times": "'<M8[s]'",
        "2^31 bytes": "'|V2147483648'",
        "nothing": "''",
    }.items():
        yield f"numbers that are {name}", with_array(npy(descr, "(3, 6)")), False
    yield (
        "a pickle of objects",
        npz({**ARRAYS, "image_emb": np.array([[PickledCanary()] * 6] * 3, dtype=object)}),
        False,
    )
    yield "a header of 60 KB", with_array(b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"(" * 60000), False
    yield "a header of 1 GiB", with_array(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**30) + b"("), False
    yield "a header of deep brackets", with_array(npy("'<f4'", "(" * 2000 + ")" * 2000)), False
    yield "a key twice in the header", with_array(npy("'<f4'", "(3, 6)", more="'shape': (9, 9)")), False
    yield "NaN", npz({**ARRAYS, "image_emb": np.full((3, 6), np.nan, np.float32)}), False
    yield "infinity", npz({**ARRAYS, "text_emb": np.full((3, 6), np.inf, np.float32)}), False
    yield "float64 beyond float32", npz({**ARRAYS, "image_emb": np.full((3, 6), 1e300)}), False
    yield "a bomb of 300 MiB", with_array(npy("'<f4'", "(13107200, 6)", content=bytes(300 * 2**20))), False
    yield (
        "a bomb beside what is asked for",
        with_array(npy("'<f4'", "(3, 6)"), **{"more.npy": bytes(300 * 2**20)}),
        False,
    )
    yield "a size that lies, less", patched(good, 24, struct.pack("<I", 100)), False
    yield "a size that lies, 4 GiB", patched(good, 24, b"\xff" * 4), False
    yield "a stored size of 4 GiB", patched(good, 20, b"\xff" * 4), False
    yield "a place of 4 GiB", patched(good, 42, b"\xfe\xff\xff\xff"), False
    yield "an entry at the directory", patched(good, 42, struct.pack("<I", good.index(b"PK\x01\x02"))), False
    yield "a checksum that lies", patched(good, 16, b"\x01\x02\x03\x04"), False
    yield "an unknown method", patched(good, 10, b"\x63\x00"), False
    yield "encryption", patched(good, 8, b"\x01\x00"), False
    yield "entries that share bytes", overlapping(), False
    yield "65,535 entries that are not there", patched(good, 10, b"\xff\xff", of=b"PK\x05\x06"), False
    yield "20,000 empty files", zipped({f"{number}": b"" for number in range(20_000)}), False
    yield "bzip2 in the zip", zipped({"image_emb.npy": bytes(2**20)}, zipfile.ZIP_BZIP2), False
    yield "lzma in the zip", zipped({"image_emb.npy": bytes(2**20)}, zipfile.ZIP_LZMA), False
    yield "a name of no UTF-8", good.replace(b"image_emb", b"\xff\xfe_e_emb"), False
    yield "one name twice", good.replace(b"text_emb", b"text_em2").replace(b"image_emb", b"text_emb2"), False
    yield "nothing", b"", False
    yield "half of it", good[: len(good) // 2], False
    yield "a zip of nothing", zipped({}), False


def saved(value: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def torch_file(description: bytes) -> bytes:
    """Return a torch file with another pickle."""
    return zipped({"a/data.pkl": description, "a/byteorder": b"little", "a/data/0": bytes(72)}, zipfile.ZIP_STORED)


TENSORS = {name: torch.ones(3, 6) for name in ARRAYS}


def doubled(end: bytes) -> bytes:
    """Return a pickle of a tuple that holds a tuple twice, that holds a tuple twice, fifty times over."""
    steps = b"".join(b"q%ch%c\x86" % (number, number) for number in range(50))
    return b"\x80\x02})" + steps + end


def torch_cases() -> Iterator[tuple[str, bytes, bool | None]]:
    """Yield name, content before gzip, and whether it must be read."""
    yield "as it should be", gzip.compress(saved(TENSORS)), True
    yield "not compressed", saved(TENSORS), True
    yield "compressed twice", gzip.compress(gzip.compress(saved(TENSORS))), True
    yield "compressed three times", gzip.compress(gzip.compress(gzip.compress(saved(TENSORS)))), False
    yield "in two parts", gzip.compress(saved(TENSORS)[:500]) + gzip.compress(saved(TENSORS)[500:]), True
    bomb = gzip.compress(bytes(2**30), 9)
    yield "a bomb of 1 GiB", bomb, False
    yield "a bomb compressed twice", gzip.compress(bomb), False
    yield "a bomb whose end says 10 bytes", bomb[:-4] + struct.pack("<I", 10), False
    yield "30,000 empty parts", gzip.compress(b"") * 30_000, False
    yield "a pickle that runs code", gzip.compress(pickle.dumps({"image_emb": PickledCanary()})), False
    yield "code in a torch file", saved({"image_emb": PickledCanary()}), False
    yield "code in the old format", saved({"image_emb": PickledCanary()}, _use_new_zipfile_serialization=False), False
    yield "the old format", saved(TENSORS, _use_new_zipfile_serialization=False), None
    yield "another protocol", saved(TENSORS, pickle_protocol=4), None
    yield "3.6 GB of one number", saved({**TENSORS, "image_emb": torch.zeros(1).expand(30_000, 30_000)}), False
    yield "one number, as often as there are", saved({**TENSORS, "image_emb": torch.ones(1).expand(3, 6)}), True
    yield "sparse", saved({**TENSORS, "image_emb": torch.eye(3, 6).to_sparse()}), False
    yield "whole numbers", saved({**TENSORS, "image_emb": torch.ones(3, 6, dtype=torch.int64)}), False
    yield "truth values", saved({**TENSORS, "image_emb": torch.ones(3, 6, dtype=torch.bool)}), False
    yield "complex numbers", saved({**TENSORS, "image_emb": torch.ones(3, 6, dtype=torch.complex64)}), False
    yield "float8", saved({**TENSORS, "image_emb": torch.ones(3, 6).to(torch.float8_e4m3fn)}), False
    yield "no tensors", saved({**TENSORS, "image_emb": [1, 2]}), False
    yield "a list", saved([1, 2]), False
    yield "names that are numbers", saved({1: torch.ones(3, 6)}), False
    yield "NaN", saved({**TENSORS, "image_emb": torch.full((3, 6), torch.nan)}), False
    yield "other shapes", saved({**TENSORS, "image_emb": torch.ones(6, 3)}), False
    yield "a deflated tensor", zipped({"a/data.pkl": b"", "a/byteorder": b"little", "a/data/0": bytes(2**20)}), False
    yield "ten million brackets", torch_file(b"\x80\x02" + b"]" * 10**7 + b"."), False
    yield "ten thousand tuples in each other", torch_file(b"\x80\x02)" + b"\x85" * 10_000 + b"."), False
    yield "a name that is 2^50 tuples", torch_file(doubled(b")s.")), False
    yield "a file that is 2^50 tuples", torch_file(doubled(b"q\xff0X\x07\x00\x00\x00storageh\xff\x86Q.")), False
    yield "a function that is 2^50 tuples", torch_file(doubled(b")R.")), False
    yield (
        "arguments that are 2^50 tuples",
        torch_file(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)" + doubled(b"")[4:] + b"R."),
        False,
    )
    yield "a memory of 4 billion", torch_file(b"\x80\x02}r\xff\xff\xff\xff."), False
    yield "a text of 4 GiB", torch_file(b"\x80\x02X\xff\xff\xff\xff."), False
    yield "an empty stack", torch_file(b"\x80\x02."), False
    yield "no end", torch_file(b"\x80\x02}"), False
    yield "tensor beyond its storage", saved(TENSORS).replace(b"K\x03K\x06\x86", b"K\x09K\x06\x86"), False


def record(header: Any, rows: list[bytes], *, num_rows: int | None = None, version: int = 1) -> bytes:
    """Return a compact record with whatever it is given and the right checksums."""
    compressed = zlib.compress(header if isinstance(header, bytes) else json.dumps(header).encode())
    preamble = struct.pack("<4sHII", b"MCRF", version, len(compressed), len(rows) if num_rows is None else num_rows)
    table = b"".join(struct.pack("<II", len(row), zlib.crc32(row)) for row in rows)
    checksum = struct.pack("<I", zlib.crc32(preamble + compressed + table))
    return preamble + checksum + compressed + table + b"".join(rows)


def compact_cases() -> Iterator[tuple[str, bytes, bool | None]]:
    """Yield name, content, and whether it must be read."""
    good = SAMPLES["compact"]["reinforced"]
    content = {"paug.json": {"param_aug": [[[0, 0, 9, 9], []]] * 3}, "syn.json": {}}
    head = {"dim": 6, "precision": "int8", "rows": {"image_emb": 3, "text_emb": 1}, "content": content}
    rows = [struct.pack("<f", 0.01) + bytes(range(1, 7))] * 4
    yield "as it should be", good, True
    yield "written by hand", record(head, rows), True
    yield "cut", good[:-1], False
    yield "4 billion rows", record(head, rows, num_rows=2**32 - 1), False
    yield "another version", record(head, rows, version=2), False
    for name, change in {
        "a dim of 2^40": {"dim": 2**40},
        "a dim of -6": {"dim": -6},
        "a dim of true": {"dim": True},
        "a dim of '6'": {"dim": "6"},
        "a precision of none": {"precision": None},
        "rows of -3": {"rows": {"image_emb": -3, "text_emb": 7}},
        "rows of 10^30": {"rows": {"image_emb": 10**30}},
        "rows of a list": {"rows": [3, 1]},
        "rows of 3.0": {"rows": {"image_emb": 3.0, "text_emb": 1}},
        "content of a list": {"content": []},
        "no augmentations": {"content": {"syn.json": {}}},
        "augmentations of text": {"content": {"paug.json": {"param_aug": "x"}, "syn.json": {}}},
    }.items():
        yield name, record({**head, **change}, rows), False
    yield "a header that is a bomb", record(b'{"a": "' + bytes(2**27) + b'"}', rows), False
    yield "a header of deep brackets", record(b"[" * 10**5, rows), False
    yield "a header of no UTF-8", record(b"\xff\xfe{}", rows), False
    yield "a header with a name twice", record(json.dumps(head).encode()[:-1] + b', "dim": 7}', rows), False
    yield "a row that is a bomb", record(head, [struct.pack("<f", 1) + zlib.compress(bytes(2**26))[2:-4]] * 4), False
    yield "a scale of NaN", record(head, [struct.pack("<f", np.nan) + bytes(6)] * 4), False
    yield "a scale of infinity", record(head, [struct.pack("<f", np.inf) + bytes(6)] * 4), False


def mended(change: Callable[[bytes], bytes], folder: Path) -> Outcome:
    """A sample whose embeddings are whole and whose arrays are 2^20 rows, as its JSON says too."""
    count = 2**17
    members = {
        **SAMPLES["npz"],
        "paug.json": json.dumps({"param_aug": [[[0, 0, 9, 9], []]] * count}).encode(),
        "npz": change(npz({"image_emb": np.ones((count, 600), np.float16), "text_emb": np.ones((3, 600), np.float16)})),
    }
    path = write_raw(folder / "a.tar", {"a": SAMPLES["npz"], "bad": members})
    report = SkipReport(log=False)
    assert [one.key for one in read_reinforced_samples(path, report)] == ["a"]
    assert report.counts == {"too_large": 1}
    return "skipped"


def cases() -> Iterator[Case]:
    """Yield what is tried."""
    for kind, member, inputs in (
        ("npz", "npz", npz_cases()),
        ("torch", "pth.gz", torch_cases()),
        ("compact", "reinforced", compact_cases()),
    ):
        for name, content, right in inputs:
            yield Case(name=f"{kind}: {name}", attempt=partial(read, member, content, right=right))
    yield Case(name="npz: 131,072 augmentations, as its JSON says", attempt=partial(mended, bytes), seconds=30)
