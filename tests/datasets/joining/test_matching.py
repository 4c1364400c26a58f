"""Matching by hashed names: the same as looking each one up, in one bucket and in many, in memory and on the disk."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mobileclip.data.samples.limits import SAMPLE_LIMITS
from mobileclip.datasets import joining
from mobileclip.progress import Progress


def places(names, first=1, sha256=0):
    found = np.zeros(len(names), joining.PLACE)
    for number, name in enumerate(names):
        found[number]["high"], found[number]["low"] = joining.name_hash(name)
        found[number]["start"], found[number]["sha256"] = first + number, sha256
    return found


def written(folder, kind, letter, shards):
    """Write the records of shards, which are called by a letter and their number."""
    return tuple(
        joining.write_records(
            folder, kind, joining.ShardMetadata(shard=f"{letter}{number}", by="key", fingerprint=""), records
        )
        for number, records in enumerate(shards)
    )


def matched(folder, images, samples, wanted, *, threshold=0, **choices):
    """Match names of samples, by shard, with records of images; return counts and extents, and the file of matches."""
    index = joining.ImageIndex(
        folder=folder, by="key", shards=written(folder, joining.PLACES, "i", images), limits=SAMPLE_LIMITS
    )
    queries = [
        np.array([joining.name_hash(name) if name else (0, 0) for name in names], joining.NAME) for names in samples
    ]
    path = folder / "scratch" / "matches"
    path.parent.mkdir(exist_ok=True)
    choices |= {"threshold": threshold, "progress": Progress("matching", total=None, console=None)}
    return *joining.match_images(
        index, written(folder, joining.NAMES, "r", queries), np.array(wanted, bool), path, **choices
    ), path


@pytest.mark.parametrize("bucket_bytes", [100, 1000, 2**26])
def test_every_sample_gets_the_first_image_of_its_name(tmp_path, bucket_bytes):
    rng = np.random.default_rng(0)
    images = [[f"k{number}" for number in rng.integers(0, 300, 60)] for _ in range(5)]
    samples = [[f"k{number}" if number else "" for number in rng.integers(0, 400, 50)] for _ in range(4)]
    wanted = [True, False, True, True]
    counts, extents, path = matched(tmp_path, map(places, images), samples, wanted, bucket_bytes=bucket_bytes)
    first = {}
    for shard, names in enumerate(images):
        for row, name in enumerate(names):
            first.setdefault(name, (shard, row + 1))
    expected = {
        source: [(order, *first[name]) for order, name in enumerate(names) if name in first]
        for source, names in enumerate(samples)
        if wanted[source]
    }
    own = {source: joining.read_matches(path, extent) for source, extent in extents.items()}
    fields = ["order", "shard", "start"]
    assert {source: [tuple(map(int, row)) for row in some[fields].tolist()] for source, some in own.items()} == expected
    every = [name for names in samples for name in names if name in first]
    several = sum(sum(names.count(name) for names in images) > 1 for name in first)
    assert counts.counts == joining.MatchCounts(
        keys=len(first), repeated_keys=several, matched_samples=len(every), used_keys=len(set(every))
    )
    assert [one.name for one in path.parent.iterdir()] == ["matches"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30),
)
def test_names_that_share_half_of_their_hash_are_told_apart(images, samples):
    records = np.zeros(len(images), joining.MATCH)
    for number, (high, low) in enumerate(images):
        records[number]["high"], records[number]["low"], records[number]["start"] = high, low, number
    found, counts = joining.match_names(records, np.array(samples, joining.NAME))
    assert counts.keys == len(set(images))
    assert counts.repeated_keys == sum(images.count(one) > 1 for one in set(images))
    assert found.tolist() == [images.index(one) if one in images else -1 for one in samples]


def test_placeholders_are_counted_by_their_keys(tmp_path):
    names = (("aba", 7), ("cd", 9), ("eb", 7), ("fffff", 8))
    images = [places(list(text), sha256=sha256) for text, sha256 in names]
    found = matched(tmp_path, images, [], [], threshold=2)[0].placeholders
    expected = [("0000000000000007", 3, "i0", ""), ("0000000000000009", 2, "i1", "")]  # without examples: no shards
    assert [(one.sha256, one.num_keys, one.shard, one.example) for one in found] == expected
    assert matched(tmp_path, images, [], [], threshold=4)[0].placeholders == ()
