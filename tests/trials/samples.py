"""Captions, keys, JSON, cards and indices from strangers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from mobileclip.data import ImageTextSample, SkipReport, find_card, read_reinforced_samples, read_samples, write_shard
from mobileclip.data.buckets import Records
from mobileclip.data.samples.members import sample_members
from mobileclip.datasets import JsonLinesSource
from mobileclip.datasets.joining import (
    PLACES,
    AboutShard,
    JoinReport,
    JoinSpec,
    join_images,
    read_about,
    read_records,
    records_path,
    write_records,
)
from mobileclip.engines import InlineEngine, Retries
from mobileclip.reinforce import Manifest, verify
from tests.data.made_samples import encoded, make_sample, write_raw
from tests.datasets.joining.world import left_out
from tests.trials.harness import Case, Outcome

IMAGE = encoded(8, 6, kind="jpeg")
PLAIN = {"jpg": IMAGE, "txt": b"a photo"}
REINFORCED = sample_members(make_sample(1), "npz")
DEEP = b'{"a": ' * 150 + b"[" * 60 + b"]" * 60 + b"}" * 150


def usable(report: SkipReport, found: bool, right: bool) -> Outcome:
    assert found == right, report
    for skips in report.named.values():
        for skip in skips:
            assert skip.key.isprintable()
            assert skip.detail.isprintable()
            assert len(skip.detail) < 1500
    return "accepted" if found else "skipped"


def plain(members: dict[str, bytes], right: bool, folder: Path) -> Outcome:
    """A sample beside a good one; what is read is written and read again."""
    path = write_raw(folder / "a.tar", {"good": PLAIN, "bad": {"jpg": IMAGE, **members}})
    report = SkipReport(log=False)
    samples = list(read_samples(path, report))
    assert samples[0].key == "good"
    write_shard(folder / "b.tar", samples)
    again = SkipReport(log=False)
    assert [one.captions for one in read_samples(folder / "b.tar", again)] == [one.captions for one in samples]
    assert not again.counts
    return usable(report, len(samples) == 2, right)


def reinforced(members: dict[str, bytes], folder: Path) -> Outcome:
    path = write_raw(folder / "a.tar", {"good": REINFORCED, "bad": {**REINFORCED, **members}})
    report = SkipReport(log=False)
    samples = [one.key for one in read_reinforced_samples(path, report)]
    assert "good" in samples
    return usable(report, len(samples) == 2, False)


def _join(spec: JoinSpec) -> JoinReport:
    """Join; what fails is tried again at once."""
    engine = InlineEngine(device="cpu", retries=Retries(pause_seconds=0.0))
    return join_images(spec, engine=engine, show_progress=False)


def keyed(name: bytes, right: bool, folder: Path) -> Outcome:
    """A key goes through a shard and a join, and becomes no path and no row."""
    (folder / "in").mkdir()
    path = folder / "in" / "a.tar"
    names = [os.fsdecode(b"%s.%s" % (key, end)) for key in (b"good", name) for end in (b"jpg", b"txt")]
    write_raw(path, [(one, IMAGE if one.endswith("jpg") else b"x") for one in names])
    report = SkipReport(log=False)
    samples = list(read_samples(path, report))
    assert samples[0].key == "good"
    joined = _join(JoinSpec(reinforced=str(path), images=str(path), output=str(folder / "out")))
    assert len(left_out(folder / "out")) == joined.samples - joined.joined
    assert {one.name for one in folder.iterdir()} == {"in", "out"}
    return usable(report, len(samples) == 2, right)


def lines(content: bytes, right: bool, folder: Path, **options: Any) -> Outcome:
    (folder / "a.jpg").write_bytes(IMAGE)
    (folder / "a.jsonl").write_bytes(b'{"image": "a.jpg", "text": "good", "key": "good"}\n' + content + b"\n")
    report = SkipReport(log=False)
    (unit,) = JsonLinesSource(path=folder / "a.jsonl", **options).units()
    unit.fingerprint()
    samples = list(unit.read(report))
    assert samples[0].key == "good"
    write_shard(folder / "b.tar", samples)
    assert len(list(read_samples(folder / "b.tar", SkipReport(log=False)))) == len(samples)
    return usable(report, len(samples) == 2, right)


def line(fields: dict[str, Any], right: bool = False, **options: Any) -> Callable[[Path], Outcome]:
    content = json.dumps({"image": "a.jpg", "text": "x", **fields}).encode()
    return partial(lines, content, right, **options)


def carded(content: bytes, folder: Path) -> Outcome:
    """A folder with whatever card."""
    (folder / "reinforcement.json").write_bytes(content)
    find_card(folder)
    return "accepted"


def listed(content: bytes, folder: Path) -> Outcome:
    """A folder with a good card and whatever manifest; verifying changes nothing in it."""
    write_shard(folder / "0.tar", [make_sample(1, dim=6)], layout="npz")
    card = {"layout": "npz", "num_augmentations": 3, "num_samples": 1, "num_shards": 1}
    (folder / "reinforcement.json").write_text(json.dumps(card))
    (folder / "manifest.jsonl").write_bytes(content)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    try:
        found = verify(folder, num_samples=3, show_progress=False)
        assert len(str(found)) < 100_000
        Manifest(folder)
    finally:
        assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    return "accepted" if found.is_good else "skipped"


def entry(**changes: Any) -> bytes:
    fields = {"shard": "0.tar", "fingerprint": "x", "num_samples": 1, "num_bytes": 1, "skipped": {}}
    return json.dumps({**fields, **changes}).encode() + b"\n"


def indexed(content: bytes, folder: Path) -> Outcome:
    """A join whose index is whatever file, and one in whose index every file is that."""
    path = write_raw(folder / "a.tar", {"good": PLAIN})
    spec = JoinSpec(reinforced=path, images=path, output=str(folder / "out"))
    _join(spec)
    for file in (folder / "out" / "index").rglob("*.*"):
        file.write_bytes(content)
    (folder / "out" / "a.tar").unlink()
    assert _join(spec).joined == 1
    (folder / "index").write_bytes(content)
    _join(attrs.evolve(spec, index=str(folder / "index")))
    return "accepted"


def forged_index(change: Callable[[AboutShard, Records], AboutShard | None], folder: Path) -> Outcome:
    """An index of the right form that says something else."""
    path = write_raw(folder / "a.tar", {"good": {"txt": b"a photo"}})
    images = write_raw(folder / "b.tar", {"good": PLAIN})
    spec = JoinSpec(reinforced=path, images=images, output=str(folder / "out"))
    _join(spec)
    (folder / "out" / "a.tar").unlink()
    index = folder / "out" / "index"
    about = read_about(index, PLACES, "key", images)
    assert about is not None
    records = read_records(index, PLACES, about).copy()
    about = change(about, records) or about
    target = records_path(index, PLACES, "key", images)
    write_records(index, PLACES, about, records)
    written = records_path(index, PLACES, about.by, about.shard)
    if written != target:
        written.replace(target)
    _join(spec)
    return "accepted"


def with_field(name: str, value: int) -> Callable[[AboutShard, Records], None]:
    def change(_: AboutShard, records: Records) -> None:
        records[name] = value

    return change


def cases() -> Iterator[Case]:
    """Yield what is tried."""
    for name, members, right in (
        ("a caption of no UTF-8", {"txt": b"\xff\xfe"}, False),
        ("a caption of white space", {"txt": b" \n\t"}, False),
        ("a caption of 1 MiB", {"txt": b"a" * 2**20}, False),
        ("a caption of 32 MiB", {"txt": b"a " * 2**24}, False),
        ("a caption with control characters", {"txt": b"\x1b[2J\x00 red"}, True),
        ("an address of no UTF-8", {"txt": b"x", "url.txt": b"\xff"}, False),
        ("an address of 1 MiB", {"txt": b"x", "url.txt": b"a" * 2**20}, False),
        ("JSON that is none", {"txt": b"x", "json": b"{"}, False),
        ("JSON of a list", {"txt": b"x", "json": b"[]"}, False),
        ("JSON of a number", {"txt": b"x", "json": b"1e999"}, False),
        ("JSON of UTF-16", {"txt": b"x", "json": "{}".encode("utf-16")}, False),
        ("JSON with a mark before it", {"txt": b"x", "json": b"\xef\xbb\xbf{}"}, True),
        ("JSON with a name twice", {"txt": b"x", "json": b'{"a": 1, "a": 2}'}, False),
        ("JSON with NaN", {"txt": b"x", "json": b'{"similarity": NaN}'}, True),
        ("JSON with 5,000 digits", {"txt": b"x", "json": b'{"a": ' + b"1" * 5000 + b"}"}, False),
        ("JSON 100,000 brackets deep", {"txt": b"x", "json": b"[" * 10**5}, False),
        ("JSON 200,000 objects deep", {"txt": b"x", "json": b'{"a":' * 200_000}, False),
        ("JSON 210 levels deep, and whole", {"txt": b"x", "json": DEEP}, False),
        ("JSON of 20 MiB", {"txt": b"x", "json": b'{"a": "' + b"x" * (20 * 2**20) + b'"}'}, False),
        ("JSON with half a character", {"txt": b"x", "json": b'{"a": "\\ud800"}'}, True),
        ("JSON with a caption of half a character", {"json": b'{"caption": "\\ud800"}'}, False),
        ("captions that are numbers", {"json": b'{"captions": [1, 2]}'}, False),
        ("captions that are an object", {"json": b'{"captions": {"a": "b"}}'}, False),
        ("a caption that is true", {"json": b'{"caption": true}'}, False),
        ("20,000 captions", {"json": json.dumps({"captions": [f"{n}" for n in range(20_000)]}).encode()}, False),
        ("synthetic captions that are numbers", {"txt": b"x", "syn.json": b'{"syn_text": [1]}'}, False),
        ("an extension with a line break", {"txt": b"x", "e\nf": b"x"}, False),
        ("an extension with a tab", {"txt": b"x", "e\tf": b"x"}, False),
    ):
        yield Case(name=name, attempt=partial(plain, members, right))
    for name, augmentations in (
        ("no list", b'{"param_aug": 5}'),
        ("a text", b'{"param_aug": "[["}'),
        ("nothing", b"{}"),
        ("NaN", b'{"param_aug": [[[0, 0, 9, 9], [[2, NaN]]], [[0, 0, 9, 9], []], [[0, 0, 9, 9], []]]}'),
        ("infinity", b'{"param_aug": [[[0, 0, 9, 9], [[2, 1e999]]], [[0, 0, 9, 9], []], [[0, 0, 9, 9], []]]}'),
        ("4,000 digits", b'{"param_aug": [[[0, 0, 9, ' + b"9" * 4000 + b"], []]]}"),
        ("a magnitude of 4,000 digits", b'{"param_aug": [[[0, 0, 9, 9], [[2, ' + b"9" * 4000 + b"]]]]}"),
        ("an unknown operation", b'{"param_aug": [[[0, 0, 9, 9], [[99, 1]]]]}'),
        ("a crop of fractions", b'{"param_aug": [[[0.5, 0, 9, 9], []]]}'),
        ("a crop outside", b'{"param_aug": [[[-5, 0, 9, 9], []]]}'),
        ("a size of texts", b'{"param_aug": [[[0, 0, 9, 9], []]], "image_size": "ab"}'),
        ("a size of infinity", b'{"param_aug": [[[0, 0, 9, 9], []]], "image_size": [1e999, 5]}'),
        ("a hash of a number", b'{"param_aug": [[[0, 0, 9, 9], []]], "image_sha256": 5}'),
        ("brackets in a text", json.dumps({"param_aug": "[" * 10**5}).encode()),
    ):
        yield Case(name=f"augmentations of {name}", attempt=partial(reinforced, {"paug.json": augmentations}))
    for name, key, right in (
        ("..", b"../../etc/passwd", False),
        (".. amid", b"a/../b", False),
        ("a root", b"/etc/passwd", False),
        ("a drive", b"C:/windows/x", False),
        ("backslashes", b"a\\..\\b", False),
        ("a tab", b"a\tb", False),
        ("a line break", b"a\nb", False),
        ("a carriage return", b"a\rb", False),
        ("an escape", b"a\x1b[2Jb", False),
        ("a mark that turns the writing", "a\u202eb".encode(), False),
        ("a separator of lines", "a\u2028b".encode(), False),
        ("two underscores", b"__a", False),
        ("5,000 letters", b"k" * 5000, False),
        ("bytes of no UTF-8", b"k\xff", True),
        ("another script", "\u0645\u0641\u062a\u0627\u062d".encode(), True),
        ("folders", b"a/b/c", True),
        ("markup", b"[red]x[/nothing]", True),
    ):
        attempt = partial(keyed, key, right) if key != b"k" * 5000 else partial(plain_key, key)
        yield Case(name=f"a key of {name}", attempt=attempt)
    for name, content in (
        ("brackets", b"[" * 10**5),
        ("no UTF-8", b"\xff"),
        ("16 MiB of it", b'{"image": "a.jpg", "text": "' + b"x" * 2**24 + b'"}'),
        ("a list", b"[1]"),
        ("a name twice", b'{"image": "a.jpg", "image": "b.jpg", "text": "x"}'),
        ("half a character", b'{"image": "a.jpg", "text": "\\udfff"}'),
        ("zero bytes", bytes(1000)),
    ):
        yield Case(name=f"a line of {name}", attempt=partial(lines, content, False))
    for image in (
        "file:///etc/passwd",
        "/etc/passwd",
        "../a.jpg",
        "a/../../a.jpg",
        "s3://bucket/a.jpg",
        "ftp://host/a.jpg",
        "local://a.jpg",
        "simplecache::file:///etc/passwd",
        "pipe:cat /etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:1/a.jpg",
        "http://[::1]:1/a.jpg",
        "http://user:secret@127.0.0.1:1/a.jpg?signature=hidden",
        "\\\\host\\share\\a.jpg",
        "a.jpg\0.png",
        "a" * 100_000,
        "",
    ):
        yield Case(name=f"a line that names {image[:60]!r}", attempt=line({"image": image}))
    yield Case(name="a line that names a number", attempt=line({"image": 5}))
    yield Case(name="a line with a key of ..", attempt=line({"key": "../x"}))
    yield Case(name="a line with a key of a line break", attempt=line({"key": "a\nb"}))
    yield Case(name="a line with a key of a list", attempt=line({"key": ["a"]}))
    yield Case(name="a line with an address of a list", attempt=line({"url": ["a"]}, right=True))
    for name, card in (
        ("nothing", b""),
        ("brackets", b"[" * 10**5),
        ("no UTF-8", b"\xff"),
        ("20 MiB", b" " * (20 * 2**20) + b"{}"),
        ("a dim of 2^70", b'{"layout": "npz", "num_augmentations": %d}' % 2**70),
        ("augmentations of -1", b'{"layout": "npz", "num_augmentations": -1}'),
        ("an unknown layout", b'{"layout": "rm -rf"}'),
        ("teachers of a number", b'{"layout": "npz", "teachers": 5}'),
        ("counts of true", b'{"layout": "npz", "num_samples": true}'),
    ):
        yield Case(name=f"a card of {name}", attempt=partial(carded, card))
    for name, manifest in (
        ("nothing", b""),
        ("half a line", entry() + b'{"shard": "1.t'),
        ("brackets", b"[" * 10**5 + b"\n"),
        ("no UTF-8", b"\xff\n"),
        ("2^40 samples", entry(num_samples=2**40)),
        ("2^35 samples", entry(num_samples=2**35)),
        ("-1 samples", entry(num_samples=-1)),
        ("a shard of ..", entry(shard="../0.tar")),
        ("a shard of a root", entry(shard="/etc/passwd")),
        ("a shard with a line break", entry(shard="a\nb.tar")),
        ("10,000 shards that are not there", b"".join(entry(shard=f"{n}.tar") for n in range(10_000))),
    ):
        yield Case(name=f"a manifest of {name}", attempt=partial(listed, manifest), seconds=30)
    for name, index in (
        ("noise", bytes(range(256)) * 40),
        ("nothing", b""),
        ("a header and noise", b"mobileclip join 1\n" + bytes(range(256)) * 40),
        ("brackets", b"mobileclip join 1\n" + b"[" * 10**5),
    ):
        yield Case(name=f"an index of {name}", attempt=partial(indexed, index))
    for name, change in (
        ("a size of 2^32 - 1", with_field("size", 2**32 - 1)),
        ("a place of 2^64 - 1", with_field("start", 2**64 - 1)),
        ("a place behind the end", with_field("json_start", 2**40)),
        ("an unknown extension", with_field("extension", 255)),
        ("another shard", lambda about, _: attrs.evolve(about, shard="/etc/passwd")),
        ("another key", lambda about, _: attrs.evolve(about, by="uid")),
    ):
        yield Case(name=f"an index that holds {name}", attempt=partial(forged_index, change))


def plain_key(key: bytes, folder: Path) -> Outcome:
    """A key that is too long for any name."""
    path = folder / "a.tar"
    write_shard(folder / "good.tar", [ImageTextSample(key="good", captions=("x",), image=IMAGE)])
    from tests.trials.tars import END, member, pax, record

    path.write_bytes(pax(record(b"path", key + b".txt")) + member(b"x", b"a photo") + END)
    report = SkipReport(log=False)
    assert [one.key for one in read_samples([folder / "good.tar", path], report)] == ["good"]
    assert report.num_skipped == 1
    return "skipped"
