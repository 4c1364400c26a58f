"""Files from strangers: cut off, with changed bytes, or made to do harm. Each is read whole, refused or skipped.

Those of one kind are read one after another in a process whose memory is bounded, which is killed if one takes too
long, and in which nothing may start a program, open a connection, or end in an error that is not documented.
"""

import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import select
import signal
import struct
import sys
import traceback
import warnings
import zipfile
import zlib
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mobileclip.data import (
    AugmentationParams,
    BadSampleError,
    ImageError,
    SkipReport,
    Tokenizer,
    crop_augmentation,
    load_image,
    read_reinforced_samples,
    read_samples,
    read_text_input,
    write_shard,
)
from mobileclip.data.loading.replay import SourceImage
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.samples.members import sample_members
from mobileclip.datasets import JsonLinesSource, ShardSource, TableSource
from mobileclip.encoders import load_model, save_model
from mobileclip.inputs import DECODES
from tests.build.canary import CANARY, CANARY_EVENT, PickledCanary
from tests.build.image_files import encoded, noise, raw, turned_notes
from tests.build.tokenizer_parts import replace, several
from tests.build.torch_files import torch_bytes
from tests.data.made_samples import make_sample, write_raw
from tests.data.tokenizer_files import KINDS as TOKENIZERS
from tests.encoders.small import SMALL, randomised

JPEG = encoded(noise(8, 6), "JPEG")
LAYOUTS = {"npz": "npz", "pth.gz": "pth.gz", "reinforced": "compact"}
STORED = {member: sample_members(make_sample(1), layout) for member, layout in LAYOUTS.items()}
# Small, so that what is too large stays quick to make.
LIMITS = SampleLimits(member_bytes=2**20, sample_bytes=2**21, num_members=20, name_bytes=300, text_bytes=2**16)
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded on Linux alone")
SECONDS, BYTES = 20.0, 3 * 2**29
# Whatever is wrong with an image's bytes.
REASONS = {"not_an_image", "truncated", "corrupt", "too_large", "too_many_scans", "unsupported_mode"}


# Readers: each takes a folder and the bytes of a file, uses it as a user would, and returns whether all of it was read.


def refuses(use, *kinds):
    """Whether what uses a file raises an error of a kind, whose message a person can read."""
    try:
        use()
    except kinds as error:
        told = error
    else:
        return False
    assert 0 < len(str(told)) <= 2000, str(told)
    assert getattr(told, "reason", "corrupt").removeprefix("image_") in REASONS
    return True


def counted(report):
    """Whether nothing was skipped; what was is told in words that can be printed."""
    for skip in (one for skips in report.named.values() for one in skips):
        assert (skip.key + skip.detail).isprintable()
        assert len(skip.detail) < 1500
    return not report.counts


def image(folder, data):
    """As a picture and as a sample."""
    (folder / "photo.jpg").write_bytes(data)

    def load():
        picture = load_image(folder / "photo.jpg")
        assert np.asarray(picture).shape == (picture.height, picture.width, 3)

    def replay(decode):
        source = SourceImage(data)
        params = AugmentationParams(crop=(0, 0, min(source.size[1], 64), min(source.size[0], 64)))
        (pixels,) = source.replay([crop_augmentation(16)], params, decode)
        assert pixels.shape == (16, 16, 3)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ways = (load, *(partial(replay, decode) for decode in DECODES))
        refused = [refuses(way, ImageError, BadSampleError) for way in ways]
    return not any(refused)


def tar(folder, data):
    path = folder / "a.tar"
    path.write_bytes(data)
    report = SkipReport(log=False)
    found = [one.key for one in read_samples(path, report, LIMITS)]
    for unit in ShardSource(shards=path, sample_limits=LIMITS).units():
        assert [one.key for one in unit.read(SkipReport(log=False))] == list(dict.fromkeys(found))
    return counted(report)


def member(layout, name, folder, data):
    """A stored member of a sample between two good ones."""
    good = STORED[layout]
    path = write_raw(folder / "a.tar", {"a": good, "bad": {**good, name: data}, "z": good})
    report = SkipReport(log=False)
    samples = {one.key: one for one in read_reinforced_samples(path, report)}
    assert {"a", "z"} <= samples.keys()
    assert report.num_skipped == ("bad" not in samples)
    assert all(np.isfinite(one.image_emb).all() for one in samples.values())
    return counted(report)


def checkpoint(folder, data):
    (folder / "m.pt").write_bytes(data)

    def load():
        state = load_model(folder / "m.pt", SMALL).state_dict()
        assert all(torch.isfinite(one).all() for one in state.values())

    return not refuses(load, ValueError)


def tokenizer(folder, data):
    (folder / "tokenizer.json").write_bytes(data)

    def use():
        made = Tokenizer(read_text_input(folder / "tokenizer.json", context_length=16))
        rows = made(["a photo of a cat", "", "a" * 100_000, "\u0130\ufdfa\u5b57" * 10_000, "\ud800"])
        assert (rows == made.text_input.end_id).any(1).all()
        assert int(rows.max()) < made.text_input.vocab_size

    return not refuses(use, ValueError, OSError)


def table(suffix, folder, data):
    """Pairs of a table or a list; whatever it gives is written and read again."""
    (folder / "a.jpg").write_bytes(JPEG)
    path = folder / f"a.{suffix}"
    path.write_bytes(data)
    source = JsonLinesSource(path=path) if suffix == "jsonl" else TableSource(tables=path)
    report, samples = SkipReport(log=False), {}

    def read():
        for unit in source.units():
            unit.fingerprint()
            samples.update((sample.key, sample) for sample in unit.read(report))

    if refuses(read, ValueError, OSError):
        return False
    if samples:
        write_shard(folder / "b.tar", samples.values())
        assert len(list(read_samples(folder / "b.tar", SkipReport(log=False)))) == len(samples)
    return counted(report)


# Files as they should be.


@cache
def checkpoints():
    """The small model as a file of each format."""
    model = randomised(SMALL)
    with TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "m.safetensors")
        save_model(model, Path(folder) / "m.pt", layout="official")
        state = torch.load(Path(folder) / "m.pt", weights_only=True)
        files = [(Path(folder) / name).read_bytes() for name in ("m.safetensors", "m.pt")]
    stream = torch_bytes(state, archive=False)
    return {"safetensors": files[0], "archive": files[1], "stream": stream}


def shard(compress=bytes):
    with TemporaryDirectory() as folder:
        pairs = (("a.jpg", JPEG), ("a.txt", b"a photo"), ("b.jpg", JPEG), ("b.txt", b"another"))
        return compress(Path(write_raw(Path(folder) / "a.tar", pairs)).read_bytes())


def parquet():
    stream = io.BytesIO()
    rows = [{"path": "a.jpg", "caption": "a photo", "key": f"k{number}"} for number in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=3, compression="none")
    return stream.getvalue()


CSV = b"\n".join([b"path,caption,key", *(f"a.jpg,a photo,k{number}".encode() for number in range(6))])
IMAGES = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF")
PICTURE = noise(80, 60)
SIXTEEN_BITS = Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80))
# Every kind of file: what reads it, and one as it should be.
SOUND = {
    **{kind: (image, partial(encoded, PICTURE, kind)) for kind in IMAGES},
    "progressive": (image, partial(encoded, PICTURE, "JPEG", progressive=True, exif=turned_notes(6))),
    "palette": (image, partial(encoded, PICTURE.convert("P"), "PNG")),
    "16 bits": (image, partial(encoded, SIXTEEN_BITS, "PNG")),
    "DNG": (image, lambda: raw(encoded(noise(160, 120), "JPEG"), preview_size=(160, 120))),
    "tar": (tar, shard),
    "tar.gz": (tar, partial(shard, gzip.compress)),
    "tar.xz": (tar, partial(shard, lzma.compress)),
    **{name: (partial(member, name, name), partial(STORED[name].get, name)) for name in LAYOUTS},
    "paug.json": (partial(member, "npz", "paug.json"), lambda: STORED["npz"]["paug.json"]),
    **{kind: (checkpoint, lambda kind=kind: checkpoints()[kind]) for kind in ("safetensors", "archive", "stream")},
    **{kind: (tokenizer, lambda kind=kind: TOKENIZERS[kind]().to_str().encode()) for kind in TOKENIZERS},
    "parquet": (partial(table, "parquet"), parquet),
    "csv": (partial(table, "csv"), lambda: CSV),
    "jsonl": (partial(table, "jsonl"), lambda: b"\n".join([b'{"image": "a.jpg", "text": "a photo"}'] * 6)),
}


def changed(data, seed):
    """A file with one to three changes: an end that is missing, other bits or bytes, a part twice or not at all."""
    draw = random.Random(seed)
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        # What says how the rest is read lies at the ends.
        place = draw.choice([draw.randrange(len(data) + 1), draw.randrange(min(600, len(data) + 1))])
        place = draw.choice([place, place, len(data) - place])
        size = draw.choice([1, 4, 8, 100, 1000])
        how = draw.randrange(6)
        if how == 0:
            del data[place:]
        elif how == 1 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif how == 2:
            data[place : place + size] = draw.choice([bytes(size), b"\xff" * size, draw.randbytes(size)])
        elif how == 3:
            data[place:place] = data[place : place + size]
        elif how == 4:
            del data[place : place + size]
        else:
            data[place : place + 8] = struct.pack(draw.choice("<>") + "q", draw.choice([-1, 0, 2**31, 2**40, 2**62]))
    return bytes(data)


# Files made to do harm, none of which may be read whole.


def zipped(files, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npz(shape, *, kind="'<f4'", content=bytes(72), **others):
    """A stored sample whose array has a header of its own."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content
    return zipped({"image_emb.npy": array, "text_emb.npy": array, **others})


def pickled(description):
    """An archive such as torch writes, with a pickle of our own."""
    return zipped({"m/data.pkl": description, "m/byteorder": b"little", "m/data/0": bytes(72)}, zipfile.ZIP_STORED)


def tensor(arguments, storage=b"ctorch\nFloatStorage\n"):
    """A pickle of one tensor with arguments of our own."""
    identity = b"(X\x07\x00\x00\x00storage" + storage + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + arguments + b"\x89ccollections\nOrderedDict\n)RtR"
    return pickled(b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s.")


def twice(end):
    """A pickle of a tuple that holds a tuple twice, that holds a tuple twice, fifty times over."""
    return pickled(b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(50)) + end)


TEXT = struct.pack("<I", len(CANARY)) + CANARY.encode()
PICKLES = {
    "code": lambda: torch_bytes({"image_emb": PickledCanary()}),
    "code in a stream": lambda: torch_bytes({"image_emb": PickledCanary()}, archive=False),
    "code alone": lambda: pickle.dumps({"image_emb": PickledCanary()}),
    "eval": lambda: pickled(b"\x80\x02c__builtin__\neval\nX" + TEXT + b"\x85R."),
    "os.system": lambda: pickled(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R."),
    "brackets": lambda: pickled(b"\x80\x02" + b"]" * 10**7 + b"."),
    "tuples in tuples": lambda: pickled(b"\x80\x02)" + b"\x85" * 500_000 + b"."),
    "a name of 2^50 tuples": lambda: twice(b")s."),
    "a storage of 2^50 tuples": lambda: twice(b"q\xff0X\x07\x00\x00\x00storageh\xff\x86Q."),
    "a function of 2^50 tuples": lambda: twice(b")R."),
    "a place of four billion": lambda: pickled(b"\x80\x02}r\xff\xff\xff\xff."),
    "a text of 4 GiB": lambda: pickled(b"\x80\x02X\xff\xff\xff\xff."),
    "a number of 2 GiB": lambda: pickled(b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "an empty stack": lambda: pickled(b"\x80\x02."),
    "a storage of os": lambda: tensor(b"K\x00K\x10\x85K\x01\x85", storage=b"cos\nFloatStorage\n"),
    "an offset below zero": lambda: tensor(b"J\xff\xff\xff\xffK\x10\x85K\x01\x85"),
    "a shape of 2^62": lambda: tensor(b"K\x00\x8a\x08" + struct.pack("<q", 1 << 61) + b"\x85K\x01\x85"),
    "steps past the end": lambda: tensor(b"K\x00K\x10\x85K\x63\x85"),
    "more than there is": lambda: tensor(b"K\x00M\x00\x10\x85K\x01\x85"),
    "3.6 GB of one number": lambda: torch_bytes({"image_emb": torch.zeros(1).expand(30_000, 30_000)}),
    "deflated": lambda: zipped({"a/data.pkl": bytes(2**27), "a/data/0": bytes(2**20)}),
}


@cache
def bomb():
    """A gibibyte of zeros, compressed."""
    return gzip.compress(bytes(2**30), 1)


def with_spec(old, value):
    """The small checkpoint, whose spec has another value behind a key."""
    data = checkpoints()["safetensors"]
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    spec = header["__metadata__"]["mobileclip.spec"]
    assert old in spec
    header["__metadata__"]["mobileclip.spec"] = spec.replace(old, f"{old.partition(': ')[0]}: {value}", 1)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[end:]


SPECS = {
    **{f"depth {value[:20]}": ('"depth": 2', value) for value in ("1" + "0" * 9, "4096", "-2", "9" * 10**6)},
    **{f"width 2^{power}": ('"width": 32', 2**power) for power in (40, 62)},
    **{f"dim {value}": ('"dim": 16', value) for value in (2**40, 65536)},
    "vocabulary of 2^40": ('"vocab_size": 600', 2**40),
    "context of 2^40": ('"context_length": 12', 2**40),
    "image of 2^40 pixels": ('"size": 64', 2**40),
    "kernel of a billion": ('"kernel_size": 3', 1_000_000_001),
    "a thousand stages": ('"stages": [', "[" + '{"dim": 16, "depth": 1},' * 1000),
    "brackets": ('"depth": 2', "[" * 100_000 + "]" * 100_000),
}
SHAPES = (
    *("(4194304, 1048576)", "(9223372036854775807, 6)", "(-3, 6)", "(0, 6)", "(True, 6)"),
    *(f"({'9' * 5000}, 6)", "(__import__('os').system('id'), 6)", "(" * 2000 + ")" * 2000),
)


def header(size, name=b"bad.jpg", kind=b"0"):
    """A header of a tar whose size is whatever bytes are given."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157] = b"0000644\0", size.ljust(12, b"\0")[:12], kind
    block[257:265], block[148:156] = b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def behind(*parts):
    """A shard of two good samples, and what comes behind them."""
    return lambda: shard().rstrip(b"\0").ljust(4096, b"\0")[:4096] + b"".join(parts) + bytes(1024)


def size_of(number):
    """The size of a member of a shard, as those that are too large for octal digits are written."""
    return b"\x80" + number.to_bytes(11, "big")


SIZES = [*map(size_of, (60 * 2**30, 2**64, 2**87))]
SIZES += [b"7" * 12, b"\xff" * 12, b"-0000000512", b"000_0000512", b"00000000009", b"many"]


def with_part(**parts):
    """A tokenizer with other parts."""
    return lambda: json.dumps({**json.loads(TOKENIZERS["bert"]().to_str()), **parts}).encode()


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PATHS = ("/etc/passwd", "file:///etc/passwd", "../a.jpg", "http://169.254.169.254/x", "pipe:cat x")
HOSTILE = {
    "safetensors": PICKLES
    | {name: partial(with_spec, *change) for name, change in SPECS.items()}
    | {
        "ten million brackets": lambda: b"]" * 10**7,
        "a header of 2^63 bytes": lambda: struct.pack("<Q", 2**63) + b"{" + bytes(100),
        "a header of 99 million bytes": lambda: struct.pack("<Q", 99_000_000) + b"{" + bytes(99_000_000),
        "a header of brackets": lambda: struct.pack("<Q", 10**6) + b'{"a":' * 200_000,
    },
    "pth.gz": {name: lambda make=make: gzip.compress(make(), 1) for name, make in PICKLES.items()}
    | {
        "1 GiB": bomb,
        "1 GiB twice compressed": lambda: gzip.compress(bomb()),
        "1 GiB whose end says 10 bytes": lambda: bomb()[:-4] + struct.pack("<I", 10),
        "30,000 empty parts": lambda: gzip.compress(b"") * 30_000,
    },
    "npz": {f"shape {shape[:30]}": partial(npz, shape) for shape in SHAPES}
    | {f"type {kind}": partial(npz, "(3, 6)", kind=kind) for kind in ("'|O'", "'<U6'", "[('a', '<f4')]", "'<c8'")}
    | {
        "a bomb": lambda: npz("(13107200, 6)", content=bytes(300 * 2**20)),
        "a bomb beside it": lambda: npz("(3, 6)", **{"more.npy": bytes(300 * 2**20)}),
        "20,000 empty files": lambda: zipped({str(number): b"" for number in range(20_000)}),
    },
    "reinforced": {
        "four billion rows": lambda: STORED["reinforced"]["reinforced"][:10] + b"\xff" * 100,
        "a bomb": lambda: b"MCRF\1\0" + struct.pack("<II", 2**17, 3) + zlib.compress(bytes(2**27))[: 2**17],
    },
    "tar": {f"a size of {size}": behind(header(size), JPEG) for size in SIZES}
    | {
        "a name of 3 GiB": behind(header(size_of(3 * 2**30), b"name", b"L")),
        "a pax header of 3 GiB": behind(header(size_of(3 * 2**30), b"p", b"x")),
        "1,000 members of one key": behind(*(header(b"0", b"many.e%d" % number) for number in range(1000))),
        "a bomb": lambda: gzip.compress(behind(header(b"%011o\0" % 2**30), bytes(120 * 2**20))(), 1),
        "30,000 empty parts": lambda: gzip.compress(shard()[:512]) + gzip.compress(b"") * 30_000,
    },
    "bert": {
        "doubling": with_part(normalizer=several("normalizers", *5 * [replace({"String": "a"}, "aa")] * 8)),
        "an explosion": with_part(normalizer=replace({"Regex": "(a+)+$"}, " ")),
        "an explosion of splits": with_part(pre_tokenizer=split(r"(\w+)\1+$")),
        "a million brackets": with_part(pre_tokenizer=split("(" * 10**6 + ")" * 10**6)),
        "a long prefix": with_part(normalizer={"type": "Prepend", "prepend": "a" * (20 << 20)}),
        "100,000 parts": with_part(normalizer=several("normalizers", *[{"type": "Lowercase"}] * 100_000)),
        "nested 100,000 deep": lambda: b'{"model":' * 100_000,
        "lists": lambda: b'{"model": [' + b"[]," * (10 << 20) + b"[]]}",
        "40 MiB of spaces": lambda: b" " * (40 << 20),
        "no end": with_part(post_processor=None),
    },
    "csv": {f"the path {path}": lambda path=path: CSV + f"\n{path},a caption,other".encode() for path in PATHS}
    | {"16 MiB in a cell": lambda: CSV + b"\na.jpg," + b"x" * 2**24 + b",k"},
}


# What watches.


def _in_child(read, files, folder, sending):
    violations = []
    watched = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", CANARY_EVENT)
    sys.addaudithook(lambda *event: violations.append(f"{event}"[:300]) if event[0] in watched else None)
    limit = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number, (name, make, whole) in enumerate(files):
        wrong = ""
        try:
            (folder / str(number)).mkdir()
            found = read(folder / str(number), make())
            if whole is not None and found != whole:
                wrong = f"read: {found}"
        except BaseException:  # noqa: BLE001 - this is what is looked for
            wrong = traceback.format_exc(limit=-6)
        if violations:
            wrong = f"ran {violations}"
            violations.clear()
        os.write(sending, json.dumps([name, wrong]).encode() + b"\n")
    os._exit(0)


def harm(read, files, folder):
    """What is wrong with files, by name.

    Args:
        read: see `SOUND`.
        files: name, what makes the file, and whether it has to be read; None where either will do.
        folder: an empty one.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        try:
            _in_child(read, files, folder, sending)
        finally:
            os._exit(1)
    os.close(sending)
    said = b""
    with os.fdopen(receiving, "rb", buffering=0) as stream:
        while select.select([stream], [], [], SECONDS)[0] and (piece := stream.read(2**16)):
            said += piece
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = dict(json.loads(line) for line in said.splitlines())
    if len(done) < len(files):
        done[files[len(done)][0]] = f"no answer in {SECONDS} s, or the process was killed"
    return {name: wrong for name, wrong in done.items() if wrong}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_made_to_do_harm_is_refused(kind, tmp_path):
    read, _ = SOUND[kind]
    assert harm(read, [(name, make, False) for name, make in HOSTILE[kind].items()], tmp_path) == {}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.extra("raw")) if kind == "DNG" else kind for kind in SOUND]
)
@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_file_with_changed_bytes_is_read_or_refused(kind, count, tmp_path):
    if (kind, count) == ("parquet", 2000):
        pytest.xfail("Arrow ends the process over statistics of another type (parquet::ParquetException, not caught)")
    read, make = SOUND[kind]
    sound = make()
    files = [(str(seed), partial(changed, sound, f"{kind} {seed}"), None) for seed in range(count)]
    assert harm(read, [("as it is", lambda: sound, True), *files], tmp_path) == {}
