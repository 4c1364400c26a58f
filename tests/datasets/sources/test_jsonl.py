"""JSON lines as a source: whole, damaged and remote."""

import gzip
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mobileclip.data import SkipReport
from mobileclip.datasets import JsonLinesSource, RowOptions, as_source
from mobileclip.datasets.sources import base
from tests.data.made_samples import encoded
from tests.datasets.sources.reading import JPEG, PNG, WEBP, names, read, write_lines, write_table
from tests.errors import fails

GOOD = {"image": "a.png", "text": "x"}
BAD = {
    "bad_json": (
        b"{",
        b"[1]",
        b"[" * 100_000,
        b'{"image": "a.png", "n": ' + b"1" * 5000 + b"}",
        {**GOOD, "text": 5},
    ),
    "bad_text": (b'{"image": "a.png", "text": "\xff"}', b'{"image": "a.png", "text": "\\ud800"}'),
    "missing_image": ({"text": "x"}, {**GOOD, "image": 5}, {**GOOD, "image": "no.png"}),
    "unreadable_image": tuple({"image": one, "text": "x"} for one in ("folder", "pipe", "a\0.png", "x" * 5000)),
    "refused_address": ({**GOOD, "image": "nosuch://a/b.png"},),
    "image_not_an_image": ({**GOOD, "image": "a.svg"},),
    "no_caption": ({"image": "a.png"}, {**GOOD, "text": ""}, {**GOOD, "text": None}),
    "bad_key": tuple({"image": "a.png", "text": "x", "key": key} for key in ("a.b", "", "__a", True, 1.5)),
}


class TestJsonLines:
    def test_fields(self, tmp_path):
        for name, content in (("a.jpg", JPEG), ("b.JPEG", JPEG), ("c.png", WEBP), ("d", PNG)):
            (tmp_path / name).write_bytes(content)
        odd = [1, "one", [1, "one"], {"a": 1}, None, 2**70, "2020-01-01T00:00:00"]
        path = write_lines(
            tmp_path / "a.jsonl",
            [
                {"image": "a.jpg", "caption": "one", "width": 8, "url": "https://host/a.jpg"},
                {"image": "b.JPEG", "captions": ["two", " ", "two", "three"], "key": "given"},
                b"",
                {"image": "c.png", "text": "four", "key": 17},
                {"image": str(tmp_path / "d"), "texts": ["five"], "key": "folder/name"},
                {"image": (tmp_path / "a.jpg").as_uri(), "caption": "\N{SNOWMAN} ümläut"},
                *({"image": "d", "caption": ["x"] if number % 2 else "x", "n": n} for number, n in enumerate(odd)),
            ],
        )
        samples, report = read(JsonLinesSource(path=path))
        assert report.num_skipped == 0
        assert [(sample.key, sample.captions, sample.image_extension, sample.image) for sample in samples[:5]] == [
            ("000000001", ("one",), "jpg", JPEG),
            ("given", ("two", "three"), "jpeg", JPEG),
            ("17", ("four",), "webp", WEBP),
            ("folder/name", ("five",), "png", PNG),
            ("000000006", ("\N{SNOWMAN} ümläut",), "jpg", JPEG),
        ]
        assert (samples[0].url, samples[1].url) == ("https://host/a.jpg", None)
        assert samples[0].metadata == {"image": "a.jpg", "width": 8}
        assert [sample.metadata["n"] for sample in samples[5:]] == odd
        assert {sample.captions for sample in samples[5:]} == {("x",)}

    def test_an_image_root(self, tmp_path, monkeypatch):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.png").write_bytes(PNG)
        path = write_lines(tmp_path / "lists" / "a.jsonl", [{"image": "a.png", "text": "x"}])
        assert len(read(JsonLinesSource(path=path, image_root=tmp_path / "images"))[0]) == 1
        assert read(JsonLinesSource(path=path))[1].counts == {"missing_image": 1}
        monkeypatch.chdir(tmp_path / "images")
        path.rename("a.jsonl")
        assert len(read(JsonLinesSource(path="a.jsonl"))[0]) == 1

    @pytest.mark.parametrize("content", [None, "folder", b"\n\n", gzip.compress(b"{}\n", mtime=0)])
    def test_mistakes(self, tmp_path, content):
        path = tmp_path / "a.jsonl"
        if content == "folder":
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)
        with fails(ValueError, "a.jsonl"):
            JsonLinesSource(path=path).units()

    @pytest.mark.parametrize(
        ("reason", "number"), [(one, place) for one, rows in BAD.items() for place in range(len(rows))]
    )
    def test_a_bad_line_is_named_and_its_neighbours_are_read(self, tmp_path, reason, number):
        (tmp_path / "a.png").write_bytes(PNG)
        (tmp_path / "a.svg").write_bytes(b"<svg>")
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        path = write_lines(tmp_path / "a.jsonl", [GOOD, BAD[reason][number], GOOD])
        samples, report = read(JsonLinesSource(path=path))
        assert [sample.key for sample in samples] == ["000000001", "000000003"]
        assert names(report) == {reason: ["line 2"]}
        (unit,) = JsonLinesSource(path=path).units()
        assert unit.count() == 3
        assert unit.fingerprint()

    def test_a_huge_line(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        long, longest = ({**GOOD, "more": "x" * size} for size in (2**23 - 100, 2 * 2**23 + 500))
        lines = [GOOD, longest, GOOD, long]
        path = write_lines(tmp_path / "a.jsonl", lines)
        for size in (1, 2, 9):
            samples, report = read(JsonLinesSource(path=path, samples_per_shard=size))
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
        good, bad = ([number for number, line in enumerate(lines, 1) if line == kind] for kind in ("good", "bad"))
        assert [sample.key for sample in samples] == [f"{number:09d}" for number in good]
        assert list(report.keys("bad_json")) == [f"line {number}" for number in bad]

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

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_images_from_the_web(self, tmp_path, site, suffix):
        site.files |= {f"/{number}.png": encoded(8, 6, seed=number) for number in range(30)}
        site.files |= {"/page.png": b"<html>", "/page": b"<html>", "/7.png": b"http://10.0.0.1/7.png"}
        site.status = {"/3.png": [503], "/4.png": [503] * 2, "/5.png": [404], "/6.png": [403], "/7.png": [302] * 9}
        addresses = [f"{site.url}/{number}.png" for number in range(30)] + [f"{site.url}/page", "http://127.0.0.1:1/a"]
        write, row = (write_lines, "line") if suffix == "jsonl" else (write_table, "row")
        path = write(tmp_path / f"a.{suffix}", [{"image": address, "text": "x"} for address in addresses])
        samples, report = read(as_source(path, rows=RowOptions(hosts=("127.0.0.1",))))
        good = [number for number in range(30) if number not in (4, 5, 6, 7)]
        assert [sample.url for sample in samples] == [addresses[number] for number in good]
        assert [sample.image for sample in samples] == [site.files[f"/{number}.png"] for number in good]
        assert names(report) == {
            "unreachable_image": [f"{row} 5", f"{row} 32"],
            "missing_image": [f"{row} 6"],
            "unreadable_image": [f"{row} 7"],
            "refused_address": [f"{row} 8"],
            "image_not_an_image": [f"{row} 31"],
        }
        assert read(as_source(path))[1].counts == {"refused_address": 32}

    @pytest.mark.parametrize(
        "image",
        [
            *("../secret.png", "a/../../secret.png", "/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd"),
            *("s3://bucket/a.png", "ftp://host/a.png", "local://a.png", "memory://a.png"),
            *(
                "s3://host/a.png::file:///etc/passwd",
                "http://127.0.0.1/a.png",
                "http://169.254.169.254/latest/meta-data",
            ),
            *(
                "http://10.0.0.1/a.png",
                "http://[::1]/a.png",
                "http://[::ffff:127.0.0.1]/a.png",
                "http://localhost:80/a.png",
            ),
            "http://2130706433/a.png",
        ],
    )
    def test_what_a_strangers_file_may_not_name(self, tmp_path, image):
        (tmp_path / "secret.png").write_bytes(PNG)
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.png").write_bytes(PNG)
        lines = [{"image": image, "text": "x"}, {"image": "a.png", "text": "y"}]
        samples, report = read(JsonLinesSource(path=write_lines(tmp_path / "in" / "a.jsonl", lines)))
        assert [sample.captions for sample in samples] == [("y",)]
        assert names(report) == {"refused_address": ["line 1"]}

    def test_stopping_early_stops_fetching(self, tmp_path, site):
        site.files["/a.png"] = PNG
        path = write_lines(tmp_path / "a.jsonl", [{"image": f"{site.url}/a.png", "text": "x"}] * 200)
        samples = JsonLinesSource(path=path, hosts=["127.0.0.1"]).units()[0].read(SkipReport())
        next(samples)
        samples.close()
        assert len(site.requests) < 100

    def test_lines_that_are_appended_leave_the_units_before_as_they_are(self, tmp_path):
        lines = [{"image": f"{name}.png", "text": name} for name in "abc"]
        source = JsonLinesSource(path=write_lines(tmp_path / "a.jsonl", lines[:2]), samples_per_shard=1)
        before = [unit.fingerprint() for unit in source.units()]
        write_lines(tmp_path / "a.jsonl", lines)
        assert [unit.fingerprint() for unit in source.units()][:2] == before

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

    def test_redirections_lead_to_no_other_host_and_images_have_an_end(self, tmp_path, site, monkeypatch):
        site.files |= {"/a.png": PNG, "/moved.png": (site.url.replace("127.0.0.1", "localhost") + "/a.png").encode()}
        site.status = {"/moved.png": [302] * 9}
        path = write_lines(tmp_path / "a.jsonl", [{"image": f"{site.url}/moved.png", "text": "x"}])
        assert read(JsonLinesSource(path=path, hosts=["127.0.0.1"]))[1].counts == {"refused_address": 1}
        source = JsonLinesSource(path=path, hosts=["127.0.0.1", "localhost"])
        assert len(read(source)[0]) == 1
        monkeypatch.setattr(base, "MAX_IMAGE_BYTES", 1000)
        site.files["/a.png"] = PNG + bytes(1000)
        assert read(source)[1].counts == {"unreadable_image": 1}

    def test_what_addresses_hide_stays_in_the_file(self, tmp_path, site):
        site.files["/a.png?signature=hidden"] = PNG
        user = site.url.replace("://", "://user:s3@cret@")
        addresses = [f"{site.url}/a.png?signature=hidden", f"{user}/a.png?b", f"{site.url}/no.png?signature=hidden"]
        path = write_lines(tmp_path / "a.jsonl", [{"image": address, "text": "x"} for address in addresses])
        samples, report = read(JsonLinesSource(path=path, hosts=["127.0.0.1"]))
        assert [sample.url for sample in samples] == addresses[:1]
        assert report.num_skipped == 2
        assert "cret" not in repr(report)
        assert "hidden" not in repr(report)
