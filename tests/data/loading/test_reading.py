"""How a reader reads: shuffled, from any place on, and until nothing more is to be expected."""

from itertools import islice

import numpy as np
import pytest

from mobileclip.data import write_shard, write_shards
from mobileclip.data.loading.order import Cursor, EpochOrder, ShuffledShards
from mobileclip.data.loading.reading import SampleReading, TarReader
from mobileclip.data.shards.files import RawSample
from tests.data.made_samples import make_sample


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    paths = write_shards(tmp_path_factory.mktemp("shards"), map(make_sample, range(12)), samples_per_shard=5)
    return tuple(map(str, paths))


def reading(names, *, sizes=None, num_readers=1, buffer=3):
    """Return what reads an epoch of shards of these sizes, or else shards without end."""
    choices = {"most_readers": num_readers, "seed": 0, "shuffle": True}
    order = EpochOrder(names=names, sizes=sizes, **choices) if sizes else ShuffledShards(sources=(names,), **choices)
    return SampleReading(shards=TarReader((names,)), order=order, seed=0, shuffle_buffer=buffer)


def test_readers_of_an_epoch_share_its_samples(shards):
    read = reading(shards, sizes=(5, 5, 2), num_readers=2)
    keys = [
        [sample.raw.key for sample in read.samples(reader, 5, Cursor(), pytest.fail, is_alone=True)]
        for reader in range(2)
    ]
    assert sorted(keys[0] + keys[1]) == [f"{number:06d}" for number in range(12)]
    assert len(keys[0]) == len(keys[1]) == 6
    assert keys[0] != sorted(keys[0])
    # Behind its own ones a reader has them again, and goes on with the other's.
    beyond = [sample.raw.key for sample in read.samples(0, 5, Cursor(), pytest.fail)]
    assert beyond[:12] == keys[0] * 2
    assert sorted(beyond[12:]) == sorted(keys[1])


def test_samples_beyond_what_was_said_are_read(shards):
    told = reading(shards, sizes=(2, 1, 1))
    keys = sorted(sample.raw.key for sample in told.samples(0, 0, Cursor(), pytest.fail, is_alone=True))
    assert keys == [f"{number:06d}" for number in range(12)]


def test_what_was_reported_is_not_reported_again(tmp_path):
    path = write_shard(tmp_path / "a.tar", map(make_sample, range(6)))
    path.write_bytes(path.read_bytes()[:-12000])
    read, skips = reading((str(path),), sizes=(6,), buffer=20), []
    told = [(sample, len(skips)) for sample in read.samples(0, 0, Cursor(), skips.append, is_alone=True)]
    assert [skip.reason for skip in skips] == ["truncated_shard"]
    assert told[0][1] == 0  # the buffer is not filled at once
    assert told[-2][1] == 1
    assert list(read.samples(0, 0, told[-2][0].place, pytest.fail, is_alone=True))


class Listed:
    """Shards of so many samples each, which are not decoded."""

    def __init__(self, num_shards, size):
        self.names, self._size = tuple(str(place) for place in range(num_shards)), size

    def read(self, name, *_):
        return (RawSample(key=f"{number}", shard=name) for number in range(self._size))


def test_shards_are_mixed_evenly_and_samples_as_far_as_the_buffer_allows():
    """2,000 epochs tell a mean place from another one that is a fiftieth of its deviation away."""
    num_epochs, num_shards, size = 2000, 5, 20
    shards = Listed(num_shards, size)
    order = EpochOrder(names=shards.names, sizes=(size,) * num_shards, most_readers=1, seed=0, shuffle=True)
    read = SampleReading(shards=shards, order=order, seed=0, shuffle_buffer=100)
    places = np.zeros((num_epochs, num_shards, size))
    for epoch in range(num_epochs):
        for place, sample in enumerate(read.samples(0, epoch, Cursor(), pytest.fail, is_alone=True)):
            places[epoch, int(sample.raw.shard), int(sample.raw.key)] = place
    of_shards, of_samples = np.divmod(places, size)
    np.testing.assert_array_equal(of_shards.min(axis=2), of_shards.max(axis=2))
    spread = np.sqrt((num_shards**2 - 1) / 12 / num_epochs)
    assert np.abs(of_shards[:, :, 0].mean(axis=0) - (num_shards - 1) / 2).max() < 4 * spread
    # At each draw of a shard, two samples more are in the buffer, until it is read: one of those is drawn.
    law = np.zeros((size, size))
    for number in range(size):
        left = 1.0
        for draw in range(number // 2, size):
            share = 1 / (min(2 * (draw + 1), size) - draw)
            law[number, draw], left = left * share, left * (1 - share)
    means = law @ np.arange(size)
    deviations = np.sqrt(law @ np.arange(size) ** 2 - means**2)
    found = of_samples.mean(axis=(0, 1))
    assert (np.abs(found - means) < 4 * deviations / np.sqrt(num_epochs * num_shards)).all()
    # The limit that the docstring of `shuffle_buffer` says: of an even order, all would be in the middle.
    assert ((means / size).round(2)[[0, -1]] == (0.12, 0.7)).all()


@pytest.mark.parametrize(("num_shards", "num_skips"), [(1, 10), (3, 30), (300, 100)])
def test_it_ends_when_no_sample_came_in_ten_rounds_or_a_hundred_shards(tmp_path, num_shards, num_skips):
    names, skips = tuple(str(tmp_path / f"{number}.tar") for number in range(num_shards)), []
    assert not list(reading(names).samples(0, 0, Cursor(), skips.append))
    assert len(skips) == num_skips


def test_a_sample_begins_the_count_anew(tmp_path):
    skips, present = [], write_shard(tmp_path / "0.tar", [make_sample(0)])
    samples = reading((str(present), str(tmp_path / "missing.tar"))).samples(0, 0, Cursor(), skips.append)
    list(islice(samples, 15))
    assert skips
    skips.clear()
    present.unlink()
    assert not list(samples)
    assert len(skips) == 20
