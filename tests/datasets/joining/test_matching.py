"""Matching by hashed names: the same as looking each one up, in one bucket and in many, in memory and on the disk."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mobileclip.data.samples.limits import SAMPLE_LIMITS
from mobileclip.datasets.joining import (
    MATCH,
    NAME,
    NAMES,
    PLACE,
    PLACES,
    ImageIndex,
    MatchCounts,
    ShardMetadata,
    match_images,
    match_names,
    name_hash,
    read_matches,
    write_records,
)
from mobileclip.progress import Progress

ABOUT = ShardMetadata(shard="", by="key", fingerprint="")


def places(names, first=1, sha256=0):
    found = np.zeros(len(names), PLACE)
    for number, name in enumerate(names):
        found[number]["high"], found[number]["low"] = name_hash(name)
        found[number]["start"], found[number]["sha256"] = first + number, sha256
    return found


def asks(names):
    return np.array([name_hash(name) if name else (0, 0) for name in names], NAME)


def write_index(folder, images):
    shards = tuple(
        write_records(folder, PLACES, ShardMetadata(shard=f"i{number}", by="key", fingerprint=""), part)
        for number, part in enumerate(images)
    )
    return ImageIndex(folder=folder, by="key", shards=shards, limits=SAMPLE_LIMITS)


def write_names(folder, shards):
    return [
        write_records(folder, NAMES, ShardMetadata(shard=f"r{number}", by="key", fingerprint=""), asks(names))
        for number, names in enumerate(shards)
    ]


def matched(folder, index, names, wanted, *, threshold=0, **choices):
    (folder / "scratch").mkdir(exist_ok=True)
    progress = Progress("matching", total=None, console=None)
    path = folder / "scratch" / "matches"
    return match_images(index, names, wanted, path, threshold=threshold, progress=progress, **choices)


@pytest.mark.parametrize("bucket_bytes", [100, 1000, 2**26])
def test_every_sample_gets_the_first_image_of_its_name(tmp_path, bucket_bytes):
    rng = np.random.default_rng(0)
    images = [[f"k{number}" for number in rng.integers(0, 300, 60)] for _ in range(5)]
    samples = [[f"k{number}" if number else "" for number in rng.integers(0, 400, 50)] for _ in range(4)]
    index = write_index(tmp_path, [places(names) for names in images])
    wanted = np.array([True, False, True, True])
    counts, extents = matched(tmp_path, index, write_names(tmp_path, samples), wanted, bucket_bytes=bucket_bytes)
    first = {}
    for shard, names in enumerate(images):
        for row, name in enumerate(names):
            first.setdefault(name, (shard, row + 1))
    expected = {
        source: [(order, *first[name]) for order, name in enumerate(names) if name in first]
        for source, names in enumerate(samples)
        if wanted[source]
    }
    own = {source: read_matches(tmp_path / "scratch" / "matches", extent) for source, extent in extents.items()}
    found = {
        source: list(zip(*(some[f].tolist() for f in ("order", "shard", "start")), strict=True))
        for source, some in own.items()
    }
    assert found == expected
    every = [name for names in samples for name in names if name in first]
    several = sum(sum(names.count(name) for names in images) > 1 for name in first)
    assert counts.counts == MatchCounts(
        keys=len(first), repeated_keys=several, asked=len(every), used_keys=len(set(every))
    )
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["matches"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30),
)
def test_names_that_share_half_of_their_hash_are_told_apart(images, samples):
    records = np.zeros(len(images), MATCH)
    for number, (high, low) in enumerate(images):
        records[number]["high"], records[number]["low"], records[number]["start"] = high, low, number
    found, counts = match_names(records, np.array(samples, NAME))
    assert counts.keys == len(set(images))
    assert counts.repeated_keys == sum(images.count(one) > 1 for one in set(images))
    assert found.tolist() == [images.index(one) if one in images else -1 for one in samples]


def test_placeholders_are_counted_by_their_keys(tmp_path):
    images = [
        places(["a", "b", "a"], sha256=7),
        places(["c", "d"], sha256=9),
        places(["e", "b"], sha256=7),
        places(["f"] * 5, sha256=8),
    ]
    index = write_index(tmp_path, images)
    found = matched(tmp_path, index, [], np.zeros(0, bool), threshold=2)[0].placeholders
    assert [(one.sha256, one.num_keys, one.shard) for one in found] == [
        ("0000000000000007", 3, "i0"),
        ("0000000000000009", 2, "i1"),
    ]
    assert [one.example for one in found] == ["", ""], "the shards are gone"
    assert matched(tmp_path, index, [], np.zeros(0, bool), threshold=4)[0].placeholders == ()
