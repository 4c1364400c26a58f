"""JSON lines as a source: whole, damaged and remote."""

import gzip
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mobileclip.data import SkipReport
from mobileclip.datasets import JsonLinesSource, RowOptions, as_source
from mobileclip.datasets.sources import base
from tests.datasets.sources.reading import JPEG, PNG, WEBP, found, pictures, plant, read, write_lines, write_table
from tests.errors import fails

GOOD = {"image": "a.png", "text": "x"}
BAD = {
    "bad_json": (b"{", b"[1]", b"[" * 100_000, b'{"image": "a.png", "n": %b}' % (b"1" * 5000), {**GOOD, "text": 5}),
    "bad_text": (b'{"image": "a.png", "text": "\xff"}', b'{"image": "a.png", "text": "\\ud800"}'),
    "missing_image": ({"text": "x"}, {**GOOD, "image": 5}, {**GOOD, "image": "no.png"}),
    "unreadable_image": tuple({**GOOD, "image": one} for one in ("folder", "pipe", "a\0.png", "x" * 5000)),
    "refused_address": ({**GOOD, "image": "nosuch://a/b.png"},),
    "image_not_an_image": ({**GOOD, "image": "a.svg"},),
    "no_caption": ({"image": "a.png"}, {**GOOD, "text": ""}, {**GOOD, "text": None}),
    "bad_key": tuple({**GOOD, "key": key} for key in ("a.b", "", "__a", True, 1.5)),
}
# What a stranger's file may not name.
REFUSED = (
    *("../secret.png", "a/../../secret.png", "/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd"),
    *("s3://bucket/a.png", "ftp://host/a.png", "local://a.png", "memory://a.png", "s3://host/a::file:///etc/passwd"),
    *(f"http://{host}/a.png" for host in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:127.0.0.1]")),
    *("http://localhost:80/a.png", "http://2130706433/a.png"),
)


def listed(folder, *images):
    """Write a list that names images."""
    return write_lines(folder / "a.jsonl", [{"image": image, "text": "x"} for image in images])


@pytest.fixture(autouse=True)
def picture(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)


def test_fields(tmp_path):
    plant(tmp_path, {"a.jpg": JPEG, "b.JPEG": JPEG, "c.png": WEBP, "d": PNG})
    odd = [1, "one", [1, "one"], {"a": 1}, None, 2**70, "2020-01-01T00:00:00"]
    lines = [
        {"image": "a.jpg", "caption": "one", "width": 8, "url": "https://host/a.jpg"},
        {"image": "b.JPEG", "captions": ["two", " ", "two", "three"], "key": "given"},
        b"",
        {"image": "c.png", "text": "four", "key": 17},
        {"image": str(tmp_path / "d"), "texts": ["five"], "key": "folder/name"},
        {"image": (tmp_path / "a.jpg").as_uri(), "caption": "\N{SNOWMAN} ümläut"},
        *({"image": "d", "caption": ["x"] if number % 2 else "x", "n": n} for number, n in enumerate(odd)),
    ]
    samples, report = read(JsonLinesSource(path=write_lines(tmp_path / "a.jsonl", lines)))
    assert report.num_skipped == 0
    assert [(one.key, one.captions, one.image_extension, one.image) for one in samples[:5]] == [
        ("000000001", ("one",), "jpg", JPEG),
        ("given", ("two", "three"), "jpeg", JPEG),
        ("17", ("four",), "webp", WEBP),
        ("folder/name", ("five",), "png", PNG),
        ("000000006", ("\N{SNOWMAN} ümläut",), "jpg", JPEG),
    ]
    assert (samples[0].url, samples[1].url) == ("https://host/a.jpg", None)
    assert samples[0].metadata == {"image": "a.jpg", "width": 8}
    assert [(one.metadata["n"], one.captions) for one in samples[5:]] == [(n, ("x",)) for n in odd]


def test_an_image_root(tmp_path, monkeypatch):
    pictures(tmp_path / "images", 1)
    path = listed(tmp_path / "lists", "0.png")
    assert len(read(JsonLinesSource(path=path, image_root=tmp_path / "images"))[0]) == 1
    assert read(JsonLinesSource(path=path))[1].counts == {"missing_image": 1}
    monkeypatch.chdir(tmp_path / "images")
    path.rename("a.jsonl")
    assert len(read(JsonLinesSource(path="a.jsonl"))[0]) == 1


@pytest.mark.parametrize("content", [None, "folder", b"\n\n", gzip.compress(b"{}\n", mtime=0)])
def test_mistakes(tmp_path, content):
    path = tmp_path / "a.jsonl"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with fails(ValueError, "a.jsonl"):
        JsonLinesSource(path=path).units()


def test_a_bad_line_is_named_and_its_neighbours_are_read(tmp_path):
    plant(tmp_path, {"a.svg": b"<svg>", "folder/0.png": PNG})
    os.mkfifo(tmp_path / "pipe")
    bad = [(reason, line) for reason, those in BAD.items() for line in those]
    lines = [each for _, line in bad for each in (GOOD, line)]
    source = JsonLinesSource(path=write_lines(tmp_path / "a.jsonl", lines))
    left_out = {reason: [f"line {2 * n}" for n, (one, _) in enumerate(bad, 1) if one == reason] for reason in BAD}
    assert found(source, "key") == ([f"{number:09d}" for number in range(1, len(lines), 2)], left_out)
    (unit,) = source.units()
    assert unit.count() == len(lines)
    assert unit.fingerprint()


@pytest.mark.parametrize("size", [1, 2, 9])
def test_a_huge_line(tmp_path, size):
    long, longest = ({**GOOD, "more": "x" * length} for length in (2**23 - 100, 2 * 2**23 + 500))
    path = write_lines(tmp_path / "a.jsonl", [GOOD, longest, GOOD, long])
    keys = ["000000001", "000000003", "000000004"]
    assert found(JsonLinesSource(path=path, samples_per_shard=size), "key") == (keys, {"line_too_long": ["line 2"]})


def test_keys_that_come_twice(tmp_path):
    lines = [{"image": name, "text": "x", "key": "k"} for name in ("no.png", "a.png", "a.png")]
    source = JsonLinesSource(path=write_lines(tmp_path / "a.jsonl", lines))
    assert found(source, "key") == (["k"], {"missing_image": ["line 1"], "duplicate_key": ["k"]})


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lines=st.lists(st.sampled_from([json.dumps(GOOD).encode(), b"{", b"  "]), min_size=1, max_size=30),
    size=st.integers(1, 7),
    ending=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
)
def test_units_are_the_lines_in_parts(tmp_path, lines, size, ending, last):
    (tmp_path / "a.jsonl").write_bytes(ending.join(lines) + (ending if last else b""))
    source = JsonLinesSource(path=tmp_path / "a.jsonl", samples_per_shard=size)
    if set(lines) == {b"  "}:
        with fails(ValueError):
            source.units()
        return
    units = source.units()
    counts = [unit.count() for unit in units]
    assert sum(counts) == len(lines) - lines.count(b"  ")
    assert set(counts[:-1]) <= {size}
    assert [unit.name for unit in units] == [f"{number:08d}.tar" for number in range(len(units))]
    samples, report = read(source)
    good, bad = (
        [number for number, one in enumerate(lines, 1) if one == kind] for kind in (json.dumps(GOOD).encode(), b"{")
    )
    assert [sample.key for sample in samples] == [f"{number:09d}" for number in good]
    assert list(report.keys("bad_json")) == [f"line {number}" for number in bad]


def test_reading_a_unit_reads_its_lines_alone(tmp_path, monkeypatch):
    lines = [{"image": "a.png", "text": f"{number}", "more": "x" * 1000} for number in range(2000)]
    path = write_lines(tmp_path / "a.jsonl", lines)
    unit = JsonLinesSource(path=path, samples_per_shard=100).units()[-1]
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda *given, **choices: parsed.append(given) or loads(*given, **choices))
    assert [one.captions for one in unit.read(SkipReport())] == [(line["text"],) for line in lines[1900:]]
    assert len(parsed) == 100


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_images_from_the_web(tmp_path, site, suffix):
    site.files |= {f"/{number}.png": image for number, image in enumerate(pictures(tmp_path, 30))}
    good = [number for number in range(30) if number not in (4, 5, 6, 7)]
    expected = [(f"{site.url}/{number}.png", site.files[f"/{number}.png"]) for number in good]
    site.files |= {"/page": b"<html>", "/7.png": b"http://10.0.0.1/7.png"}
    site.status = {"/3.png": [503], "/4.png": [503] * 2, "/5.png": [404], "/6.png": [403], "/7.png": [302] * 9}
    addresses = [f"{site.url}/{number}.png" for number in range(30)] + [f"{site.url}/page", "http://127.0.0.1:1/a"]
    write, row = (write_lines, "line") if suffix == "jsonl" else (write_table, "row")
    path = write(tmp_path / f"a.{suffix}", [{"image": address, "text": "x"} for address in addresses])
    samples, left_out = found(as_source(path, rows=RowOptions(hosts=("127.0.0.1",))), "url", "image")
    assert samples == expected
    assert left_out == {
        "unreachable_image": [f"{row} 5", f"{row} 32"],
        "missing_image": [f"{row} 6"],
        "unreadable_image": [f"{row} 7"],
        "refused_address": [f"{row} 8"],
        "image_not_an_image": [f"{row} 31"],
    }
    assert read(as_source(path))[1].counts == {"refused_address": 32}


def test_what_a_strangers_file_may_not_name(tmp_path):
    plant(tmp_path, dict.fromkeys(("secret.png", "in/a.png"), PNG))
    source = JsonLinesSource(path=listed(tmp_path / "in", *REFUSED, "a.png"))
    left_out = {"refused_address": [f"line {number}" for number in range(1, len(REFUSED) + 1)]}
    assert found(source, "metadata") == ([{"image": "a.png"}], left_out)


def test_stopping_early_stops_fetching(tmp_path, site):
    site.files["/a.png"] = PNG
    path = listed(tmp_path, *[f"{site.url}/a.png"] * 200)
    samples = JsonLinesSource(path=path, hosts=["127.0.0.1"]).units()[0].read(SkipReport())
    next(samples)
    samples.close()
    assert len(site.requests) < 100


def test_lines_that_are_appended_leave_the_units_before_as_they_are(tmp_path):
    source = JsonLinesSource(path=listed(tmp_path, "a.png", "b.png"), samples_per_shard=1)
    before = [unit.fingerprint() for unit in source.units()]
    listed(tmp_path, "a.png", "b.png", "c.png")
    assert [unit.fingerprint() for unit in source.units()][:2] == before


def test_what_a_person_lets_it_name(tmp_path):
    source = JsonLinesSource(path=listed(tmp_path / "in", "../a.png"), inside=False)
    assert len(read(source)[0]) == 1
    before = source.units()[0].fingerprint()
    (tmp_path / "a.png").write_bytes(JPEG)
    assert source.units()[0].fingerprint() != before
    path = listed(tmp_path, str(tmp_path / "a.png"))
    assert len(read(JsonLinesSource(path=path, image_root="/"))[0]) == 1


def test_redirections_lead_to_no_other_host_and_images_have_an_end(tmp_path, site, monkeypatch):
    site.files |= {"/a.png": PNG, "/moved.png": (site.url.replace("127.0.0.1", "localhost") + "/a.png").encode()}
    site.status = {"/moved.png": [302] * 9}
    path = listed(tmp_path, f"{site.url}/moved.png")
    assert read(JsonLinesSource(path=path, hosts=["127.0.0.1"]))[1].counts == {"refused_address": 1}
    source = JsonLinesSource(path=path, hosts=["127.0.0.1", "localhost"])
    assert len(read(source)[0]) == 1
    monkeypatch.setattr(base, "MAX_IMAGE_BYTES", 1000)
    site.files["/a.png"] = PNG + bytes(1000)
    assert read(source)[1].counts == {"unreadable_image": 1}


def test_what_addresses_hide_stays_in_the_file(tmp_path, site):
    site.files["/a.png?signature=hidden"] = PNG
    user = site.url.replace("://", "://user:s3@cret@")
    addresses = [f"{site.url}/a.png?signature=hidden", f"{user}/a.png?b", f"{site.url}/no.png?signature=hidden"]
    samples, report = read(JsonLinesSource(path=listed(tmp_path, *addresses), hosts=["127.0.0.1"]))
    assert ([sample.url for sample in samples], report.num_skipped) == (addresses[:1], 2)
    assert not any(secret in repr(report) for secret in ("cret", "hidden"))
