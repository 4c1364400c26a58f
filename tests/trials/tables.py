"""Tables of pairs from strangers: rows that name what they may not, and files that are damaged or forged."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mobileclip.data import ImageTextSample, SkipReport, read_samples, write_shard
from mobileclip.datasets import TableSource
from tests.data.made_samples import encoded
from tests.trials.harness import CANARY, Case, Outcome, PickledCanary

IMAGE = encoded(8, 6, kind="jpeg")
GOOD = {"path": "a.jpg", "caption": "good", "key": "good"}


def used(path: Path, samples_per_shard: int = 2) -> tuple[list[ImageTextSample], SkipReport]:
    """Return what a table gives; whatever it gives is written and read again."""
    (path.parent / "a.jpg").write_bytes(IMAGE)
    report = SkipReport(log=False)
    samples = []
    for unit in TableSource(tables=path, samples_per_shard=samples_per_shard).units():
        unit.fingerprint()
        samples += list(unit.read(report))
    for skips in report.named.values():
        for skip in skips:
            assert skip.key.isprintable()
            assert skip.detail.isprintable()
            assert len(skip.detail) < 1500
    if samples:
        unlike = {sample.key: sample for sample in samples}.values()
        write_shard(path.parent / "b.tar", unlike)
        assert len(list(read_samples(path.parent / "b.tar", SkipReport(log=False)))) == len(unlike)
    return samples, report


def judged(path: Path, right: bool) -> Outcome:
    """Use a table whose first row is good, and one more of whose rows may be."""
    samples, report = used(path)
    assert samples[0].key == "good", report
    assert (len(samples) == 2) == right, report
    return "accepted" if right else "skipped"


def delimited(suffix: str, content: bytes, right: bool, folder: Path) -> Outcome:
    path = folder / f"a.{suffix}"
    separator = b"\t" if suffix == "tsv" else b","
    path.write_bytes(
        b"\n".join(
            [separator.join((b"path", b"caption", b"key")), separator.join((b"a.jpg", b"good", b"good")), content]
        )
    )
    return judged(path, right)


def row(fields: dict[str, Any], right: bool, suffix: str, folder: Path) -> Outcome:
    """The same row in each form."""
    rows = [GOOD, {**GOOD, "key": "other", **fields}]
    path = folder / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = io.StringIO()
        csv.writer(text).writerows([list(GOOD), *(list(one.values()) for one in rows)])
        path.write_bytes(text.getvalue().encode(errors="surrogatepass"))
    return judged(path, right)


def whole(**options: Any) -> bytes:
    stream = io.BytesIO()
    rows = [{**GOOD, "key": f"k{number}", "more": [number, number]} for number in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=3, **options)
    return stream.getvalue()


def damaged(change: Callable[[bytes], bytes], folder: Path) -> Outcome:
    """A file that was changed gives the rows that are still whole, or is refused."""
    path = folder / "a.parquet"
    path.write_bytes(change(whole(compression="none")))
    samples, report = used(path)
    assert all(sample.image == IMAGE for sample in samples)
    return "skipped" if report.counts else "accepted"


def marked(mark: dict[str, bytes], folder: Path) -> Outcome:
    """A column whose metadata names a type that would be unpickled."""
    path = folder / "a.parquet"
    fields = [pa.field(name, pa.string(), metadata=mark if name == "more" else None) for name in (*GOOD, "more")]
    pq.write_table(pa.table([[value] for value in (*GOOD.values(), "x")], pa.schema(fields)), path)
    samples, _ = used(path)
    assert [sample.key for sample in samples] == ["good"]
    return "accepted"


def bomb(folder: Path) -> Outcome:
    """A caption of 200 MB that takes little room in the file."""
    path = folder / "a.parquet"
    rows = [GOOD, {**GOOD, "key": "other", "caption": "x" * 200_000_000}]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    assert path.stat().st_size < 2**20
    return judged(path, False)


def cases() -> Iterator[Case]:
    """Yield what is tried."""
    for name, fields in (
        ("a root", {"path": "/etc/passwd"}),
        ("a file address", {"path": "file:///etc/passwd"}),
        ("..", {"path": "../a.jpg"}),
        ("a bucket", {"path": "s3://bucket/a.jpg"}),
        ("a cloud's own service", {"path": "http://169.254.169.254/latest/meta-data"}),
        ("this machine", {"path": "http://127.0.0.1:1/a.jpg"}),
        ("a program", {"path": "pipe:cat /etc/passwd"}),
        ("an address within an address", {"path": "simplecache::file:///etc/passwd"}),
        ("a zero byte", {"path": "a.jpg\0.png"}),
        ("nothing", {"path": ""}),
        ("no caption", {"caption": " "}),
        ("a caption of 100 kB", {"caption": "x" * 100_000}),
        ("a key of ..", {"key": "../x"}),
        ("a key of a line break", {"key": "a\nb"}),
        ("a key of 5,000 letters", {"key": "k" * 5000}),
    ):
        for suffix in ("csv", "parquet"):
            yield Case(name=f"a row of {name}, {suffix}", attempt=partial(row, fields, False, suffix))
    for name, content, right in (
        ("an open quotation mark", b'a.jpg,"x', False),
        ("an open quotation mark and 14,000 lines", b'a.jpg,"x\n' + b"a.jpg,x,y\n" * 14_000, None),
        ("a quotation mark amid a cell", b'a.jpg,"x"y,k', False),
        ("no UTF-8", b"a.jpg,\xff\xfe,k", False),
        ("zero bytes", bytes(1000), False),
        ("16 MiB", b"a.jpg," + b"x" * 2**24 + b",k", False),
        ("100,000 cells", b"a.jpg" + b"," * 100_000, False),
        ("a carriage return amid a cell", b"a.jpg,x\ry,k", False),
        ("quotation marks twice", b'a.jpg,"say ""x""",k', True),
        ("a formula", b"a.jpg,=HYPERLINK(1),k", True),
    ):
        if right is None:
            yield Case(name=f"a line of {name}", attempt=partial(many_lines, content))
        else:
            yield Case(name=f"a line of {name}", attempt=partial(delimited, "csv", content, right))
    yield Case(name="a line of quotation marks, tsv", attempt=partial(delimited, "tsv", b'a.jpg\tsay "x\tk', True))
    size = len(whole(compression="none"))
    for place in range(0, size, size // 40):
        yield Case(
            name=f"a Parquet file that ends at {place}", attempt=partial(damaged, lambda data, at=place: data[:at])
        )
        yield Case(
            name=f"a Parquet file with noise at {place}",
            attempt=partial(damaged, lambda data, at=place: data[:at] + b"\xff\x7f\xff\x7f" + data[at + 4 :]),
        )
    yield Case(name="a Parquet file of nothing", attempt=partial(damaged, lambda _: b""))
    yield Case(name="a Parquet file of its marks alone", attempt=partial(damaged, lambda _: b"PAR1" * 3))
    yield Case(
        name="a Parquet file with a foot of 2 GiB",
        attempt=partial(damaged, lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1"),
    )
    pickled = pickle.dumps(PickledCanary())
    for kind in ("arrow.py_extension_type", "pandas", "arrow.json", CANARY):
        mark = {"ARROW:extension:name": kind.encode(), "ARROW:extension:metadata": pickled}
        yield Case(name=f"a type called {kind[:30]}", attempt=partial(marked, mark))
    yield Case(name="a caption of 200 MB in 1 MB", attempt=bomb)


def many_lines(content: bytes, folder: Path) -> Outcome:
    """What a mark that is never closed takes with it is named, and reading goes on behind it."""
    path = folder / "a.csv"
    path.write_bytes(b"path,caption,key\na.jpg,good,good\n" + content)
    samples, report = used(path, 10_000)
    assert samples[0].key == "good"
    assert report.counts["bad_row"] == 1
    return "skipped"
