"""Shards: read whole, cut, damaged and missing; written whole or not at all."""

from __future__ import annotations

import errno
import gzip
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mobileclip import storage
from mobileclip.data import (
    LAYOUTS,
    Skip,
    SkipReport,
    count_samples,
    expand_shards,
    read_reinforced_samples,
    read_samples,
    write_shard,
    write_shards,
)
from mobileclip.data.shards.files import RawSample
from mobileclip.data.skips import MAX_LOGGED, MAX_NAMED
from tests.data.made_samples import golden, golden_members, make_sample, write_raw
from tests.errors import fails

KEYS = [f"00010000000{number}" for number in range(3)]
MEMBERS = golden_members("npz")
DATA = Path(golden("npz")).read_bytes()


def read(shards: object) -> tuple[list[str], SkipReport]:
    report = SkipReport(log=False)
    keys = [sample.key for sample in read_reinforced_samples(shards, report)]
    assert report.num_read == len(keys)
    return keys, report


class TestExpand:
    def test_patterns(self, monkeypatch):
        assert expand_shards("a/{00..02}.tar") == ("a/00.tar", "a/01.tar", "a/02.tar")
        assert expand_shards([Path("x.tar"), "{y,z}.tar"]) == ("x.tar", "y.tar", "z.tar")
        assert expand_shards("a.tar::b{1..2}.tar") == ("a.tar", "b1.tar", "b2.tar")
        assert expand_shards(Path("one.tar")) == ("one.tar",)
        for folder in ("a", "b"):  # a variable is what it is now
            monkeypatch.setenv("WDS_DATA", folder)
            assert expand_shards("${DATA}/{0..1}.tar") == (f"{folder}/0.tar", f"{folder}/1.tar")

    @pytest.mark.parametrize("shards", [[], (), "a/{00..02.tar"])
    def test_what_names_no_shard(self, shards):
        with fails(ValueError):
            expand_shards(shards)


class TestRead:
    def test_names_in_folders_and_upper_case_extensions(self, tmp_path):
        names = [(f"./part/{KEYS[0]}.{name.upper()}", data) for name, data in MEMBERS[KEYS[0]].items()]
        others = [(name, b"") for name in ("__index__/0.json", "__x__.json", "README")]
        keys, report = read(write_raw(tmp_path / "a.tar", [*others, *names]))
        assert keys == [f"part/{KEYS[0]}"]
        assert report.num_skipped == 0

    def test_the_image_of_a_sample_is_its_first_member_that_is_called_like_one(self):
        members = {"json": b"{}", "seg.png": b"first", "jpg": b"second"}
        assert RawSample(key="a", shard="a.tar", members=members).image == b"first"
        assert RawSample(key="a", shard="a.tar", members={"json": b"{}", "txt": b"a cat"}).image is None

    def test_a_compressed_shard(self, tmp_path):
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(DATA))
        assert read(path)[0] == KEYS
        path.write_bytes(path.read_bytes()[:-5000])
        keys, report = read(path)
        assert keys == KEYS[: len(keys)]
        assert report.counts["truncated_shard"] == 1

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            ({"txt": None}, "missing_member"),
            ({"npz": None}, "missing_member"),
            ({"npz": MEMBERS[KEYS[1]]["npz"][:-100]}, "bad_embedding"),
            ({"paug.json": b"{"}, "bad_json"),
            ({"syn.json": b'{"syn_text": []}'}, "row_count"),
        ],
    )
    def test_a_bad_sample_is_named_and_its_neighbours_are_read(self, tmp_path, damage, reason):
        changed = {name: data for name, data in (MEMBERS[KEYS[1]] | damage).items() if data is not None}
        shard = write_raw(tmp_path / "a.tar", MEMBERS | {KEYS[1]: changed})
        keys, report = read(shard)
        assert keys == [KEYS[0], KEYS[2]]
        assert report.counts == {reason: 1}
        assert report.keys(reason) == (KEYS[1],)
        assert report.named[reason][0].shard == shard

    def test_a_member_that_comes_twice_and_a_sample_torn_apart(self, tmp_path):
        names = [(f"{key}.{name}", data) for key, members in MEMBERS.items() for name, data in members.items()]
        twice = [*names[:2], (f"{KEYS[0]}.jpg", b"another"), *names[2:]]
        for some, expected, reason in (
            (twice, KEYS[1:], "duplicate_member"),
            ([*names[1:], names[0]], KEYS, "missing_member"),
        ):
            keys, report = read(write_raw(tmp_path / "a.tar", some))
            assert keys == expected
            assert report.keys(reason) == (KEYS[0],)


with tarfile.open(golden("npz")) as golden_tar:
    STARTS = {member.name: (member.offset, member.offset_data) for member in golden_tar}
    # Where the last byte of every sample is.
    ENDS = [max(one.offset_data + one.size for one in golden_tar if one.name.startswith(key)) for key in KEYS]


class TestBrokenShards:
    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, max(ENDS)) | st.sampled_from([place for places in STARTS.values() for place in places]))
    def test_cut_anywhere(self, tmp_path, cut):
        (tmp_path / "cut.tar").write_bytes(DATA[:cut])
        keys, report = read(tmp_path / "cut.tar")
        whole = [key for key, end in zip(KEYS, ENDS, strict=True) if end <= cut]
        assert keys[: len(whole)] == whole
        assert len(keys) <= len(whole) + 1  # the last one may miss nothing but its address
        assert report.counts["truncated_shard"] + report.counts["unreadable_shard"] == 1
        assert report.named.keys() <= {"truncated_shard", "unreadable_shard", "missing_member"}

    def test_cut_between_two_samples(self, tmp_path):
        """tarfile and webdataset take this for the end of the archive and say nothing."""
        path = tmp_path / "cut.tar"
        path.write_bytes(DATA[: min(start for name, (start, _) in STARTS.items() if name.startswith(KEYS[2]))])
        keys, report = read(path)
        assert keys == KEYS[:2]
        assert "after 2 samples" in report.named["truncated_shard"][0].detail
        with fails(ValueError, "cut.tar"):
            count_samples(path)

    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
    def test_one_byte_changed_is_never_fatal(self, tmp_path, place, change):
        damaged = DATA[:place] + bytes([DATA[place] ^ change]) + DATA[place + 1 :]
        (tmp_path / "damaged.tar").write_bytes(damaged)
        keys, report = read([tmp_path / "damaged.tar", golden("bf16")])
        assert keys[-3:] == [f"00020000000{number}" for number in range(3)]
        assert len(keys) + report.num_skipped >= 4

    @pytest.mark.parametrize("content", [None, b"", b"\x00", b"hello" * 1000])
    def test_unreadable(self, tmp_path, content):
        path = tmp_path / "a.tar"
        if content is not None:
            path.write_bytes(content)
        keys, report = read([path, golden("npz")])
        assert keys == KEYS
        assert report.counts == {"unreadable_shard": 1}
        (skip,) = report.named["unreadable_shard"]
        assert (skip.key, skip.shard) == ("", str(path))

    def test_a_command_that_fails(self):
        """It may have used a network, so another time may help."""
        keys, report = read(["pipe:exit 3", f"pipe:cat {golden('npz')}"])
        assert keys == KEYS
        assert report.counts == {"connection_failed": 1}

    def test_a_disk_that_fails_says_nothing_of_the_shard(self, monkeypatch, tmp_path):
        def failing(*_):
            raise OSError(errno.EIO, "Input/output error")

        (tmp_path / "torn.tar").write_bytes(b"torn" * 400)
        with fails(ValueError, "torn.tar", "ReadError"):
            count_samples(tmp_path / "torn.tar")
        monkeypatch.setattr(storage, "open_read", failing)
        assert read([golden("npz")])[1].counts == {"connection_failed": 1}
        with fails(storage.StorageError, "OSError"):
            count_samples(golden("npz"))


class TestWrite:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_round_trip_and_equal_bytes(self, tmp_path, layout):
        samples = [make_sample(number) for number in range(7)]
        paths = write_shards(tmp_path / "new", iter(samples), layout=layout, samples_per_shard=3)
        assert [path.name for path in paths] == ["00000000.tar", "00000001.tar", "00000002.tar"]
        assert [count_samples(path) for path in paths] == [3, 3, 1]
        report = SkipReport()
        back = list(read_reinforced_samples(str(tmp_path / "new" / "{00000000..00000002}.tar"), report))
        assert report.num_skipped == 0
        for sample, original in zip(back, samples, strict=True):
            for name in ("key", "image", "augmentations"):
                assert getattr(sample, name) == getattr(original, name)
            rtol, atol = {"npz": (0, 0), "compact8": (0, 0.02)}.get(layout, (2**-8, 0))
            np.testing.assert_allclose(sample.image_emb, original.image_emb, rtol=rtol, atol=atol)
        again = write_shards(tmp_path / "again", samples, layout=layout, samples_per_shard=3)
        assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]

    def test_nothing_appears_until_it_is_complete(self, tmp_path):
        path = tmp_path / "a.tar"
        write_shard(path, [make_sample(0)])
        before = path.read_bytes()

        def interrupted():
            yield make_sample(1)
            assert [file.name for file in tmp_path.glob("*.tar")] == ["a.tar"]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_shard(path, interrupted())
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_other_members_pass_through(self, tmp_path, layout):
        content = {"png": b"p", "mask.png": b"m" * 2000, "cls": b"7", "_seen": b"", "txt": b"t", "jpg": b"i"}
        path = write_raw(tmp_path / "raw.tar", {"a": content, "b": {"txt": b"t"}})
        for _ in range(2):
            path = write_shard(tmp_path / "plain.tar", list(read_samples(path)), layout=layout)
        with tarfile.open(path) as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar}
        assert found == {"b.txt": b"t"} | {f"a.{name}": data for name, data in content.items()}
        sample = make_sample(0, others={"mask.png": b"m", "_seen": b"x"})
        path = write_shard(tmp_path / "reinforced.tar", [sample], layout=layout)
        assert next(iter(read_reinforced_samples(path))).others == sample.others

    @pytest.mark.parametrize(
        ("write", "words"),
        [
            (lambda folder: write_shard(folder / "a.tar", [make_sample(1), make_sample(1)]), ("000001",)),
            (lambda folder: write_shard(folder / "a.tar", []), ()),
            (lambda folder: write_shards(folder, []), ()),
            (lambda folder: write_shard(folder / "a.tar", [make_sample(1)], layout="zip"), ("zip", *LAYOUTS)),
            (lambda folder: write_shards(folder, [make_sample(1)], samples_per_shard=0), ("0",)),
        ],
        ids=["twice", "no sample", "no samples", "layout", "samples_per_shard"],
    )
    def test_mistakes(self, tmp_path, write, words):
        with fails(ValueError, *words):
            write(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_counts_of_skips_are_complete_and_names_are_bounded(caplog):
    report = SkipReport()
    with caplog.at_level(logging.WARNING, logger="mobileclip"):
        report.extend(Skip(reason="bad_json", key=f"{n}", shard="s.tar", detail="d") for n in range(MAX_NAMED + 5))
        report.add(Skip(reason="truncated_shard", key="", shard="s.tar", detail="after 3"))
    assert report.counts == {"bad_json": MAX_NAMED + 5, "truncated_shard": 1}
    assert report.num_skipped == MAX_NAMED + 6
    assert len(report.keys("bad_json")) == MAX_NAMED
    assert report.keys("unheard of") == ()
    assert len(caplog.records) == MAX_LOGGED + 1
    assert "skipped 0 of s.tar: bad_json: d" in caplog.text
    assert str(report) == "0 samples read, 1006 skipped: 1005 bad_json, 1 truncated_shard"
