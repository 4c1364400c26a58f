"""Streams without end: resumed without decoding, and the same on any number of processes and workers."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice

import attrs
import pytest
import torch

import mobileclip.data.loading.reading
from mobileclip import storage
from mobileclip.data import (
    ReinforcedBatch,
    ReinforcedPipelineSpec,
    StreamPosition,
    crop_augmentation,
    joined_positions,
    write_shard,
    write_shards,
)
from mobileclip.data.images import opening
from mobileclip.data.loading.reading import TarReader
from mobileclip.data.shards.sidecars import write_sizes
from mobileclip.inputs import ImageInput
from mobileclip.serialization import from_json, to_json
from tests.data.made_samples import encoded, make_sample as make_any_sample, write_raw
from tests.errors import fails

# What is tested is which samples come, and not their pixels.
make_sample = partial(make_any_sample, size=(20, 15), augmentation=crop_augmentation(32))
# Uneven on purpose: numbers of samples per shard.
SIZES = (9, 2, 7, 4, 1, 12)
BROKEN = {2, 3, 10, 15, 22, 30}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """Shards with undecodable images, a duplicate member, a repeated key and an end that is missing."""
    directory = tmp_path_factory.mktemp("shards")
    many = (make_sample(n, **({"image": b"broken"} if n in BROKEN else {})) for n in range(sum(SIZES)))
    paths = [str(write_shard(directory / f"{place}.tar", islice(many, size))) for place, size in enumerate(SIZES)]
    odd = write_raw(directory / "odd.tar", [(f"{key}.txt", b"text") for key in ("a", "b", "a")])
    raw = write_raw(directory / "raw.tar", {f"w{number}": {"txt": b"no embeddings"} for number in range(2)})
    return [*paths, odd, raw]


def spec(shards: object, **changes: object) -> ReinforcedPipelineSpec:
    choices = {"batch_size": 3, "shuffle_buffer": 5, "num_samples": 35, "num_readers": 6, "teacher_dim": 6} | changes
    return ReinforcedPipelineSpec(shards=shards, image=ImageInput(size=16), **choices)


def assert_equal(first: ReinforcedBatch, second: ReinforcedBatch) -> None:
    assert first.keys == second.keys
    assert all(torch.equal(one, other) for one, other in zip(first.tensors(), second.tensors(), strict=True))


def noted(monkeypatch, place: object, name: str) -> list[object]:
    """Return a list that gets what a function is called with first."""
    called, function = [], getattr(place, name)
    monkeypatch.setattr(place, name, lambda *given, **choices: called.append(given[0]) or function(*given, **choices))
    return called


def digests(batches: Sequence[ReinforcedBatch]) -> Counter[tuple[str, ...]]:
    """Return what tells samples, augmentations and captions of one step apart."""
    return Counter(
        (key, *(tensor[row].sum().item() for tensor in (batch.image, batch.text, batch.syn_text)))
        for batch in batches
        for row, key in enumerate(batch.keys)
    )


def run_on(
    monkeypatch: pytest.MonkeyPatch, made: ReinforcedPipelineSpec, *parts: tuple[int, int]
) -> tuple[list[tuple[ReinforcedBatch, ...]], StreamPosition, list[tuple[str, str]]]:
    """Run every process of a run that is resumed on other numbers of processes.

    Args:
        parts: number of processes of each part, and the step at which it ends.

    Returns:
        what each step has, where they are then, and what was left out.
    """
    steps, left_out, position = [], [], StreamPosition()
    for world_size, stop in parts:
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        batches, positions = [], []
        for rank in range(world_size):
            monkeypatch.setenv("RANK", str(rank))
            pipeline = attrs.evolve(made, batch_size=made.batch_size // world_size).build()
            batches.append(list(islice(pipeline.stream(position), stop - position.first_batch)))
            left_out += [(skip.key, skip.reason) for skip in pipeline.take_skips(stop)]
            positions.append(pipeline.position(stop))
        steps += zip(*batches, strict=True)
        position = from_json(to_json(joined_positions(positions)), StreamPosition)
    return steps, position, left_out


class TestResuming:
    @pytest.mark.parametrize(
        ("sampling", "num_workers"),
        [
            *(("epoch", 0), ("endless", 0), ("with_replacement", 0)),
            *(pytest.param("epoch", 3, marks=pytest.mark.slow), ("endless", 3)),
        ],
    )
    def test_every_place(self, shards, num_workers, sampling):
        """The positions of a resumed run are those of the whole one, so two batches of it tell of all that follow."""
        pipeline = spec(shards, sampling=sampling, num_workers=num_workers).build()
        whole, positions = [], [pipeline.position(0)]
        for number, batch in zip(range(1, 31), pipeline.stream(), strict=False):
            whole.append(batch)
            positions.append(pipeline.position(number))
        assert pipeline.report.num_read == 90
        starts, count = (range(30), 2) if num_workers == 0 else ((0, 2, 12), 16)
        for start in starts:
            position = from_json(to_json(positions[start]), StreamPosition)
            assert position == positions[start]
            resumed = spec(shards, sampling=sampling).build()  # with another number of workers, too
            for place, batch in zip(range(start, min(start + count, 30)), resumed.stream(position), strict=False):
                assert_equal(whole[place], batch)
                assert resumed.position(place + 1) == positions[place + 1]

    def test_what_came_before_is_not_decoded_and_a_shard_a_reader_is_opened(self, shards, monkeypatch):
        pipeline = spec(shards, sampling="endless").build()
        expected = list(islice(pipeline.stream(), 9))[8]
        decoded, opened = noted(monkeypatch, opening, "_opened"), noted(monkeypatch, storage, "open_read")
        assert_equal(expected, next(spec(shards, sampling="endless").build().stream(pipeline.position(8))))
        assert 0 < len(decoded) <= 3 + len(BROKEN)
        assert len(opened) <= 3 + 3  # one a reader, and the next where that one ended

    def test_what_was_left_out_is_counted_from_the_start_on(self, shards, monkeypatch):
        """By a run that resumes on another number of processes, too; names come once."""
        whole, names = spec(shards).build(), []
        for number, _ in zip(range(1, 21), whole.stream(), strict=False):
            names += [(skip.key, skip.reason) for skip in whole.take_skips(number)]
        expected = whole.position(20)
        assert expected.skipped["image_not_an_image"] >= len(BROKEN)
        assert Counter(reason for _, reason in names) == expected.skipped
        _, position, again = run_on(monkeypatch, spec(shards), (3, 4), (1, 13), (3, 20))
        assert position.skipped == expected.skipped
        assert sorted(again) == sorted(names)

    @pytest.mark.parametrize("sampling", ["epoch", "endless"])
    def test_a_position_in_other_data_is_refused(self, tmp_path, sampling):
        """Or samples would come twice, and others never; data that was moved is the same.

        The position may be before batches that were taken in advance.
        """
        for name, size in (("here", 4), ("moved", 4), ("others", 6)):
            write_shards(tmp_path / name, map(make_sample, range(24)), samples_per_shard=size)

        def made(pattern):
            return spec(str(tmp_path / pattern), sampling=sampling, batch_size=6, num_samples=None).build()

        pipeline = made("here/{00000000..00000005}.tar")
        batches = list(islice(pipeline.stream(), 5))
        position = pipeline.position(2)
        assert next(made("moved/{00000000..00000005}.tar").stream(position)).keys == batches[2].keys
        for others in ("others/{00000000..00000003}.tar", "here/{00000000..00000004}.tar"):
            with fails(ValueError):
                next(made(others).stream(position))

    def test_positions_that_are_elsewhere(self, shards):
        pipeline = spec(shards).build()
        list(islice(pipeline.stream(), 7))
        with fails(ValueError, "22", "[4, 5, 6, 7]"):
            pipeline.position(22)
        position = pipeline.position(7)
        with fails(ValueError, "6", "3"):
            next(spec(shards, num_readers=3).build().stream(position))
        with fails(ValueError, "first_batch"):
            StreamPosition(first_batch=-1)
        with fails(ValueError, "2"):
            StreamPosition(num_readers=2, places=((2, 0, 0, 1),))
        with fails(ValueError, "[7, 6]"):
            joined_positions([position, pipeline.position(6)])


@pytest.mark.parametrize("sampling", ["epoch", "endless"])
def test_a_batch_reads_a_few_batches_worth_of_samples(tmp_path, sampling, monkeypatch):
    """The first of a run and of an epoch, too: buffers filled at once would read 600 here, and a gigabyte in a run."""
    first = write_shard(tmp_path / "0.tar", map(make_sample, range(52)))
    for place in range(1, 12):
        (tmp_path / f"{place}.tar").write_bytes(first.read_bytes())
    write_sizes(tmp_path, {f"{place}.tar": 52 for place in range(12)})
    read, num_read = TarReader.read, []

    def counted(self, *given):
        for raw in read(self, *given):
            num_read.append(raw)
            yield raw

    choices = {"sampling": sampling, "batch_size": 24, "num_readers": 12, "shuffle_buffer": 50, "reinforced": False}
    stream = spec(str(tmp_path / "{0..11}.tar"), **choices).build().stream()
    monkeypatch.setattr(TarReader, "read", counted)
    for number in range(28):
        before = len(num_read)
        next(stream)
        assert len(num_read) - before <= 3 * 24, f"batch {number}"


@pytest.mark.parametrize("sampling", ["epoch", "endless", "with_replacement"])
def test_the_number_of_processes_changes_no_step(shards, sampling, monkeypatch):
    """Resumed again and again with other numbers of processes, every step has the same samples."""
    made = spec(shards, batch_size=6, sampling=sampling)
    whole, parts = (
        [digests(step) for step in run_on(monkeypatch, made, *parts)[0]]
        for parts in ([(1, 16)], [(2, 3), (6, 4), (1, 8), (3, 11), (2, 16)])
    )
    assert parts == whole


@pytest.mark.parametrize("kind", ["missing", "empty", "no tar"])
def test_others_take_the_place_of_the_samples_of_a_dead_shard(tmp_path, kind, monkeypatch):
    """Without copies in a batch, told once an epoch, and the same on any number of processes and resumes."""
    paths = write_shards(tmp_path, map(make_sample, range(96)), samples_per_shard=12)
    write_sizes(tmp_path, {path.name: 12 for path in paths})
    paths[3].unlink()
    if kind != "missing":
        paths[3].write_bytes(bytes(1024) if kind == "empty" else b"nothing")
    made = spec(paths, reinforced=False, batch_size=16, num_readers=8, shuffle_buffer=1)

    def keys_and_end(*parts):
        steps, end, _ = run_on(monkeypatch, made, *parts)
        return [sorted(key for batch in step for key in batch.keys) for step in steps], end

    keys, end = keys_and_end((1, 12))  # two epochs of six steps
    assert all(len(set(step)) == 16 for step in keys)
    living = {f"{number:06d}" for number in range(96) if number // 12 != 3}
    for first in (0, 6):
        assert set(itertools.chain(*keys[first : first + 6])) == living
    assert end.skipped == ({} if kind == "empty" else {"unreadable_shard": 2})
    assert keys_and_end((2, 3), (4, 7), (1, 12)) == (keys, end)


class TestEndless:
    def test_a_sample_that_comes_again_is_made_anew(self, tmp_path):
        path = write_shard(tmp_path / "a.tar", [make_sample(0), make_sample(1)])
        batches = list(spec(path, sampling="endless", num_samples=60).build().epoch(0))
        assert len(batches) == 20
        # Three stored augmentations of two samples.
        assert len(torch.cat([batch.teacher_image for batch in batches]).unique(dim=0)) == 6

    def test_mixtures(self, tmp_path):
        """Every batch has the share of each source that its weight says."""
        for name, first in (("a", 0), ("b", 100)):
            write_shards(tmp_path / name, map(make_sample, range(first, first + 12)), samples_per_shard=3)
        patterns = [str(tmp_path / name / "{00000000..00000003}.tar") for name in ("a", "b")]
        pipeline = spec(patterns, sampling="endless", weights=(3.0, 1.0), num_readers=4, batch_size=4).build()
        for batch in islice(pipeline.stream(), 10):
            assert sum(int(key) >= 100 for key in batch.keys) == 1
        with fails(ValueError, "3", "2", "endless"):
            spec(patterns, sampling="endless", weights=(3.0, 1.0, 2.0))

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_nothing_to_draw(self, tmp_path, num_workers):
        empty = write_raw(tmp_path / "a.tar", {})
        with fails(ValueError, "1", "0 samples read, nothing skipped"):
            next(spec(empty, sampling="endless", num_workers=num_workers).build().stream())

    def test_nothing_but_bad_samples(self, tmp_path, monkeypatch):
        monkeypatch.setattr(mobileclip.data.loading.reading, "MAX_VAIN", 50)
        path = write_shard(tmp_path / "a.tar", [make_sample(n, image=encoded(20, 15)[:-300]) for n in range(3)])
        with fails(ValueError, "50", "image_truncated"):
            next(spec(path, sampling="endless").build().stream())


def test_a_worker_that_is_killed_is_replaced_and_the_stream_goes_on_as_without(shards, caplog):
    pipeline = spec(shards[:-2], num_workers=2).build()
    stream = pipeline.stream()
    batches = list(islice(stream, 4))
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    batches += islice(stream, 10)
    stream.close()
    assert 1 <= pipeline.num_lost <= 2
    assert "a new worker continues from the same sample" in caplog.text
    for one, other in zip(batches, islice(spec(shards[:-2]).build().stream(), 14), strict=True):
        assert_equal(one, other)
