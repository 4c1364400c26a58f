"""DataCompDR-1B's 65,536 shards in a store: a run's first batch asks for what its readers need, and nothing else."""

from __future__ import annotations

import re
import time

import attrs
import pytest

from mobileclip import specs
from mobileclip.data import StreamPosition, card_of_shards, expand_shards, write_shard
from mobileclip.recipes import mobileclip_run
from tests.data.made_samples import make_sample
from tests.object_store import object_store

NUM_READERS, SHARD_SIZE = 64, 12
PATTERN = "s3://data/dr/{00000..65535}.tar"


class _Shards(dict):
    """Every shard of the pattern, made of a few; it notes what was asked for."""

    def __init__(self, contents: list[bytes]) -> None:
        self.contents = contents
        self.asked: set[str] = set()

    def get(self, name, default=None):
        self.asked.add(name)
        found = re.fullmatch(r"data/dr/(\d{5})\.tar", name)
        return default if found is None else self.contents[int(found[1]) % len(self.contents)]


@pytest.fixture
def store(tmp_path):
    """An S3 store in which every shard of the pattern lies, and nothing else."""
    made = [map(make_sample, range(SHARD_SIZE * place, SHARD_SIZE * (place + 1))) for place in range(4)]
    with object_store() as opened:
        opened.objects = _Shards([write_shard(tmp_path / "a.tar", samples).read_bytes() for samples in made])
        yield opened


@pytest.mark.parametrize("step", [0, 10_000])
def test_the_first_batch(store, step):
    """Two requests a reader, however many shards there are; a run that resumes asks for no more."""
    choices = {"batch_size": 64, "num_readers": NUM_READERS, "num_workers": 0, "teacher_dim": 6}
    data = attrs.evolve(mobileclip_run(specs.mobileclip_s2()).data, shards=(PATTERN,), **choices)
    turn, sample = divmod(step, SHARD_SIZE)
    places = tuple((reader, turn, 0, sample) for reader in range(NUM_READERS)) if step else ()
    position = StreamPosition(first_batch=step, num_readers=NUM_READERS if step else 0, places=places)
    started = time.process_time()
    batch = next(data.build().stream(position))
    assert time.process_time() - started < 10
    assert len(batch) == 64
    assert store.requests.total() <= 2 * NUM_READERS
    assert len(store.objects.asked) == NUM_READERS


def test_the_card_is_looked_for_once(store):
    assert card_of_shards(expand_shards(PATTERN)) is None
    assert store.requests.total() <= 3
