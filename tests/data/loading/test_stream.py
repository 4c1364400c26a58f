"""Streams without end: resumed without decoding, equal in length in every process, and resampled."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

import mobileclip.data.loading.dataset
import mobileclip.data.loading.decode
from mobileclip.data import ReinforcedBatch, ReinforcedPipelineSpec, StreamPosition, write_shard
from mobileclip.inputs import ImageInput
from mobileclip.serialization import from_json, to_json
from tests.data.made_samples import encoded, make_sample, write_raw

# Uneven on purpose: numbers of samples per shard.
SIZES = (9, 2, 7, 4, 1)
BROKEN = {2, 3, 10, 15, 22}


# More workers than cores are slow, which is not the point here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """Shards with undecodable images, a duplicate member, a repeated key and an end that is missing."""
    directory = tmp_path_factory.mktemp("shards")
    numbers = iter(range(sum(SIZES)))
    paths = []
    for place, size in enumerate(SIZES):
        many = [
            make_sample(number, **({"image": b"broken"} if number in BROKEN else {}))
            for number in islice(numbers, size)
        ]
        paths.append(str(write_shard(directory / f"{place}.tar", many)))
    raw = {f"w{number}": {"txt": b"no embeddings"} for number in range(2)}
    paths.append(write_raw(directory / "odd.tar", [(f"{key}.txt", b"text") for key in ("a", "b", "a")]))
    paths.append(write_raw(directory / "raw.tar", raw))
    return paths


def spec(shards: object, **changes: object) -> ReinforcedPipelineSpec:
    choices = {"shards": shards, "batch_size": 3, "image": ImageInput(size=16), "shuffle_buffer": 5, "num_samples": 23}
    return ReinforcedPipelineSpec(**(choices | changes))


def assert_equal(first: ReinforcedBatch, second: ReinforcedBatch) -> None:
    assert first.keys == second.keys
    for name, value in first.as_dict().items():
        if name != "keys":
            torch.testing.assert_close(getattr(second, name), value, rtol=0, atol=0)


class TestResuming:
    @pytest.mark.parametrize("sampling", ["epoch", "resampled"])
    @pytest.mark.parametrize("num_workers", [0, 1, 3])
    def test_every_place(self, shards, num_workers, sampling):
        choices = {"num_workers": num_workers, "sampling": sampling}
        pipeline = spec(shards, **choices).build()
        stream = pipeline.stream()
        whole, positions = [], [pipeline.position(0)]
        for number in range(20):
            whole.append(next(stream))
            positions.append(pipeline.position(number + 1))
        assert any(position.skipped for position in positions)
        starts = range(20) if num_workers == 0 else (2, 6, 7, 12)
        for start in starts:
            position = from_json(to_json(positions[start]), StreamPosition)
            assert position == positions[start]
            resumed = spec(shards, **choices).build()
            other = resumed.stream(position)
            for place in range(start, min(start + 5, 20)):
                assert_equal(whole[place], next(other))
                # The positions of a resumed run resume it again.
                again = resumed.position(place + 1)
                assert again.first_batch == place + 1
                assert set(again.skipped) >= set(positions[place + 1].skipped)

    def test_what_came_before_is_not_decoded(self, shards, monkeypatch):
        pipeline = spec(shards, batch_size=2, num_samples=None).build()
        stream = pipeline.stream()
        for _ in range(8):
            next(stream)
        position = pipeline.position(8)
        expected = next(stream)
        decoded = []
        exact = mobileclip.data.loading.decode.decode_image
        monkeypatch.setattr(
            mobileclip.data.loading.decode, "decode_image", lambda data, **_: decoded.append(data) or exact(data)
        )
        resumed = spec(shards, batch_size=2, num_samples=None).build()
        assert_equal(expected, next(resumed.stream(position)))
        assert len(decoded) <= 2 + len(BROKEN)
        assert resumed.report.num_read >= 18

    def test_incomplete_last_batches_of_workers(self, tmp_path):
        """Samples of a worker's last, incomplete batch are needed after it was passed over."""
        paths = [
            str(write_shard(tmp_path / f"{place}.tar", [make_sample(10 * place + n) for n in range(size)]))
            for place, size in enumerate((2, 2, 9))
        ]
        choices = {"shuffle": False, "num_workers": 3, "num_samples": None, "batch_size": 4}
        whole = list(islice(spec(paths, **choices).build().stream(), 9))
        for start in range(6):
            other = spec(paths, **choices).build().stream(StreamPosition(first_batch=start))
            for batch in whole[start : start + 3]:
                assert_equal(batch, next(other))

    def test_positions_that_are_elsewhere(self, shards):
        pipeline = spec(shards).build()
        next(pipeline.stream())
        with pytest.raises(ValueError, match=r"batch 22 is of epoch 3, but the stream knows of epochs \[0\]"):
            pipeline.position(22)
        assert pipeline.position(21) == StreamPosition(first_batch=21)
        with pytest.raises(ValueError, match="first_batch"):
            StreamPosition(first_batch=-1)

    def test_batches_taken_in_advance(self, shards):
        """Who holds batches of the next epoch already may ask for a position in the last."""
        pipeline = spec(shards).build()
        stream = pipeline.stream()
        whole = list(islice(stream, 9))
        position = pipeline.position(6)
        assert position.skipped
        assert_equal(whole[6], next(spec(shards).build().stream(position)))


class TestProcesses:
    @pytest.mark.parametrize("world_size", [2, 3])
    def test_equal_numbers_of_batches_on_uneven_shards(self, tmp_path, world_size, monkeypatch):
        """Every process steps to the next epoch after the same batch, though its shards hold more or fewer samples."""
        sizes = (9, 4, 7, 3, 6)
        shards = [
            str(write_shard(tmp_path / f"{place}.tar", [make_sample(10 * place + n) for n in range(size)]))
            for place, size in enumerate(sizes)
        ]
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        per_epoch = sum(sizes) // world_size // 2
        choices = {"batch_size": 2, "seed": 4, "num_samples": None}
        own_counts = []
        for rank in range(world_size):
            monkeypatch.setenv("RANK", str(rank))
            whole = list(islice(spec(shards, **choices).build().stream(), 3 * per_epoch))
            for epoch in range(3):
                first = next(spec(shards, **choices).build().epoch(epoch))
                assert_equal(whole[epoch * per_epoch], first)
            own_counts.append(sum(map(len, spec(shards, **choices, drop_last=False).build().epoch(0))))
        assert len(set(own_counts)) > 1
        assert sum(own_counts) == sum(sizes)


class TestResampling:
    def test_shards_are_drawn_with_replacement(self, shards):
        pipeline = spec(shards, sampling="resampled", num_samples=1200, teacher_dim=6).build()
        counts = Counter(key for batch in pipeline.epoch(0) for key in batch.keys)
        good = sorted(set(range(23)) - BROKEN)
        assert sorted(counts) == [f"{number:06d}" for number in good]
        assert sum(counts.values()) == 1200
        # Every shard is as likely as the others, whatever it holds.
        drawn = np.array([counts[f"{number:06d}"] for number in good])
        expected = 1200 / len(good)
        assert np.abs(drawn - expected).max() < 5 * np.sqrt(expected)

    def test_a_sample_that_comes_again_is_made_anew(self, tmp_path):
        path = write_shard(tmp_path / "a.tar", [make_sample(0), make_sample(1)])
        batches = list(spec(path, sampling="resampled", num_samples=60).build().epoch(0))
        seen = {batch.teacher_image[row].numpy().tobytes() for batch in batches for row in range(3)}
        assert len(batches) == 20
        assert len(seen) == 6  # three stored augmentations of two samples

    def test_workers_draw_other_shards(self, shards):
        choices = {"sampling": "resampled", "num_samples": 600, "batch_size": 10, "shuffle": False, "teacher_dim": 6}
        batches = list(islice(spec(shards, **choices, num_workers=2).build().stream(), 6))
        alone = list(islice(spec(shards, **choices).build().stream(), 3))
        for first, second in zip(batches[0::2], alone, strict=True):
            assert first.keys == second.keys  # worker 0 draws what a lone one draws
        assert [batch.keys for batch in batches[0::2]] != [batch.keys for batch in batches[1::2]]
        other_epoch = next(spec(shards, **choices).build().epoch(1))
        assert other_epoch.keys != alone[0].keys

    def test_more_processes_than_shards(self, shards, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "9")
        monkeypatch.setenv("RANK", "8")
        choices = {"sampling": "resampled", "num_samples": 90, "teacher_dim": 6}
        assert len(list(spec(shards, **choices).build().epoch(0))) == 3

    def test_length(self, shards):
        pipeline = spec(shards, sampling="resampled", drop_last=False, epochs=2).build()
        assert len(list(pipeline)) == len(pipeline) == 14

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_nothing_to_draw(self, tmp_path, num_workers):
        empty = write_raw(tmp_path / "a.tar", {})
        with pytest.raises(ValueError, match="not one sample of 1 shards can be used: 0 samples read, nothing skipped"):
            next(spec(empty, sampling="resampled", num_workers=num_workers).build().stream())

    def test_nothing_but_bad_samples(self, tmp_path, monkeypatch):
        monkeypatch.setattr(mobileclip.data.loading.dataset, "MAX_VAIN", 50)
        path = write_shard(tmp_path / "a.tar", [make_sample(n, image=encoded(40, 30)[:-300]) for n in range(3)])
        with pytest.raises(ValueError, match=r"50 samples in a row cannot be used, the last \(.*\): image_truncated"):
            next(spec(path, sampling="resampled").build().stream())
