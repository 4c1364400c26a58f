"""JSON lines as a source: whole, damaged and remote."""

import gzip
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mobileclip import storage
from mobileclip.data import SkipReport, read_samples, write_shard
from mobileclip.datasets import JsonLinesSource, RowOptions, as_source
from mobileclip.datasets.sources import base
from tests.data.made_samples import encoded
from tests.datasets.sources.reading import JPEG, PNG, WEBP, names, read, write_lines, write_table
from tests.errors import fails


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

    def test_a_field_of_several_types(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        values = [1, "one", [1, "one"], {"a": 1}, None, 2**70, "2020-01-01T00:00:00"]
        lines = [{"image": "a.png", "caption": "x" if number % 2 else ["x"], "n": n} for number, n in enumerate(values)]
        samples, report = read(JsonLinesSource(path=write_lines(tmp_path / "a.jsonl", lines)))
        assert report.num_skipped == 0
        assert [sample.metadata["n"] for sample in samples] == values
        assert {sample.captions for sample in samples} == {("x",)}

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

    def test_a_huge_line(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        good = {"image": "a.png", "text": "x"}
        lines = [good, {**good, "more": "x" * (2 * 2**23 + 500)}, good, {**good, "more": "x" * (2**23 - 100)}]
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

    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
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
            with fails(ValueError):
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
        parsed, loads = [], json.loads
        monkeypatch.setattr(json, "loads", lambda *given, **choices: parsed.append(given) or loads(*given, **choices))
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
        with fails(ValueError, "a.jsonl"):
            JsonLinesSource(path=tmp_path / "a.jsonl").units()
        with fails(ValueError, "Is a directory"):
            JsonLinesSource(path=tmp_path).units()
        (tmp_path / "a.jsonl").write_bytes(b"\n\n")
        with fails(ValueError):
            JsonLinesSource(path=tmp_path / "a.jsonl").units()
        (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"{}\n"))
        with fails(ValueError):
            JsonLinesSource(path=tmp_path / "a.jsonl").units()

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_images_from_the_web(self, tmp_path, site, suffix):
        site.files |= {f"/{number}.png": encoded(8, 6, seed=number) for number in range(30)}
        site.files |= {"/page.png": b"<html>", "/page": b"<html>", "/7.png": b"http://10.0.0.1/7.png"}
        site.status = {"/3.png": [503], "/4.png": [503] * 2, "/5.png": [404], "/6.png": [403], "/7.png": [302] * 9}
        addresses = [f"{site.url}/{number}.png" for number in range(30)] + [f"{site.url}/page", "http://127.0.0.1:1/a"]
        if suffix == "parquet":
            import pyarrow as pa  # noqa: F401
        write = write_lines if suffix == "jsonl" else write_table
        path = write(tmp_path / f"a.{suffix}", [{"image": address, "text": "x"} for address in addresses])
        samples, report = read(as_source(path, rows=RowOptions(hosts=("127.0.0.1",))))
        good = [number for number in range(30) if number not in (4, 5, 6, 7)]
        assert [sample.url for sample in samples] == [addresses[number] for number in good]
        assert [sample.image for sample in samples] == [site.files[f"/{number}.png"] for number in good]
        assert "image" not in samples[0].metadata
        row = "line" if suffix == "jsonl" else "row"
        assert names(report) == {
            "unreachable_image": [f"{row} 5", f"{row} 32"],
            "missing_image": [f"{row} 6"],
            "unreadable_image": [f"{row} 7"],
            "refused_address": [f"{row} 8"],
            "image_not_an_image": [f"{row} 31"],
        }
        assert read(as_source(path))[1].counts == {"refused_address": 32}

    def test_an_image_without_end(self, tmp_path, site, monkeypatch):
        monkeypatch.setattr(base, "MAX_IMAGE_BYTES", 1000)
        site.files["/a.png"] = PNG + bytes(1000)
        path = write_lines(tmp_path / "a.jsonl", [{"image": f"{site.url}/a.png", "text": "x"}])
        samples, report = read(JsonLinesSource(path=path, hosts=["127.0.0.1"]))
        assert (samples, report.counts) == ([], {"unreadable_image": 1})

    def test_stopping_early_stops_fetching(self, tmp_path, site):
        site.files["/a.png"] = PNG
        path = write_lines(tmp_path / "a.jsonl", [{"image": f"{site.url}/a.png", "text": "x"}] * 200)
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
            ("http://localhost:80/a.png", "no public address"),
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
        s3.objects.clear()
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
