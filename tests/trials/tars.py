"""Tar files from strangers: numbers that lie, headers without end, bombs, and shards that are something else."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mobileclip.data import ImageTextSample, SkipReport, count_samples, read_samples, write_shard
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.datasets import ShardSource
from mobileclip.datasets.inspection import inspect_sample
from mobileclip.datasets.joining import NAMES, PLACES, AboutShard, ScanUnit
from tests.data.made_samples import encoded
from tests.trials.harness import Case, Outcome, run_command

IMAGE = encoded(8, 6, kind="jpeg")
END = bytes(1024)
# Small, so that what is too large stays quick to make.
SMALL = SampleLimits(member_bytes=2**20, sample_bytes=2**21, num_members=20, name_bytes=300, text_bytes=2**16)


def header(
    name: bytes, size: bytes, kind: bytes = b"0", checksum: bytes | None = None, magic: bytes = b"ustar\x0000"
) -> bytes:
    """Return a header whose size is whatever bytes are given, with a checksum that is right unless one is given."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157] = b"0000644\0", size.ljust(12, b"\0")[:12], kind
    block[257:265] = magic
    block[148:156] = b" " * 8
    block[148:156] = (b"%06o\0 " % sum(block)) if checksum is None else checksum.ljust(8, b"\0")[:8]
    return bytes(block)


def member(name: bytes, content: bytes, kind: bytes = b"0") -> bytes:
    """Return a member as it should be."""
    return header(name, b"%011o\0" % len(content), kind) + content + bytes(-len(content) % 512)


def sample(key: bytes) -> bytes:
    """Return the members of a good sample."""
    return member(key + b".jpg", IMAGE) + member(key + b".txt", b"a photo")


def pax(records: bytes) -> bytes:
    """Return an extended header."""
    return member(b"pax", records, b"x")


def record(key: bytes, value: bytes) -> bytes:
    """Return one record of an extended header."""
    length = len(key) + len(value) + 3
    length += len(str(length))
    length += len(str(length + 1)) - len(str(length)) if len(str(length)) < len(str(length + 1)) else 0
    return b"%d %s=%s\n" % (len(b"%d %s=%s\n" % (length, key, value)), key, value)


def scanned(path: Path, kind: str, *, by: str, limits: SampleLimits) -> AboutShard:
    """Read what an index knows of a shard."""
    shard, index, hashed = str(path), path.parent / "index", kind == PLACES
    unit = ScanUnit(
        name="a", shard=shard, fingerprint="x", kind=kind, folder=index, by=by, limits=limits, hashed=hashed
    )
    return unit.read()


def walked(folder: Path, data: bytes, *, keys: tuple[str, ...] = (), whole: bool = False) -> Outcome:
    """Read a shard in every way there is; some samples must be there, and nothing may be unheard of."""
    path = folder / "a.tar"
    path.write_bytes(data)
    report = SkipReport(log=False)
    found = [one.key for one in read_samples(path, report, SMALL)]
    assert set(keys) <= set(found), f"{keys} are not all in {found}"
    for unit in ShardSource(shards=path, sample_limits=SMALL).units():
        unit.count()
        assert [one.key for one in unit.read(SkipReport(log=False))] == list(dict.fromkeys(found))
    scanned(path, PLACES, by="key", limits=SMALL)
    scanned(path, NAMES, by="url", limits=SMALL)
    with contextlib.suppress(ValueError):
        assert count_samples(path, SMALL) >= len(found)
    if report.counts:
        return "skipped"
    assert found or whole, "nothing was read and nothing was counted"
    return "accepted"


SIZES = {
    "2^64 in GNU's form": b"\x80" + (2**64).to_bytes(11, "big"),
    "2^87 in GNU's form": b"\x80" + b"\xff" * 11,
    "60 GiB in GNU's form": b"\x80" + (60 * 2**30).to_bytes(11, "big"),
    "8 GiB less one, in octal": b"7" * 11 + b"\0",
    "8 GiB in 12 digits": b"7" * 12,
    "-1 in GNU's form": b"\xff" * 12,
    "-512 in GNU's form": b"\xff" * 10 + b"\xfe\x00",
    "a minus in octal": b"-0000000512",
    "a plus in octal": b"+0000000512",
    "an underscore": b"000_0000512",
    "0o": b"0o000000012",
    "hexadecimal": b"0x0000000ff",
    "a nine": b"00000000009",
    "a digit of another script": "\u0661\u0662\u0663".encode(),
    "letters": b"many bytes",
    "a tab": b"\t0000000012",
    "a space amid": b"00000 00012",
    "a form that GNU lacks": b"\xc0" + b"\0" * 11,
    "one in GNU's form with another first byte": b"\x81" + b"\0" * 10 + b"\x01",
    "1 GiB, of which there is nothing": b"%011o\0" % 2**30,
    "one byte more than there is": b"%011o\0" % 2000,
}


def with_size(size: bytes, folder: Path) -> Outcome:
    """A good sample before the forged header must be read."""
    return walked(folder, sample(b"good") + header(b"bad.jpg", size) + IMAGE[:100] + END, keys=("good",))


PAX_SIZES = {
    "-512": b"-512",
    "2^64": b"18446744073709551616",
    "5,000 digits": b"9" * 5000,
    "a fraction": b"1.5",
    "nothing": b"",
    "an exponent": b"1e9",
    "an underscore": b"1_0",
    "a line break": b"1\n2",
    "digits of another script": "\u0663".encode(),
    "60 GiB": b"64424509440",
    "zero, for a photo": b"0",
}


def with_pax_size(size: bytes, folder: Path) -> Outcome:
    data = sample(b"good") + pax(record(b"size", size)) + member(b"bad.jpg", IMAGE) + END
    return walked(folder, data, keys=("good",))


def archive_with(change: Callable[[tarfile.TarInfo], None], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return what Python's own tarfile writes of a changed header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        info = tarfile.TarInfo("other")
        change(info)
        tar.addfile(info, io.BytesIO(IMAGE) if info.isreg() and info.size else None)
    return stream.getvalue().rstrip(b"\0") + bytes(-len(stream.getvalue().rstrip(b"\0")) % 512)


def _kind(kind: bytes, info: tarfile.TarInfo) -> None:
    info.type, info.linkname = kind, "good.jpg"


def _headers(headers: dict[str, str], info: tarfile.TarInfo) -> None:
    info.name, info.pax_headers = "x.txt", headers


def behind_a_sample() -> dict[str, bytes]:
    """Return what stands between a good sample and the end."""
    return {
        "garbage for the next header": b"garbage" * 100,
        "a checksum that is none": header(b"x.jpg", b"0", checksum=b"zz"),
        "a checksum that is negative": header(b"x.jpg", b"0", checksum=b"\xff" * 8),
        "a checksum of 2^60": header(b"x.jpg", b"0", checksum=b"\x80" + b"\xff" * 7),
        "a name of a megabyte": member(b"name", b"n" * 2**20, b"L") + member(b"x.jpg", IMAGE),
        "a name that claims 3 GiB": header(b"name", b"\x80" + (3 * 2**30).to_bytes(11, "big"), b"L"),
        "a pax header that claims 3 GiB": header(b"p", b"\x80" + (3 * 2**30).to_bytes(11, "big"), b"x"),
        "10,000 pax headers": pax(record(b"path", b"x.jpg")) * 10_000,
        "10,000 long names": member(b"n", b"x.jpg\0", b"L") * 10_000,
        "200,000 pax records": pax(b"5 a=\n" * 200_000) + member(b"x.jpg", IMAGE),
        "a pax record of no length": pax(b"0 path=\n"),
        "a pax record of a billion": pax(b"999999999 path=x\n"),
        "a pax record without a line break": pax(b"8 path=x") + member(b"x.jpg", b""),
        "a pax path of no UTF-8": pax(record(b"path", b"\xff\xfe.jpg")) + member(b"x.jpg", IMAGE),
        "a pax path with a zero byte": pax(record(b"path", b"a\0b.jpg")) + member(b"x.jpg", IMAGE),
        "1,000 members under one key": b"".join(member(b"many.e%d" % n, b"x") for n in range(1000)),
        "a member that comes twice": sample(b"two") * 2,
        "an unknown kind that claims 60 GiB": header(b"d", b"\x80" + (60 * 2**30).to_bytes(11, "big"), b"Z"),
        "a global header that claims 60 GiB": header(b"d", b"\x80" + (60 * 2**30).to_bytes(11, "big"), b"g"),
        "a sparse file of GNU": header(b"s.jpg", b"0", b"S"),
        "a sparse file in pax": pax(record(b"GNU.sparse.major", b"1")) + member(b"s.jpg", b""),
        "names without a key": member(b".jpg", b"") + member(b"/", b"") + member(b"", b""),
        "a pax header of everything": archive_with(partial(_headers, {"mtime": "1e400", "uid": "-1", "x": "\x00"})),
        "GNU's names": archive_with(lambda info: setattr(info, "name", "n" * 400), tarfile.GNU_FORMAT),
    }


def between_samples() -> dict[str, bytes]:
    """Return what stands between two good samples."""
    return {
        "a member of 5 MiB, the limit being 1": member(b"big.jpg", bytes(5 * 2**20)),
        "a sample of 3 MiB, the limit being 2": b"".join(member(b"big.e%d" % n, bytes(2**20)) for n in range(3)),
        "20,000 folders": header(b"d", b"0", b"5") * 20_000,
        "a folder that claims 60 GiB": header(b"d", b"\x80" + (60 * 2**30).to_bytes(11, "big"), b"5"),
        **{
            f"a {name}": archive_with(partial(_kind, kind))
            for name, kind in (("link", b"2"), ("hard link", b"1"), ("device", b"3"), ("pipe", b"6"))
        },
    }


def archives() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """Yield name, content, and the keys that must be read of it."""
    good = sample(b"good")
    yield "an empty file", b"", ()
    yield "one byte", b"\x00", ()
    yield "a page of the web", b"<html>" * 100, ()
    yield "a photo", IMAGE * 3, ()
    yield "noise", bytes(range(256)) * 10, ()
    yield "half a header", good[:700], ()
    yield "no end mark", good, ("good",)
    yield "one block of zeros at the end", good + bytes(512), ("good",)
    yield "a key that comes again later", good + sample(b"two") + good + END, ("good", "two")
    yield "upper case and dots", good + member(b"./a/b.JPG", IMAGE) + member(b"./a/b.TXT", b"x") + END, ("good", "a/b")
    for name, data in behind_a_sample().items():
        yield name, good + data + END, ("good",)
    for name, data in between_samples().items():
        yield name, good + data + sample(b"after") + END, ("good", "after")


def compressed() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """Yield compressed shards."""
    whole = sample(b"good") + sample(b"after") + END
    bomb = sample(b"good") + header(b"big.jpg", b"%011o\0" % 2**30)
    for name, compress in (("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)):
        yield f"{name}, as it should be", compress(whole), ("good", "after")
        yield f"{name}, in parts", compress(whole[:700]) + compress(whole[700:]), ("good", "after")
        yield f"{name}, cut", compress(whole)[:-60], ()
        yield f"{name}, damaged", compress(whole)[:40] + b"\xff" * 40 + compress(whole)[80:], ()
        yield f"{name} in {name}", compress(compress(whole)), ()
        yield f"{name} of nothing", compress(b""), ()
    yield "gzip, a bomb of 120 MiB", gzip.compress(bomb + bytes(120 * 2**20)), ("good",)
    yield "xz, a bomb of 120 MiB", lzma.compress(bomb + bytes(120 * 2**20), preset=0), ("good",)
    yield "bzip2, a bomb of 90 MiB", bz2.compress(bomb + bytes(90 * 2**20)), ("good",)
    yield "gzip, 30,000 empty parts", gzip.compress(whole[:512]) + gzip.compress(b"") * 30_000, ()
    yield (
        "gzip, a bomb in every sample",
        gzip.compress(b"".join(member(b"k%d.jpg" % n, bytes(2**20)) for n in range(300))),
        (),
    )
    yield "gzip's first bytes alone", b"\x1f\x8b", ()
    yield "gzip's first bytes and noise", b"\x1f\x8b\x08" + bytes(range(256)), ()
    yield "a name that starts like bzip2", member(b"BZ1.jpg", IMAGE) + member(b"BZ1.txt", b"x") + END, ("BZ1",)


def sparse_on_disk(folder: Path) -> Outcome:
    """A shard that says 60 GiB, and a file system that agrees, without a block on the disk."""
    path = folder / "a.tar"
    with path.open("wb") as stream:
        stream.write(sample(b"good") + header(b"big.jpg", b"\x80" + (60 * 2**30).to_bytes(11, "big")))
        stream.truncate(61 * 2**30)
    assert count_samples(path) == 2
    assert scanned(path, PLACES, by="key", limits=SAMPLE_LIMITS).num_records == 1
    return "accepted"


def through_training(folder: Path) -> Outcome:
    """Good shards and forged ones: an epoch has what is good, and resuming ends no differently."""
    from mobileclip.data import ReinforcedPipelineSpec
    from mobileclip.inputs import ImageInput

    good = [ImageTextSample(key=f"good{number}", captions=("a photo",), image=IMAGE) for number in range(8)]
    write_shard(folder / "0.tar", good)
    for number, size in enumerate(SIZES.values(), 1):
        (folder / f"{number}.tar").write_bytes(header(b"bad.jpg", size) + END)
    pipeline = ReinforcedPipelineSpec(
        shards=[folder / f"{number}.tar" for number in range(len(SIZES) + 1)],
        batch_size=4,
        image=ImageInput(size=16),
        reinforced=False,
        num_samples=8,
    ).build()
    for _ in range(2):
        assert sorted(key for batch in pipeline.epoch(0) for key in batch.keys) == [one.key for one in good]
        assert pipeline.report.num_skipped >= len(SIZES)
    return "skipped"


def only_forged(folder: Path) -> Outcome:
    """Nothing usable: an error, and no endless search for a sample."""
    from mobileclip.data import ReinforcedPipelineSpec
    from mobileclip.inputs import ImageInput

    (folder / "a.tar").write_bytes(header(b"bad.jpg", SIZES["-1 in GNU's form"]) + END)
    spec = ReinforcedPipelineSpec(
        shards=folder / "a.tar",
        batch_size=4,
        image=ImageInput(size=16),
        reinforced=False,
        num_samples=8,
        sampling="endless",
    )
    list(spec.build().epoch(0))
    return "accepted"


def inspected(data: bytes, folder: Path) -> Outcome:
    (folder / "a.tar").write_bytes(data)
    inspect_sample(folder / "a.tar", "bad")
    return "accepted"


def by_command(data: bytes, folder: Path) -> Outcome:
    (folder / "a.tar").write_bytes(data)
    finished = run_command(["data", "inspect", str(folder / "a.tar")])
    assert finished.status == 2, finished
    assert "Traceback" not in finished.errors
    return "refused"


def cases() -> Iterator[Case]:
    """Yield what is tried."""
    for name, size in SIZES.items():
        yield Case(name=f"a size of {name}", attempt=partial(with_size, size))
    for name, size in PAX_SIZES.items():
        yield Case(name=f"a pax size of {name}", attempt=partial(with_pax_size, size))
    for name, data, keys in (*archives(), *compressed()):
        yield Case(name=name, attempt=partial(walked, data=data, keys=keys, whole=not keys), seconds=30)
    yield Case(name="61 GiB on the disk that are none", attempt=sparse_on_disk)
    yield Case(name="an epoch of training over forged shards", attempt=through_training)
    yield Case(name="an endless epoch over forged shards", attempt=only_forged)
    forged = sample(b"good") + header(b"bad.jpg", SIZES["60 GiB in GNU's form"]) + END
    yield Case(name="inspecting what a header only claims", attempt=partial(inspected, forged))
    yield Case(name="inspecting a shard of noise", attempt=partial(by_command, bytes(range(256)) * 10))
    yield Case(
        name="inspecting a shard with a size of 2^64",
        attempt=partial(by_command, header(b"x.jpg", SIZES["2^64 in GNU's form"]) + END),
    )
