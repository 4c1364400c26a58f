"""The order of samples: who reads what, that nothing is missing or twice, and that it depends on the spec alone."""

import itertools
import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mobileclip.data.loading.order import NUM_READERS, Cursor, EpochOrder, ShuffledShards
from tests.errors import fails

SLOW = pytest.mark.slow
CHOICES = {"most_readers": NUM_READERS, "seed": 0, "shuffle": True}


def epoch_order(sizes, **changes):
    names = tuple(f"{place}.tar" for place in range(len(sizes)))
    return EpochOrder(names=names, sizes=tuple(sizes), **(CHOICES | changes))


def endless_order(*counts, **changes):
    sources = tuple(tuple(f"{source}/{place}.tar" for place in range(count)) for source, count in enumerate(counts))
    return ShuffledShards(sources=sources, **(CHOICES | changes))


def samples(order, epoch, reader, turn=0):
    """Return what a reader reads, as names of shards and numbers of samples, its last segments cut to their sizes."""
    sizes = dict(zip(order.names, order.sizes, strict=True))
    return [
        (segment.shard, number)
        for segment in order.segments(reader, order.start(epoch)[reader].turn + turn)
        for number in range(segment.start, sizes[segment.shard] if segment.stop is None else segment.stop)
    ]


def drawn(order, count):
    """Return the first segments of an endless order, reader by reader and turn by turn."""
    return [order.segments(number % order.num_readers, number // order.num_readers)[0] for number in range(count)]


class TestEpoch:
    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.sampled_from([1, 2, 6, 12]), st.booleans()
    )
    def test_every_sample_once(self, sizes, most_readers, shuffle):
        order = epoch_order(sizes, most_readers=most_readers, shuffle=shuffle)
        readers = range(order.num_readers)
        whole = [(f"{place}.tar", number) for place, size in enumerate(sizes) for number in range(size)]
        for epoch in range(2):
            read = [samples(order, epoch, reader) for reader in readers]
            assert sorted(itertools.chain(*read)) == sorted(whole)
            # The numbers of an epoch's samples are dealt out to the readers in turn.
            assert [len(own) for own in read] == [len(whole[reader :: order.num_readers]) for reader in readers]

    def test_a_reader_that_lost_samples_reads_its_own_again_and_then_others_from_elsewhere(self):
        order = epoch_order([20, 20], most_readers=4)
        assert samples(order, 3, 1, turn=1) == samples(order, 3, 1)
        others = [samples(order, 3, 1, turn) for turn in (2, 3, 4)]
        assert sorted(map(sorted, others)) == sorted(sorted(samples(order, 3, reader)) for reader in (0, 2, 3))
        firsts = [samples(order, 3, reader)[0] for reader in range(4)]
        for own in others:
            (start,) = (own.index(first) for first in firsts if first in own)
            assert start in range(2, 9)
        assert len(list(order.turns(3))) == 5
        assert list(order.turns(3, first=order.start(3)[1].turn + 2)) == list(order.turns(3))[2:]

    def test_a_seed_keeps_its_order(self):
        """Or else a run that another version resumes would see some samples twice and others never."""
        order = epoch_order([2, 3, 1, 4, 2], most_readers=3)
        assert [samples(order, 1, reader) for reader in range(3)] == [
            [("4.tar", 0), ("4.tar", 1), ("0.tar", 0), ("0.tar", 1)],
            [("3.tar", 0), ("3.tar", 1), ("3.tar", 2), ("3.tar", 3)],
            [("2.tar", 0), ("1.tar", 0), ("1.tar", 1), ("1.tar", 2)],
        ]

    def test_steps(self):
        order = epoch_order([10, 1], most_readers=4)
        assert list(islice(order.steps(0, 4), 3)) == [(0, range(4)), (0, range(4, 8)), (1, range(4))]
        assert next(order.steps(2, 4)) == (1, range(4))
        assert list(order.steps(1, 4, epoch=5)) == [(5, range(4, 8)), (5, range(8, 11))]
        with fails(ValueError, "11", "12"):
            next(order.steps(0, 12))
        assert list(order.steps(0, 12, epoch=0)) == [(0, range(11))]

    def test_fewer_samples_than_readers(self):
        assert epoch_order([3, 4]).num_readers == 6
        assert epoch_order([3, 4], most_readers=7).num_readers == 7
        with fails(ValueError, "2"):
            epoch_order([0, 0])

    def test_a_billion_samples_fit_into_the_memory_of_a_laptop(self):
        """DataCompDR-1B: 65,536 shards."""
        sizes = np.random.default_rng(0).integers(19_000, 20_063, size=65_536).tolist()
        tracemalloc.start()
        epoch_order(sizes, most_readers=2048).segments(0, 0)
        assert tracemalloc.get_traced_memory()[1] < 2**26
        tracemalloc.stop()

    @pytest.mark.parametrize(("num_shards", "num_readers"), [(4096, 128), pytest.param(65_536, 2048, marks=SLOW)])
    def test_a_billion_samples(self, num_shards, num_readers):
        """An epoch of DataCompDR-1B, and of a sixteenth of it, has no gap and no repeat."""
        sizes = np.random.default_rng(0).integers(19_000, 20_063, size=num_shards)
        order = epoch_order(sizes.tolist(), most_readers=num_readers)
        found, lengths = [], np.zeros(num_readers, np.int64)
        for reader in range(num_readers):
            for segment in order.segments(reader, 0):
                place = int(segment.shard.removesuffix(".tar"))
                stop = sizes[place] if segment.stop is None else segment.stop
                found.append((place, segment.start, stop))
                lengths[reader] += stop - segment.start
        places, starts, stops = np.array(sorted(found)).T
        is_first = np.diff(places, prepend=-1) > 0
        is_last = np.append(is_first[1:], True)
        assert is_first.sum() == num_shards
        assert (starts == np.where(is_first, 0, np.roll(stops, 1))).all()
        assert (stops[is_last] == sizes).all()
        # Every process takes the same number of samples of each reader at every step.
        assert sizes.sum() == lengths.sum() > 19_000 * num_shards
        assert lengths.max() - lengths.min() <= 1


class TestEndless:
    def test_every_shard_once_before_any_comes_again(self):
        order = endless_order(10, most_readers=4)
        found = drawn(order, 40)
        assert order.num_readers == 4
        for times in range(4):
            rounds = found[10 * times : 10 * (times + 1)]
            assert {segment.epoch for segment in rounds} == {times}
            assert {segment.shard for segment in rounds} == {f"0/{place}.tar" for place in range(10)}
        assert [one.shard for one in found[:10]] != [one.shard for one in found[10:20]]
        assert all((one.start, one.stop) == (0, None) for one in found)

    def test_with_replacement_shards_come_again_before_others_have_come(self):
        order = endless_order(40, most_readers=4, replacement=True)
        found = drawn(order, 4_000)
        counts = Counter(segment.shard for segment in found)
        assert len({segment.shard for segment in found[:40]}) < 35  # 40 * (1 - 1/e) is 25
        assert counts.keys() == set(order.sources[0])
        assert all(50 < count < 150 for count in counts.values())  # of 100, with a deviation of 10
        assert all(segment.shard == f"0/{segment.number}.tar" for segment in found)
        # Of a shard that comes twice, neither the order of the samples nor their augmentations are the same.
        assert len({segment.epoch for segment in found}) == len(found)
        assert drawn(endless_order(40, most_readers=4, replacement=True), 4_000) == found
        assert drawn(endless_order(40, most_readers=4, replacement=True, seed=1), 40) != found[:40]

    def test_orders_are_kept(self):
        in_order = drawn(endless_order(3, most_readers=1, shuffle=False), 4)
        assert [segment.number for segment in in_order] == [0, 1, 2, 0]
        assert [segment.number for segment in drawn(endless_order(7, most_readers=2), 8)] == [1, 2, 4, 3, 6, 5, 0, 5]
        mixed = drawn(endless_order(50, 30, 30, weights=(3.0, 2.0, 1.0), most_readers=12), 12)
        assert "".join(segment.shard[0] for segment in mixed) == "010210010210"

    @pytest.mark.parametrize("replacement", [False, True])
    def test_sources_have_their_share_of_every_batch(self, replacement):
        order = endless_order(500, 300, 200, weights=(2.0, 1.0, 1.0), replacement=replacement)
        assert order.num_readers == 96
        # Also of one that has fewer samples than there are readers.
        sources = [segment.shard[0] for segment in drawn(order, 8 * 96)]
        for start in range(0, 8 * 96, 8):
            assert Counter(sources[start : start + 8]) == {"0": 4, "1": 2, "2": 2}

    @pytest.mark.parametrize(
        ("shards", "weights", "words"),
        [
            ((5, 5), (1.0, 1.0, 1.0), ("2", "3")),
            ((500, 500), (1.0, 0.001), ("1", "96")),
            ((5, 1), (0.99, 0.01), ("5, 1", "0.99, 0.01", "0.952, 0.0476")),
        ],
    )
    def test_weights_that_do_not_fit(self, shards, weights, words):
        with fails(ValueError, *words):
            endless_order(*shards, weights=weights)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 20)), min_size=1, max_size=4))
    def test_shares_are_the_asked_ones_or_refused(self, sources):
        """Within 2 %, and no two readers have a sample at once."""
        shards, weights = zip(*sources, strict=True)
        try:
            order = endless_order(*shards, weights=weights)
        except ValueError:
            assert len(sources) > 1
            return
        segments = drawn(order, order.num_readers)
        found = Counter(one.shard[0] for one in segments)
        for source, weight in enumerate(weights):
            assert abs(found[str(source)] / order.num_readers - weight / sum(weights)) <= 0.02
        numbers = [(one.shard, number) for one in segments for number in range(12)[one.start :: one.stride]]
        assert len(set(numbers)) == len(numbers)

    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize(
        ("shards", "weights", "readers"),
        [
            ((2, 1), (1, 1), (1, 1)),
            ((9, 1), (9, 1), (11, 1)),
            ((2, 2), (3, 1), (3, 1)),
            ((1, 1, 1), (4, 3, 1), (4, 3, 1)),
            ((9, 40), (1, 3), (8, 24)),
        ],
    )
    def test_few_shards_have_fewer_readers(self, shards, weights, readers, shuffle):
        """As many as give the asked shares; they may share out a shard's samples, of which every pass has all once."""
        order = endless_order(*shards, weights=weights, shuffle=shuffle)
        found = Counter(segment.shard[0] for segment in drawn(order, order.num_readers))
        assert tuple(found[str(source)] for source in range(len(shards))) == readers
        segments = drawn(order, 5 * max(shards) * order.num_readers)
        seen = Counter(
            (one.shard, one.epoch, number) for one in segments for number in range(12)[one.start :: one.stride]
        )
        assert set(seen.values()) == {1}
        assert len({shard for shard, _, _ in seen}) == sum(shards)

    def test_fewer_shards_than_readers(self):
        assert endless_order(5).num_readers == 4
        assert endless_order(1).num_readers == 1
        assert endless_order(2, 3).num_readers == 4  # without weights they are one source

    def test_steps_and_starts(self):
        order = endless_order(10, most_readers=4)
        assert next(order.steps(7, 6)) == (0, range(42, 48))
        assert order.start(2) == (Cursor(6),) * 4
