"""Records in buckets: all of them, each in its bucket and in order, whether they fit into memory or not."""

import numpy as np
import pytest

from mobileclip.data.buckets import Buckets, leading_bits, num_buckets_for, runs, scratch_folder

RECORD = np.dtype([("key", "u8"), ("number", "u4")])


@pytest.mark.parametrize("held_bytes", [12, 500, 2**26])
@pytest.mark.parametrize("num_buckets", [1, 8])
def test_buckets_in_turn_have_ascending_numbers(tmp_path, held_bytes, num_buckets):
    rng = np.random.default_rng(0)
    records = np.zeros(300, RECORD)
    records["key"] = rng.integers(0, 2**64, 300, np.uint64)
    records["number"] = np.arange(300)
    with Buckets(RECORD, num_buckets, folder=tmp_path / "deep", held_bytes=held_bytes) as buckets:
        for part in np.array_split(records, 7):
            buckets.add(part, leading_bits(part["key"], num_buckets))
        for _ in range(2):  # they may be read again
            found = list(buckets)
        assert len(found) == num_buckets
        assert (tmp_path / "deep").exists() == (held_bytes < 10_000), "what fits into memory is never written"
    assert not (tmp_path / "deep").exists() or not list((tmp_path / "deep").iterdir())
    both = (np.concatenate([np.sort(one, order="key") for one in found]), np.sort(records, order="key"))
    np.testing.assert_array_equal(*both)
    for one in found:
        assert (np.diff(one["number"].astype(int)) > 0).all(), "within a bucket in the order in which they came"


def test_runs_of_equal_numbers():
    assert runs(np.array([], np.uint64)) == []
    assert runs(np.array([3, 3, 5, 9, 9], np.uint64)) == [(3, 0, 2), (5, 2, 3), (9, 3, 5)]


def test_none_and_all_of_one_call_may_go_to_one_bucket():
    with Buckets(RECORD, 4, held_bytes=1) as buckets:
        for count, bucket in ((0, 3), (5, 2), (1, 0)):
            buckets.add(np.zeros(count, RECORD), bucket)
        assert [len(one) for one in buckets] == [1, 0, 5, 0]


def test_a_file_is_removed_when_it_has_been_read(tmp_path):
    with Buckets(RECORD, 4, folder=tmp_path, held_bytes=1) as buckets:
        for number in range(4):
            buckets.add(np.zeros(number + 1, RECORD), number)
        left = [(len(one), len(list(tmp_path.rglob("[0-9]")))) for one in buckets.drain()]
    assert left == [(1, 3), (2, 2), (3, 1), (4, 0)]


def test_scratch_of_a_process_that_was_killed_is_removed(tmp_path):
    with scratch_folder(tmp_path) as own:
        (own / "file").write_bytes(b"x")
        (tmp_path / ".mobileclip-left.scratch").mkdir()
        (tmp_path / ".mobileclip-left.scratch" / "large").write_bytes(b"x")
        with scratch_folder(tmp_path) as other:
            assert sorted(tmp_path.glob(".mobileclip-*.scratch")) == sorted((own, other))
        assert (own / "file").exists()
    assert not list(tmp_path.iterdir())


def test_a_bucket_has_about_the_bytes_that_are_asked_for():
    assert num_buckets_for(0, 40) == num_buckets_for(1_500_000, 40) == 1
    assert num_buckets_for(1_280_000_000, 40) == 1024
    for count in (10**7, 10**8, 1_280_000_000):
        assert 2**25 <= count * 40 / num_buckets_for(count, 40) <= 2**26
