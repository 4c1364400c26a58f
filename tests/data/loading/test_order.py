"""The order in which a worker reads: whose turn it is, how it is shuffled, and when nothing more is to be expected."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileclip.data import write_shard
from mobileclip.data.loading.order import Reader, SampleOrder, TarReader, shuffled
from mobileclip.data.randomness import seeded_rng
from tests.data.made_samples import make_sample, write_raw

ALONE = Reader(rank=0, world_size=1, worker=0, num_workers=1)


def order(shards, **changes):
    choices = {"sampling": "epoch", "seed": 0, "shuffle": False, "shuffle_buffer": 4}
    return SampleOrder(reader=TarReader(tuple(shards)), **(choices | changes))


class TestShuffled:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 12), st.integers(1, 14))
    def test_every_item_comes_once(self, num_items, buffer_size):
        found = list(shuffled(range(num_items), buffer_size, seeded_rng(num_items)))
        assert sorted(found) == list(range(num_items))
        # An item waits in the buffer at most as long as it wishes, but none comes before it was read.
        assert all(item <= place + buffer_size for place, item in enumerate(found))

    def test_no_more_is_read_ahead_than_the_buffer_holds(self):
        items = iter(range(100))
        next(shuffled(items, 4, seeded_rng(0)))
        assert next(items) == 5  # four in the buffer, and the one that takes the place of what came out

    def test_every_order_is_as_likely(self):
        rng = seeded_rng(7)
        counts = Counter(tuple(shuffled("abc", 3, rng)) for _ in range(1200))
        assert set(counts) == set(permutations("abc"))
        assert max(abs(count - 200) for count in counts.values()) < 5 * 200**0.5

    def test_what_is_in_the_buffer_comes_out_at_random(self):
        rng = seeded_rng(8)
        firsts = Counter(next(shuffled(range(6), 3, rng)) for _ in range(900))
        assert set(firsts) == {0, 1, 2}
        assert max(abs(count - 300) for count in firsts.values()) < 5 * 300**0.5


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    samples = [make_sample(number) for number in range(14)]
    return [str(write_shard(folder / f"{place}.tar", samples[2 * place : 2 * place + 2])) for place in range(7)]


def keys(samples):
    return [sample.raw.key for sample in samples]


@pytest.mark.parametrize(
    ("sampling", "numbers"),
    [
        ("epoch", [13, 8, 9, 3, 6, 0, 12, 7, 1, 4, 5, 10, 11, 2]),
        ("resampled", [7, 10, 11, 1, 6, 0, 6, 7, 1, 10, 11, 4, 0, 7]),
    ],
)
def test_a_seed_keeps_its_order(shards, sampling, numbers):
    """Or else a run that another version resumes would see some samples twice and others never."""
    samples = order(shards, sampling=sampling, shuffle=True).samples(0, ALONE, pytest.fail)
    assert keys(islice(samples, 14)) == [f"{number:06d}" for number in numbers]


class TestEpoch:
    def test_shards_are_dealt_out_to_processes_and_then_to_workers(self, shards):
        readers = [
            Reader(rank=rank, world_size=2, worker=worker, num_workers=3) for rank in range(2) for worker in range(3)
        ]
        read = [keys(order(shards).samples(0, reader, pytest.fail)) for reader in readers]
        # Process 0 has shards 0, 2, 4, 6, of which its worker 0 has 0 and 6.
        places = [[0, 6], [2], [4], [1], [3], [5]]
        assert read == [[f"{2 * place + half:06d}" for place in own for half in range(2)] for own in places]

    def test_shuffled_readers_share_one_epoch_and_have_another_next_time(self, shards):
        readers = [Reader(rank=rank, world_size=2, worker=0, num_workers=1) for rank in range(2)]
        epochs = [
            [keys(order(shards, shuffle=True).samples(epoch, reader, pytest.fail)) for reader in readers]
            for epoch in range(2)
        ]
        for epoch in epochs:
            assert sorted(epoch[0] + epoch[1]) == [f"{number:06d}" for number in range(14)]
        assert epochs[0] != epochs[1]
        assert epochs[0][0] != keys(order(shards, shuffle=True, seed=1).samples(0, readers[0], pytest.fail))

    def test_a_repeated_key_has_a_place_of_its_own(self, tmp_path):
        shard = write_raw(tmp_path / "a.tar", [(f"{key}.txt", b"text") for key in ("a", "b", "a", "b", "a")])
        samples = list(order([shard]).samples(0, ALONE, pytest.fail))
        assert [sample.place for sample in samples] == [(shard, key) for key in ("a", "b", "a#1", "b#1", "a#2")]
        assert {sample.draw for sample in samples} == {""}


class TestResampled:
    def test_every_drawing_has_a_name(self, shards):
        reader = Reader(rank=3, world_size=5, worker=1, num_workers=2)
        samples = list(islice(order(shards, sampling="resampled").samples(0, reader, pytest.fail), 8))
        assert [sample.draw for sample in samples] == [f"3.1.{number}" for number in range(4) for _ in range(2)]
        assert all(sample.place[0].startswith(f"{sample.draw} ") for sample in samples)
        assert all(sample.place[0].removeprefix(f"{sample.draw} ") in shards for sample in samples)
        assert all(first.place != second.place for first, second in pairwise(samples))

    @pytest.mark.parametrize("num_shards", [1, 3])
    def test_it_ends_when_no_sample_came_in_ten_rounds(self, tmp_path, num_shards):
        skips = []
        shards = [str(tmp_path / f"{number}.tar") for number in range(num_shards)]
        assert not list(order(shards, sampling="resampled").samples(0, ALONE, skips.append))
        assert len(skips) == 10 * num_shards

    def test_a_sample_begins_the_ten_rounds_anew(self, tmp_path):
        skips = []
        present = write_shard(tmp_path / "0.tar", [make_sample(0)])
        shards = [str(present), str(tmp_path / "missing.tar")]
        samples = order(shards, sampling="resampled").samples(0, ALONE, skips.append)
        for _ in range(15):
            next(samples)
        assert skips
        skips.clear()
        present.unlink()
        assert not list(samples)
        assert len(skips) == 20
