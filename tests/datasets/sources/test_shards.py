"""Shards as a source: whole, damaged and remote."""

import gzip
import os
import shutil
from pathlib import Path

import attrs
import pytest

from mobileclip import storage
from mobileclip.data import read_samples, write_shard
from mobileclip.datasets import ShardSource, as_source
from tests.data.made_samples import golden, write_raw
from tests.datasets.sources.reading import JPEG, KEYS, PNG, found, plant, read
from tests.errors import fails


def test_names_and_patterns(tmp_path):
    content = Path(golden("npz")).read_bytes()
    packed = gzip.compress(content)
    plant(tmp_path, {"0.tar": content, "1.tar": content, "2.tar.gz": packed, "3.tgz": packed})
    source = ShardSource(shards=f"{tmp_path}/{{0..1}}.tar::{tmp_path}/2.tar.gz::{tmp_path}/3.tgz")
    units = source.units()
    counts = [3, 3, None, None]
    assert [(unit.name, unit.count()) for unit in units] == [(f"{n}.tar", count) for n, count in enumerate(counts)]
    assert units[0].size() == len(content)
    assert found(source, "key") == (KEYS * 4, {})


PATHS = [
    (["a/0.tar", "a/1.tar"], ["0.tar", "1.tar"]),
    (["a/0.tar", "b/0.tar.gz"], ["a/0.tar", "b/0.tar"]),
    (["a/0.tar", "a/deep/0.tar"], ["0.tar", "deep/0.tar"]),
    (["s3://one/x/0.tar", "s3://one/y/0.tar"], ["x/0.tar", "y/0.tar"]),
    (["s3://one/x/0.tar", "s3://two/x/0.tar"], ["one/x/0.tar", "two/x/0.tar"]),
    (["https://h/x%20y/0.tar?a=b/c", "https://h/z/0.tar"], ["x y/0.tar", "z/0.tar"]),
    (["pipe:cat /x/y/0.tar", "a/1.tar"], ["0.tar", "1.tar"]),
]


@pytest.mark.parametrize(("paths", "expected"), PATHS)
def test_shards_are_named_by_their_paths_below_the_folder_common_to_all(tmp_path, monkeypatch, paths, expected):
    monkeypatch.chdir(tmp_path)
    plant(tmp_path, {path: b"" for path in paths if ":" not in path})
    assert [unit.name for unit in ShardSource(shards=paths).units()] == expected


def test_a_shard_that_vanishes_has_no_fingerprint(tmp_path):
    (unit,) = ShardSource(shards=shutil.copy(golden("npz"), tmp_path / "a.tar")).units()
    Path(unit.path).unlink()
    with fails(ValueError, "a.tar"):
        unit.fingerprint()


def test_a_pipe():
    source = ShardSource(shards=f"pipe:cat {golden('npz')}")
    (unit,) = source.units()
    assert (unit.name, unit.count(), unit.size()) == ("datacompdr_npz.tar", None, None)
    assert unit.fingerprint() == unit.path
    assert found(source, "key") == (KEYS, {})


MISTAKES = [
    (["0.tar", "0.tar.gz"], ("0.tar", "0.tar.gz")),
    (["a/0.tar", ".hidden/0.tar"], (".hidden",)),
    ("{5..9}.tar", ("5.tar",)),
    ("*.tar", ("*.tar",)),
    ("empty", ()),
    ("pipe:cat - | gunzip", ()),
    ("nosuch://a/{0..2}.tar", ("nosuch://",)),
]


@pytest.mark.parametrize(("shards", "named"), MISTAKES)
def test_mistakes(tmp_path, monkeypatch, shards, named):
    monkeypatch.chdir(tmp_path)
    whole = Path(golden("npz")).read_bytes()
    plant(tmp_path, {f"{folder}/0.tar": whole for folder in (".", "a", ".hidden")} | {"0.tar.gz": gzip.compress(whole)})
    Path("empty").mkdir()
    with fails(ValueError, *named):
        ShardSource(shards=shards).units()


def test_of_samples_with_one_key_the_first_usable_one_counts(tmp_path):
    members = [("a.jpg", JPEG), ("b.txt", b"one"), ("b.jpg", JPEG)]  # the first without a caption
    members += [("a.txt", b"two"), ("a.png", PNG), ("b.jpg", JPEG), ("b.txt", b"three")]
    left_out = {"missing_member": ["a"], "duplicate_key": ["b"]}
    source = ShardSource(shards=write_raw(tmp_path / "a.tar", members))
    assert found(source, "key", "captions") == ([("b", ("one",)), ("a", ("two",))], left_out)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "forbidden"])
def test_a_damaged_shard_is_named_and_ends_nothing(tmp_path, damage):
    path, whole = tmp_path / "0.tar", Path(golden("npz")).read_bytes()
    path.write_bytes({"empty": b"", "text": b"no tar" * 500, "cut": whole[:20_000], "forbidden": whole}[damage])
    shutil.copy(golden("npz"), tmp_path / "1.tar")
    if damage == "forbidden":
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    source = ShardSource(shards=f"{tmp_path}/{{0..1}}.tar")
    assert [unit.count() for unit in source.units()] == [None, 3]
    keys, left_out = found(source, "key")
    assert keys[-3:] == KEYS
    assert left_out.keys() & {"truncated_shard", "unreadable_shard"}


def test_a_web_server(site):
    site.files["/data/0.tar"] = site.files["/data/1.tar"] = Path(golden("npz")).read_bytes()
    source = ShardSource(shards=f"{site.url}/data/{{0..1}}.tar")
    site.cut_after = [10_000]
    assert found(source, "key") == (KEYS * 2, {})
    units = source.units()
    assert [(unit.name, unit.count()) for unit in units] == [("0.tar", None), ("1.tar", None)]
    assert units[0].fingerprint() == units[1].fingerprint()
    site.cut_after = [10_000, 0, 0, 0]
    samples, report = read(source)
    assert ([sample.key for sample in samples[-3:]], report.counts) == (KEYS, {"connection_failed": 1})
    with fails(ValueError, "/data/2.tar"):
        ShardSource(shards=f"{site.url}/data/2.tar").units()[0].fingerprint()
    site.status["/data/0.tar"] = [503] * 10
    with fails(storage.StorageError, "503"):
        units[0].fingerprint()


def test_s3_and_back(s3):
    s3.objects.clear()
    originals = list(read_samples(golden("npz")))
    for number in range(2):
        write_shard(f"s3://data/in/{number}.tar", originals)
    source = as_source("s3://data/in")
    assert [unit.name for unit in source.units()] == ["0.tar", "1.tar"]
    samples, report = read(source)
    assert report.num_skipped == 0
    assert [attrs.asdict(sample) for sample in samples] == [attrs.asdict(sample) for sample in originals] * 2
    with fails(ValueError):
        write_shard("s3://data/out/a.tar", [originals[0], originals[0]])
    assert sorted(s3.objects) == ["data/in/0.tar", "data/in/1.tar"]
    missing, report = read(ShardSource(shards="s3://data/in/7.tar"))
    assert (missing, report.counts) == ([], {"unreadable_shard": 1})
