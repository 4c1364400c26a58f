"""Sources: every form that image-text data comes in, whole, damaged and remote."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mobileclip import storage
from mobileclip.data import (
    BadSampleError,
    FolderSource,
    ImageTextSample,
    JsonLinesSource,
    ShardSource,
    SkipReport,
    Source,
    as_source,
    decode_image,
    read_samples,
    write_shard,
)
from mobileclip.data.sources import jsonl, records, sources
from mobileclip.serialization import from_json, to_json
from tests.data.made_samples import encoded, golden, write_raw
from tests.stores import s3_server, web_server

JPEG, PNG, WEBP = (encoded(8, 6, kind=kind) for kind in ("jpeg", "png", "webp"))
KEYS = [f"00010000000{number}" for number in range(3)]


@pytest.fixture(autouse=True)
def _no_pauses():
    with storage.use_limits(storage.StoreLimits(retry_delays_seconds=(0.0, 0.0, 0.0))):
        yield


@pytest.fixture(scope="module")
def s3():
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as server:
        yield server


@pytest.fixture
def site():
    with web_server() as server:
        yield server


def read(source: Source) -> tuple[list[ImageTextSample], SkipReport]:
    """Read all units as a worker would, after a pickle's journey."""
    report = SkipReport(log=False)
    samples = [sample for unit in pickle.loads(pickle.dumps(source.units())) for sample in unit.read(report)]
    assert report.num_read == len(samples)
    return samples, report


def names(report: SkipReport) -> dict[str, list[str]]:
    return {reason: [skip.key for skip in skips] for reason, skips in report.named.items()}


def write_lines(path: Path, lines: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


class TestAnySource:
    @pytest.mark.parametrize(
        "source",
        [
            ShardSource(shards="a/{0..3}.tar"),
            JsonLinesSource(path="s3://bucket/a.jsonl", image_root="/images", samples_per_shard=7),
            FolderSource(path=Path("photos")),
        ],
    )
    def test_json_round_trip(self, source):
        text = to_json(source, unstructure_as=Source)
        assert from_json(text, Source) == source
        assert json.loads(text)["kind"] in sources

    def test_the_kind_is_found_by_the_path(self, tmp_path):
        assert as_source("a/{0..3}.tar") == ShardSource(shards="a/{0..3}.tar")
        assert as_source(["a.tar", Path("b.tar")]) == ShardSource(shards=("a.tar", "b.tar"))
        assert as_source("pipe:cat a.tar") == ShardSource(shards="pipe:cat a.tar")
        assert as_source("s3://bucket/a.tar") == ShardSource(shards="s3://bucket/a.tar")
        assert as_source("a.JSONL", samples_per_shard=5) == JsonLinesSource(path="a.JSONL", samples_per_shard=5)
        assert as_source(tmp_path, samples_per_shard=5) == FolderSource(path=tmp_path, samples_per_shard=5)
        assert as_source(FolderSource(path="x")) == FolderSource(path="x")
        shutil.copy(golden("npz"), tmp_path / "b.tar")
        shutil.copy(golden("npz"), tmp_path / "a.tar")
        assert as_source(tmp_path) == ShardSource(shards=(f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"))
        write_shard("memory://kinds/below/a.tar", [ImageTextSample(key="k", captions=("c",), image=PNG)])
        assert as_source("memory://kinds/below") == ShardSource(shards="memory://kinds/below/a.tar")
        assert as_source("memory://kinds") == FolderSource(path="memory://kinds")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("", "no data was given"),
            ("a.csv", "a.csv is neither a tar shard nor a .jsonl file"),
            ("a.parquet", "neither"),
            ("a.jsonl.gz", "neither"),
        ],
    )
    def test_what_is_no_source(self, data, message):
        with pytest.raises(ValueError, match=message):
            as_source(data)

    @pytest.mark.parametrize("cls", [JsonLinesSource, FolderSource])
    def test_a_shard_holds_something(self, cls):
        with pytest.raises(ValueError, match="samples_per_shard"):
            cls(path="a", samples_per_shard=0)


class TestShards:
    def test_golden(self):
        (unit,) = ShardSource(shards=golden("npz")).units()
        assert unit.name == "datacompdr_npz.tar"
        assert unit.count() == 3
        assert unit.size() == Path(golden("npz")).stat().st_size
        samples, report = read(ShardSource(shards=golden("npz")))
        assert [sample.key for sample in samples] == KEYS
        assert report.num_skipped == 0

    def test_names_and_patterns(self, tmp_path):
        for name in ("0.tar", "1.tar", "2.tar.gz", "3.tgz"):
            content = Path(golden("npz")).read_bytes()
            (tmp_path / name).write_bytes(content if name.endswith(".tar") else gzip.compress(content))
        units = ShardSource(shards=f"{tmp_path}/{{0..1}}.tar::{tmp_path}/2.tar.gz::{tmp_path}/3.tgz").units()
        assert [unit.name for unit in units] == ["0.tar", "1.tar", "2.tar", "3.tar"]
        assert [unit.count() for unit in units] == [3, 3, None, None]
        report = SkipReport()
        assert [len(list(unit.read(report))) for unit in units] == [3] * 4

    def test_a_pipe(self):
        source = ShardSource(shards=f"pipe:cat {golden('npz')}")
        (unit,) = source.units()
        assert (unit.name, unit.count(), unit.size()) == ("datacompdr_npz.tar", None, None)
        assert unit.fingerprint() == unit.path
        assert len(read(source)[0]) == 3

    def test_mistakes(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        for folder in "ab":
            shutil.copy(golden("npz"), tmp_path / folder / "0.tar")
        with pytest.raises(ValueError, match=r"a/0.tar and .*b/0.tar have the same name"):
            ShardSource(shards=[tmp_path / "a" / "0.tar", tmp_path / "b" / "0.tar"]).units()
        with pytest.raises(ValueError, match=r"5.tar, .*6.tar, .*7.tar does not exist, nor do 2 others"):
            ShardSource(shards=f"{tmp_path}/{{5..9}}.tar").units()
        with pytest.raises(ValueError, match=r"\*.tar does not exist; patterns are written with braces"):
            ShardSource(shards=f"{tmp_path}/*.tar").units()
        with pytest.raises(ValueError, match="is a directory and no shard; for a directory of images"):
            ShardSource(shards=tmp_path / "a").units()
        with pytest.raises(ValueError, match="does not end with the name of a file"):
            ShardSource(shards="pipe:cat - | gunzip").units()
        with pytest.raises(ValueError, match="nosuch://"):
            ShardSource(shards="nosuch://a/{0..2}.tar").units()

    def test_fingerprints(self, tmp_path):
        path = tmp_path / "a.tar"
        shutil.copy(golden("npz"), path)
        (unit,) = ShardSource(shards=path).units()
        before = unit.fingerprint()
        assert before == unit.fingerprint()
        os.utime(path, (1, 1))
        assert unit.fingerprint() != before
        path.unlink()
        with pytest.raises(ValueError, match="does not exist"):
            unit.fingerprint()

    def test_of_samples_with_one_key_the_first_usable_one_counts(self, tmp_path):
        members = [
            ("a.jpg", JPEG),  # without a caption
            ("b.txt", b"one"),
            ("b.jpg", JPEG),
            ("a.txt", b"two"),
            ("a.png", PNG),
            ("b.jpg", JPEG),
            ("b.txt", b"three"),
        ]
        samples, report = read(ShardSource(shards=write_raw(tmp_path / "a.tar", members)))
        assert [(sample.key, sample.captions) for sample in samples] == [("b", ("one",)), ("a", ("two",))]
        assert names(report) == {"missing_member": ["a"], "duplicate_key": ["b"]}

    @pytest.mark.parametrize("damage", ["empty", "text", "cut", "forbidden"])
    def test_a_damaged_shard_is_named_and_ends_nothing(self, tmp_path, damage):
        path, whole = tmp_path / "0.tar", Path(golden("npz")).read_bytes()
        path.write_bytes({"empty": b"", "text": b"no tar" * 500, "cut": whole[:20_000], "forbidden": whole}[damage])
        shutil.copy(golden("npz"), tmp_path / "1.tar")
        if damage == "forbidden":
            path.chmod(0)
            if os.access(path, os.R_OK):
                pytest.skip("this user may read everything")
        units = ShardSource(shards=f"{tmp_path}/{{0..1}}.tar").units()
        assert (units[0].count(), units[1].count()) == (None, 3)
        samples, report = read(ShardSource(shards=f"{tmp_path}/{{0..1}}.tar"))
        assert [sample.key for sample in samples[-3:]] == KEYS
        assert report.counts.keys() & {"truncated_shard", "unreadable_shard"}

    def test_a_web_server(self, site):
        site.files["/data/0.tar"] = site.files["/data/1.tar"] = Path(golden("npz")).read_bytes()
        source = ShardSource(shards=f"{site.url}/data/{{0..1}}.tar")
        site.cut_after = [10_000]
        assert [sample.key for sample in read(source)[0]] == KEYS * 2
        units = source.units()
        assert [unit.name for unit in units] == ["0.tar", "1.tar"]
        assert units[0].count() is None
        assert units[0].fingerprint() == units[1].fingerprint()
        site.cut_after = [10_000, 0, 0, 0]
        samples, report = read(source)
        assert report.counts == {"connection_failed": 1}
        assert [sample.key for sample in samples[-3:]] == KEYS
        with pytest.raises(ValueError, match=r"shard .*/data/2.tar does not exist"):
            ShardSource(shards=f"{site.url}/data/2.tar").units()[0].fingerprint()
        site.status["/data/0.tar"] = [503] * 10
        with pytest.raises(storage.StorageError, match="503"):
            units[0].fingerprint()

    def test_s3_and_back(self, s3):
        s3.empty()
        originals = list(read_samples(golden("npz")))
        for number in range(2):
            write_shard(f"s3://data/in/{number}.tar", originals)
        source = as_source("s3://data/in")
        assert [unit.name for unit in source.units()] == ["0.tar", "1.tar"]
        samples, report = read(source)
        assert report.num_skipped == 0
        assert [attrs.asdict(sample) for sample in samples] == [attrs.asdict(sample) for sample in originals] * 2
        with pytest.raises(ValueError, match="comes twice"):
            write_shard("s3://data/out/a.tar", [originals[0], originals[0]])
        assert s3.keys() == ["in/0.tar", "in/1.tar"]
        missing, report = read(ShardSource(shards="s3://data/in/7.tar"))
        assert (missing, report.counts) == ([], {"unreadable_shard": 1})


class TestJsonLines:
    def test_fields(self, tmp_path):
        for name, content in (("a.jpg", JPEG), ("b.JPEG", JPEG), ("c.png", WEBP), ("d", PNG)):
            (tmp_path / name).write_bytes(content)
        path = write_lines(
            tmp_path / "a.jsonl",
            [
                {"image": "a.jpg", "caption": "one", "width": 8, "url": "https://host/a.jpg"},
                {"image": "b.JPEG", "captions": ["two", " ", "two", "three"], "key": "given"},
                b"",
                {"image": "c.png", "text": "four", "key": 17},
                {"image": str(tmp_path / "d"), "texts": ["five"], "key": "folder/name"},
                {"image": (tmp_path / "a.jpg").as_uri(), "caption": "\N{SNOWMAN} ümläut"},
            ],
        )
        samples, report = read(JsonLinesSource(path=path))
        assert report.num_skipped == 0
        assert [sample.key for sample in samples] == ["000000001", "given", "17", "folder/name", "000000006"]
        assert [sample.captions for sample in samples] == [
            ("one",),
            ("two", "three"),
            ("four",),
            ("five",),
            ("\N{SNOWMAN} ümläut",),
        ]
        assert [sample.image_extension for sample in samples] == ["jpg", "jpeg", "webp", "png", "jpg"]
        assert [sample.image for sample in samples] == [JPEG, JPEG, WEBP, PNG, JPEG]
        assert samples[0].url == "https://host/a.jpg"
        assert samples[0].metadata == {"image": "a.jpg", "width": 8}
        assert samples[1].url is None
        write_shard(tmp_path / "a.tar", samples)
        assert len(list(read_samples(tmp_path / "a.tar"))) == 5

    def test_an_image_root(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.png").write_bytes(PNG)
        path = write_lines(tmp_path / "lists" / "a.jsonl", [{"image": "a.png", "text": "x"}])
        assert len(read(JsonLinesSource(path=path, image_root=tmp_path / "images"))[0]) == 1
        assert read(JsonLinesSource(path=path))[1].counts == {"missing_image": 1}

    def test_relative_to_here(self, tmp_path, monkeypatch):
        (tmp_path / "a.png").write_bytes(PNG)
        write_lines(tmp_path / "a.jsonl", [{"image": "a.png", "text": "x"}])
        monkeypatch.chdir(tmp_path)
        assert len(read(JsonLinesSource(path="a.jsonl"))[0]) == 1

    BAD = (
        (b"{", "bad_json"),
        (b"[1]", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"image": "a.png", "text": "' + b"\xff" + b'"}', "bad_text"),
        (b'{"image": "a.png", "text": "\\ud800"}', "bad_text"),
        (b'{"image": "a.png", "n": ' + b"1" * 5000 + b"}", "bad_json"),
        ({"text": "x"}, "missing_image"),
        ({"image": "", "text": "x"}, "missing_image"),
        ({"image": 5, "text": "x"}, "missing_image"),
        ({"image": "no.png", "text": "x"}, "missing_image"),
        ({"image": "folder", "text": "x"}, "unreadable_image"),
        ({"image": "pipe", "text": "x"}, "unreadable_image"),
        ({"image": "a\0.png", "text": "x"}, "unreadable_image"),
        ({"image": "x" * 5000, "text": "x"}, "unreadable_image"),
        ({"image": "pipe:cat a.png", "text": "x"}, "missing_image"),
        ({"image": "nosuch://a/b.png", "text": "x"}, "refused_address"),
        ({"image": "a.svg", "text": "x"}, "image_not_an_image"),
        ({"image": "a.png"}, "no_caption"),
        ({"image": "a.png", "text": ""}, "no_caption"),
        ({"image": "a.png", "texts": []}, "no_caption"),
        ({"image": "a.png", "text": None}, "no_caption"),
        ({"image": "a.png", "text": 5}, "bad_json"),
        ({"image": "a.png", "text": "x", "key": "a.b"}, "bad_key"),
        ({"image": "a.png", "text": "x", "key": ""}, "bad_key"),
        ({"image": "a.png", "text": "x", "key": "__a"}, "bad_key"),
        ({"image": "a.png", "text": "x", "key": True}, "bad_key"),
        ({"image": "a.png", "text": "x", "key": 1.5}, "bad_key"),
    )

    @pytest.mark.parametrize(("line", "reason"), BAD, ids=[str(number) for number in range(len(BAD))])
    def test_a_bad_line_is_named_and_its_neighbours_are_read(self, tmp_path, line, reason):
        (tmp_path / "a.png").write_bytes(PNG)
        (tmp_path / "a.svg").write_bytes(b"<svg>")
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        good = {"image": "a.png", "text": "x"}
        source = JsonLinesSource(path=write_lines(tmp_path / "a.jsonl", [good, line, good]))
        samples, report = read(source)
        assert [sample.key for sample in samples] == ["000000001", "000000003"]
        assert names(report) == {reason: ["line 2"]}
        (unit,) = source.units()
        assert unit.count() == 3
        assert unit.fingerprint()

    def test_a_huge_line(self, tmp_path, monkeypatch):
        for module in (jsonl, records):
            monkeypatch.setattr(module, "MAX_LINE_BYTES", 1000)
        (tmp_path / "a.png").write_bytes(PNG)
        good = {"image": "a.png", "text": "x"}
        lines = [good, {**good, "more": "x" * 5500}, good, {**good, "more": "x" * 900}]
        path = write_lines(tmp_path / "a.jsonl", lines)
        for samples_per_shard in (1, 2, 9):
            source = JsonLinesSource(path=path, samples_per_shard=samples_per_shard)
            samples, report = read(source)
            assert [sample.key for sample in samples] == ["000000001", "000000003", "000000004"]
            assert names(report) == {"line_too_long": ["line 2"]}

    def test_keys_that_come_twice(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        lines = [{"image": name, "text": "x", "key": "k"} for name in ("no.png", "a.png", "a.png")]
        samples, report = read(JsonLinesSource(path=write_lines(tmp_path / "a.jsonl", lines)))
        assert [sample.key for sample in samples] == ["k"]
        assert names(report) == {"missing_image": ["line 1"], "duplicate_key": ["k"]}

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(
        lines=st.lists(st.sampled_from(["good", "bad", "blank"]), min_size=1, max_size=30),
        size=st.integers(1, 7),
        ending=st.sampled_from([b"\n", b"\r\n"]),
        last=st.booleans(),
    )
    def test_units_are_the_lines_in_parts(self, tmp_path, lines, size, ending, last):
        (tmp_path / "a.png").write_bytes(PNG)
        kinds = {"good": b'{"image": "a.png", "text": "x"}', "bad": b"{", "blank": b"  "}
        content = ending.join(kinds[line] for line in lines) + (ending if last else b"")
        (tmp_path / "a.jsonl").write_bytes(content)
        source = JsonLinesSource(path=tmp_path / "a.jsonl", samples_per_shard=size)
        if set(lines) == {"blank"}:
            with pytest.raises(ValueError, match="has no lines"):
                source.units()
            return
        units = source.units()
        counts = [unit.count() for unit in units]
        assert sum(counts) == len(lines) - lines.count("blank")
        assert set(counts[:-1]) <= {size}
        assert [unit.name for unit in units] == [f"{number:08d}.tar" for number in range(len(units))]
        samples, report = read(source)
        assert [sample.key for sample in samples] == [
            f"{number:09d}" for number, line in enumerate(lines, 1) if line == "good"
        ]
        assert list(report.keys("bad_json")) == [
            f"line {number}" for number, line in enumerate(lines, 1) if line == "bad"
        ]

    def test_reading_a_unit_reads_its_lines_alone(self, tmp_path, monkeypatch):
        (tmp_path / "a.png").write_bytes(PNG)
        lines = [{"image": "a.png", "text": f"{number}", "more": "x" * 1000} for number in range(2000)]
        path = write_lines(tmp_path / "a.jsonl", lines)
        unit = JsonLinesSource(path=path, samples_per_shard=100).units()[-1]
        parsed = []
        original = jsonl.parse_row
        monkeypatch.setattr(jsonl, "parse_row", lambda *given: parsed.append(given) or original(*given))
        assert [sample.captions for sample in unit.read(SkipReport())] == [
            (f"{number}",) for number in range(1900, 2000)
        ]
        assert len(parsed) == 100

    def test_fingerprints(self, tmp_path):
        for name in "ab":
            (tmp_path / f"{name}.png").write_bytes(PNG)
        lines = [{"image": f"{name}.png", "text": name} for name in "ab"]
        source = JsonLinesSource(path=write_lines(tmp_path / "a.jsonl", lines), samples_per_shard=1)
        before = [unit.fingerprint() for unit in source.units()]
        write_lines(tmp_path / "a.jsonl", [*lines, {"image": "c.png", "text": "c"}])
        appended = [unit.fingerprint() for unit in source.units()]
        assert appended[:2] == before
        (tmp_path / "c.png").write_bytes(PNG)
        os.utime(tmp_path / "a.png", (1, 1))
        changed = [unit.fingerprint() for unit in source.units()]
        assert [one == other for one, other in zip(appended, changed, strict=True)] == [False, True, False]
        write_lines(tmp_path / "a.jsonl", [lines[0], {**lines[1], "text": "B"}])
        assert source.units()[1].fingerprint() != before[1]

    def test_mistakes(self, tmp_path):
        with pytest.raises(ValueError, match=r"a.jsonl does not exist"):
            JsonLinesSource(path=tmp_path / "a.jsonl").units()
        with pytest.raises(ValueError, match=r"cannot be read: .*Is a directory"):
            JsonLinesSource(path=tmp_path).units()
        (tmp_path / "a.jsonl").write_bytes(b"\n\n")
        with pytest.raises(ValueError, match="has no lines"):
            JsonLinesSource(path=tmp_path / "a.jsonl").units()
        (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"{}\n"))
        with pytest.raises(ValueError, match=r"is compressed.*decompress it first"):
            JsonLinesSource(path=tmp_path / "a.jsonl").units()

    def test_the_file_vanishes_before_it_is_read(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"image": "a.png", "text": "x"}])
        (unit,) = JsonLinesSource(path=path).units()
        path.unlink()
        report = SkipReport(log=False)
        assert list(unit.read(report)) == []
        assert report.counts == {"unreadable_file": 1}
        with pytest.raises(ValueError, match=r"a\.jsonl cannot be read"):
            unit.fingerprint()

    def test_images_from_the_web(self, tmp_path, site):
        site.files |= {f"/{number}.png": encoded(8, 6, seed=number) for number in range(100)}
        site.files["/page.png"] = b"<html>"
        site.files["/page"] = b"<html>"
        site.status = {"/3.png": [503], "/4.png": [503, 503], "/5.png": [404], "/6.png": [403]}
        addresses = [f"{site.url}/{number}.png" for number in range(100)] + [f"{site.url}/page", "http://127.0.0.1:1/a"]
        path = write_lines(tmp_path / "a.jsonl", [{"image": address, "text": "x"} for address in addresses])
        samples, report = read(JsonLinesSource(path=path, hosts=["127.0.0.1"]))
        good = [number for number in range(100) if number not in (4, 5, 6)]
        assert [sample.url for sample in samples] == [addresses[number] for number in good]
        assert [sample.image for sample in samples] == [site.files[f"/{number}.png"] for number in good]
        assert "image" not in samples[0].metadata
        assert names(report) == {
            "unreachable_image": ["line 5", "line 102"],
            "missing_image": ["line 6"],
            "unreadable_image": ["line 7"],
            "image_not_an_image": ["line 101"],
        }

    def test_an_image_without_end(self, tmp_path, site, monkeypatch):
        monkeypatch.setattr(records, "MAX_IMAGE_BYTES", 1000)
        site.files["/a.png"] = PNG + bytes(1000)
        path = write_lines(tmp_path / "a.jsonl", [{"image": f"{site.url}/a.png", "text": "x"}])
        samples, report = read(JsonLinesSource(path=path, hosts=["127.0.0.1"]))
        assert (samples, report.counts) == ([], {"unreadable_image": 1})

    def test_stopping_early_stops_fetching(self, tmp_path, site):
        site.files["/a.png"] = PNG
        path = write_lines(tmp_path / "a.jsonl", [{"image": f"{site.url}/a.png", "text": "x"}] * 500)
        samples = JsonLinesSource(path=path, hosts=["127.0.0.1"]).units()[0].read(SkipReport())
        next(samples)
        samples.close()
        assert len(site.requests) < 100

    @pytest.mark.parametrize(
        ("image", "words"),
        [
            ("../secret.png", "is not below"),
            ("a/../../secret.png", "is not below"),
            ("/etc/passwd", "is not below"),
            ("file:///etc/passwd", "is not below"),
            ("FILE:///etc/passwd", "is not below"),
            ("s3://bucket/a.png", "is opened by s3://; if you trust the file, name s3 in `schemes` (--schemes)"),
            ("ftp://host/a.png", "is opened by ftp://"),
            ("local://a.png", "is opened by local://"),
            ("memory://a.png", "is opened by memory://"),
            ("s3://host/a.png::file:///etc/passwd", "is opened by s3://"),
            ("http://127.0.0.1/a.png", "if you trust it, name it in `hosts` of the source (--hosts)"),
            ("http://169.254.169.254/latest/meta-data", "no public address"),
            ("http://10.0.0.1/a.png", "no public address"),
            ("http://[::1]/a.png", "no public address"),
            ("http://[::ffff:127.0.0.1]/a.png", "no public address"),
            ("http://localhost:80/a.png", "this machine"),
            ("http://2130706433/a.png", "no public address"),
        ],
    )
    def test_what_a_strangers_file_may_not_name(self, tmp_path, image, words):
        (tmp_path / "secret.png").write_bytes(PNG)
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.png").write_bytes(PNG)
        lines = [{"image": image, "text": "x"}, {"image": "a.png", "text": "y"}]
        samples, report = read(JsonLinesSource(path=write_lines(tmp_path / "in" / "a.jsonl", lines)))
        assert [sample.captions for sample in samples] == [("y",)]
        assert names(report) == {"refused_address": ["line 1"]}
        assert words in report.named["refused_address"][0].detail

    def test_what_a_person_lets_it_name(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        (tmp_path / "in").mkdir()
        path = write_lines(tmp_path / "in" / "a.jsonl", [{"image": "../a.png", "text": "x"}])
        assert len(read(JsonLinesSource(path=path, inside=False))[0]) == 1
        (unit,) = JsonLinesSource(path=path, inside=False).units()
        before = unit.fingerprint()
        (tmp_path / "a.png").write_bytes(JPEG)
        assert unit.fingerprint() != before
        path = write_lines(tmp_path / "b.jsonl", [{"image": str(tmp_path / "a.png"), "text": "x"}])
        assert len(read(JsonLinesSource(path=path, image_root="/"))[0]) == 1

    def test_redirections_lead_to_no_other_host(self, tmp_path, site):
        site.files |= {"/a.png": PNG, "/moved.png": (site.url.replace("127.0.0.1", "localhost") + "/a.png").encode()}
        site.status = {"/moved.png": [302] * 9}
        path = write_lines(tmp_path / "a.jsonl", [{"image": f"{site.url}/moved.png", "text": "x"}])
        assert read(JsonLinesSource(path=path, hosts=["127.0.0.1"]))[1].counts == {"refused_address": 1}
        assert len(read(JsonLinesSource(path=path, hosts=["127.0.0.1", "localhost"]))[0]) == 1

    def test_what_addresses_hide_stays_in_the_file(self, tmp_path, site):
        site.files["/a.png?signature=hidden"] = PNG
        user = site.url.replace("://", "://user:s3@cret@")
        lines = [
            {"image": address, "text": "x"} for address in (f"{site.url}/a.png?signature=hidden", f"{user}/a.png?b")
        ]
        path = write_lines(
            tmp_path / "a.jsonl", [*lines, {"image": f"{site.url}/no.png?signature=hidden", "text": "x"}]
        )
        samples, report = read(JsonLinesSource(path=path, hosts=["127.0.0.1"]))
        assert [sample.url for sample in samples] == [f"{site.url}/a.png?signature=hidden"]
        assert report.num_skipped == 2
        assert "cret" not in repr(report)
        assert "hidden" not in repr(report)

    def test_s3(self, s3):
        s3.empty()
        lines = [{"image": f"images/{number}.png", "text": f"{number}"} for number in range(5)]
        with storage.atomic_write("s3://data/set/a.jsonl") as stream:
            stream.write(b"\n".join(json.dumps(line).encode() for line in lines))
        for number in range(4):
            with storage.atomic_write(f"s3://data/set/images/{number}.png") as stream:
                stream.write(PNG)
        source = as_source("s3://data/set/a.jsonl", samples_per_shard=2)
        units = source.units()
        assert [unit.count() for unit in units] == [2, 2, 1]
        assert len({unit.fingerprint() for unit in units}) == 3
        samples, report = read(source)
        assert [sample.captions for sample in samples] == [("0",), ("1",), ("2",), ("3",)]
        assert names(report) == {"missing_image": ["line 5"]}


class TestFolder:
    def folder(self, base: Path, files: dict[str, object]) -> Path:
        for name, content in files.items():
            path = base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, (bytes, str)) else json.dumps(content)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        return base

    def test_captions_beside_the_images(self, tmp_path):
        self.folder(
            tmp_path,
            {
                "b/one.jpg": JPEG,
                "b/one.txt": "\ufefffirst\n\n second \nfirst\n",
                "a.PNG": PNG,
                "a.JSON": {"captions": ["x", "y"], "licence": "CC0"},
                "c.webp": WEBP,
                "c.txt": "from the text",
                "c.json": {"caption": "from JSON", "licence": "CC0"},
                "notes.md": "x",
                ".hidden.jpg": JPEG,
                ".hidden.txt": "x",
                ".thumbnails/t.jpg": JPEG,
                "__MACOSX/b/one.jpg": b"x",
            },
        )
        samples, report = read(FolderSource(path=tmp_path))
        assert names(report) == {
            "hidden_file": [".hidden.jpg", ".hidden.txt", ".thumbnails/t.jpg", "__MACOSX/b/one.jpg"],
            "other_file": ["notes.md"],
        }
        assert [(sample.key, sample.captions) for sample in samples] == [
            ("a", ("x", "y")),
            ("b/one", ("first", "second")),
            ("c", ("from the text",)),
        ]
        assert [sample.image for sample in samples] == [PNG, JPEG, WEBP]
        assert [sample.metadata for sample in samples] == [
            {"licence": "CC0", "image": "a.PNG"},
            {"image": "b/one.jpg"},
            {"licence": "CC0", "image": "c.webp"},
        ]

    @pytest.mark.parametrize("table", ["metadata.jsonl", "captions.jsonl"])
    def test_captions_in_a_table(self, tmp_path, table):
        rows = [
            {"file_name": "b.jpg", "text": "one", "id": 5},
            {"file_name": "./a.jpg", "caption": "two"},
            {"file_name": "b.jpg", "text": "three", "id": 6},
            {"file_name": "no.jpg", "text": "x"},
            {"text": "x"},
            b"{",
            b"",
            {"file_name": "notes.txt", "text": "x"},
            {"file_name": "/etc/passwd", "text": "x"},
            {"file_name": "c.jpg", "text": ""},
        ]
        self.folder(tmp_path / "train", {"a.jpg": JPEG, "b.jpg": JPEG, "c.jpg": JPEG, "d.jpg": JPEG, "notes.txt": "x"})
        write_lines(tmp_path / "train" / table, rows)
        samples, report = read(FolderSource(path=tmp_path, samples_per_shard=1))
        assert [(sample.key, sample.captions) for sample in samples] == [
            ("train/a", ("two",)),
            ("train/b", ("one", "three")),
        ]
        assert samples[1].metadata == {"id": 5, "image": "train/b.jpg"}
        assert names(report) == {
            "missing_image": [f"line {number} of train/{table}" for number in (4, 5, 9)],
            "bad_json": [f"line 6 of train/{table}"],
            "image_not_an_image": [f"line 8 of train/{table}"],
            "no_caption": ["train/c.jpg", "train/d.jpg"],
            "other_file": ["train/notes.txt"],
        }

    BAD = (
        ({}, "no_caption"),
        ({"x.txt": " \n"}, "no_caption"),
        ({"x.txt": b"\xff"}, "bad_text"),
        ({"x.json": b"{"}, "bad_json"),
        ({"x.json": b"[]"}, "bad_json"),
        ({"x.json": {"caption": 5}}, "bad_json"),
        ({"x.json": b'{"caption": "\\udfff"}'}, "bad_text"),
        ({"x.json": {"id": 5}}, "no_caption"),
    )

    @pytest.mark.parametrize(("files", "reason"), BAD, ids=[str(number) for number in range(len(BAD))])
    def test_a_bad_caption_is_named_and_its_neighbours_are_read(self, tmp_path, files, reason):
        good = {"w.jpg": JPEG, "w.txt": "w", "y.jpg": JPEG, "y.txt": "y"}
        samples, report = read(FolderSource(path=self.folder(tmp_path, good | {"x.jpg": JPEG} | files)))
        assert [sample.key for sample in samples] == ["w", "y"]
        assert names(report) == {reason: ["x.jpg"]}

    def test_files_that_vanish_or_are_forbidden(self, tmp_path):
        names_ = "abcd"
        files = {f"{name}.jpg": JPEG for name in names_} | {f"{name}.txt": "x" for name in names_}
        (unit,) = FolderSource(path=self.folder(tmp_path, files)).units()
        (tmp_path / "a.jpg").unlink()
        (tmp_path / "b.txt").unlink()
        (tmp_path / "c.jpg").unlink()
        (tmp_path / "c.jpg").mkdir()
        report = SkipReport(log=False)
        assert [sample.key for sample in unit.read(report)] == ["d"]
        assert names(report) == {
            "missing_image": ["a.jpg"],
            "unreadable_caption": ["b.jpg"],
            "unreadable_image": ["c.jpg"],
        }

    def test_keys_are_unique_and_without_dots(self, tmp_path):
        images = ("v1.2/a.b.jpg", "v1.2/a_b.jpg", "v1.2/a.b.png", "__init__.jpg", "a b.jpg", "ä\n.jpg")
        files = dict.fromkeys(images, PNG) | {"v1.2/a.b.txt": "x", "v1.2/a_b.txt": "x"}
        files |= {"__init__.txt": "x", "a b.txt": "x", "ä\n.txt": "x"}
        samples, report = read(FolderSource(path=self.folder(tmp_path, files)))
        assert report.num_skipped == 0
        keys = [sample.key for sample in samples]
        assert keys[:3] == ["_init__", "a b", "v1_2/a_b"]
        assert len(set(keys)) == 6
        assert all(key.startswith("v1_2/a_b-") for key in keys[3:5])
        assert keys[5] == "ä_"
        path = write_shard(tmp_path / "new.tar", samples)
        assert [sample.key for sample in read_samples(path)] == keys

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @example(stems=[b"\xff\xfe", b"a"])
    @given(
        stems=st.lists(
            st.binary(min_size=1, max_size=20).filter(lambda stem: b"/" not in stem and b"\0" not in stem),
            min_size=1,
            max_size=6,
        )
    )
    def test_any_file_name_makes_a_sample_that_can_be_stored(self, tmp_path_factory, stems):
        base = tmp_path_factory.mktemp("names")
        for stem in stems:
            Path(os.fsdecode(os.fsencode(base) + b"/" + stem + b".jpg")).write_bytes(JPEG)
            Path(os.fsdecode(os.fsencode(base) + b"/" + stem + b".txt")).write_text("x")
        visible = {stem for stem in stems if not stem.startswith(b".")}
        if not visible:
            with pytest.raises(ValueError, match="holds no images"):
                FolderSource(path=base).units()
            return
        samples, report = read(FolderSource(path=base))
        assert report.counts.total() == report.counts["hidden_file"] == 2 * len(set(stems) - visible)
        assert len({sample.key for sample in samples}) == len(visible)
        write_shard(base / "new.tar", samples)
        with tarfile.open(base / "new.tar") as tar:
            assert len(tar.getnames()) == 3 * len(visible)
        assert [sample.key for sample in read_samples(base / "new.tar")] == [sample.key for sample in samples]

    def test_units_and_fingerprints(self, tmp_path):
        files = {f"{number}.jpg": JPEG for number in range(5)} | {f"{number}.txt": "x" for number in range(5)}
        source = FolderSource(path=self.folder(tmp_path, files), samples_per_shard=2)
        units = source.units()
        assert [(unit.name, unit.count()) for unit in units] == [
            ("00000000.tar", 2),
            ("00000001.tar", 2),
            ("00000002.tar", 1),
        ]
        before = [unit.fingerprint() for unit in units]
        assert [unit.fingerprint() for unit in source.units()] == before
        (tmp_path / "3.txt").write_text("longer")
        os.utime(tmp_path / "4.jpg", (1, 1))
        after = [unit.fingerprint() for unit in source.units()]
        assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]

    def test_mistakes(self, tmp_path):
        with pytest.raises(ValueError, match="holds no images"):
            FolderSource(path=self.folder(tmp_path, {"a.txt": "x"})).units()
        for path in (tmp_path / "no", tmp_path / "a.txt"):
            with pytest.raises(ValueError, match="is no folder; expected a folder of images with captions"):
                FolderSource(path=path).units()

    def test_a_broken_image_is_left_to_the_decoder(self, tmp_path):
        samples, _ = read(FolderSource(path=self.folder(tmp_path, {"a.jpg": JPEG[:50], "a.txt": "x"})))
        with pytest.raises(BadSampleError, match="image_truncated"):
            decode_image(samples[0].image)

    def test_s3(self, s3, tmp_path):
        s3.empty()
        self.folder(tmp_path, {"a/1.jpg": JPEG, "a/1.txt": "one", "2.jpg": JPEG, "3.jpg": JPEG})
        write_lines(tmp_path / "metadata.jsonl", [{"file_name": "2.jpg", "text": "two"}])
        for name in storage.find_files(tmp_path):
            with storage.atomic_write(f"s3://data/photos/{name}") as stream:
                stream.write((tmp_path / name).read_bytes())
        remote, report = read(as_source("s3://data/photos"))
        local, _ = read(as_source(tmp_path))
        assert [attrs.asdict(sample) for sample in remote] == [attrs.asdict(sample) for sample in local]
        assert [sample.captions for sample in remote] == [("two",), ("one",)]
        assert names(report) == {"no_caption": ["3.jpg"]}
