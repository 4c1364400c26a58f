"""Named batches: what they hold, that they depend on nothing else, and where skipped samples end up."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import pickle
import random
import signal
import socket
import time
from collections import Counter
from itertools import chain, islice

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip import storage
from mobileclip.data import (
    AugmentationSpec,
    ImageTextSample,
    ReinforcedBatch,
    ReinforcedPipelineSpec,
    StreamPosition,
    Tokenizer,
    decode_image,
    hash_image,
    write_shard,
    write_shards,
)
from mobileclip.data.loading.batch import empty_shared, join_batches
from mobileclip.data.loading.worker_pool import WorkerPool
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput
from tests.build.image_files import encoded as file_of
from tests.data.made_samples import encoded, make_sample, write_raw
from tests.errors import fails

IMAGE = ImageInput(size=16)
NUM_SAMPLES = 23


@pytest.fixture(scope="module")
def samples() -> dict[str, object]:
    return {sample.key: sample for sample in map(make_sample, range(NUM_SAMPLES))}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, samples) -> str:
    directory = tmp_path_factory.mktemp("shards")
    write_shards(directory, samples.values(), samples_per_shard=5)
    return str(directory / "{00000000..00000004}.tar")


def spec(shards: object, **changes: object) -> ReinforcedPipelineSpec:
    choices = {"shards": shards, "batch_size": 4, "image": IMAGE, "shuffle_buffer": 6} | changes
    return ReinforcedPipelineSpec(**choices)


def rows(batches: object) -> dict[str, str]:
    """Return a digest of everything in the batches, by the sample's key."""
    digests: dict[str, str] = {}
    for batch in batches:
        for index, key in enumerate(batch.keys):
            tensors = batch.rows(index, index + 1).as_dict()
            content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in tensors if name != "keys")
            assert key not in digests
            digests[key] = hashlib.sha256(content).hexdigest()
    return digests


class TestBatches:
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_every_row_belongs_together(self, shards, samples, num_workers):
        """The augmentation and the captions, found by the teachers' rows, make the same of the sample again.

        Also at the sizes of teachers that look on. An image takes a byte a value from a worker to here.
        """
        tokenizer, seen = Tokenizer(), []
        for batch in spec(shards, online=(24, 12), drop_last=False, num_workers=num_workers).build():
            images = {16: batch.image, **batch.online_images}
            assert [(side, *some.shape) for side, some in images.items()] == [
                (side, len(batch), 3, side, side) for side in (16, 24, 12)
            ]
            assert batch.image.is_contiguous(memory_format=torch.channels_last)
            assert batch.image.untyped_storage().nbytes() == len(batch) * 3 * 16 * 16
            assert batch.image.is_shared() == (num_workers > 0)
            assert batch.teacher_image.dtype == torch.float32
            for ids, texts in ((batch.text, batch.captions), (batch.syn_text, batch.syn_captions)):
                torch.testing.assert_close(ids, tokenizer(texts))
            for row, key in enumerate(batch.keys):
                sample = samples[key]
                index = sample.image_emb.tolist().index(batch.teacher_image[row].tolist())
                synthetic = sample.syn_text_emb["syn_text"].tolist().index(batch.teacher_syn_text[row].tolist())
                for side, some in images.items():
                    again = AugmentationSpec(size=side).apply(decode_image(sample.image), sample.augmentations[index])
                    np.testing.assert_array_equal(some[row].permute(1, 2, 0), np.asarray(again), strict=True)
                assert batch.teacher_text[row].tolist() == sample.text_emb[0].tolist()
                assert batch.captions[row] == sample.captions[0]
                assert batch.syn_captions[row] == sample.syn_captions["syn_text"][synthetic]
                seen.append(key)
        assert sorted(seen) == sorted(samples)

    def test_pixels_are_the_same_for_every_contract(self, shards):
        contract = attrs.evolve(IMAGE, mean=OPENAI_MEAN, std=OPENAI_STD)
        assert rows(spec(shards, image=contract).build()) == rows(spec(shards).build())

    @pytest.mark.parametrize("reinforced", [True, False])
    @pytest.mark.parametrize(
        ("choices", "share"),
        [
            ({"captions": "real"}, (0, 0)),
            ({"captions": "both"}, (0, 0)),
            ({"captions": "synthetic"}, (1, 1)),
            ({"captions": "either"}, (0.25, 0.75)),
            ({"captions": "either", "synthetic_share": 0.0}, (0, 0)),
            ({"captions": "either", "synthetic_share": 0.2, "epochs": 6}, (0.1, 0.3)),
            ({"captions": "either", "synthetic_share": 1.0}, (1, 1)),
        ],
    )
    def test_choices_of_captions(self, shards, samples, reinforced, choices, share):
        """Whatever is chosen, text and embeddings are of one caption; so many of the texts are synthetic."""
        known = {}
        for key, sample in samples.items():
            embs = [*sample.text_emb.tolist(), *sample.syn_text_emb["syn_text"].tolist()]
            ids = Tokenizer()([*sample.captions, *sample.syn_captions["syn_text"]]).tolist()
            known |= {tuple(ids[place]): (key, place > 0, embs[place]) for place in range(3)}
        texts = ("text", "syn_text") if choices["captions"] == "both" else ("text",)
        synthetic = {"text": [], "syn_text": []}
        for batch in spec(shards, reinforced=reinforced, drop_last=False, **choices).build():
            teachers = [f"teacher_{name}" for name in ("image", *texts) if reinforced]
            assert batch.as_dict().keys() == {"keys", "image", *texts, *teachers}
            for name in texts:
                keys, kinds, embs = zip(*(known[tuple(ids)] for ids in getattr(batch, name).tolist()), strict=True)
                assert keys == batch.keys
                assert not reinforced or getattr(batch, f"teacher_{name}").tolist() == [*embs]
                synthetic[name] += kinds
        assert share[0] <= np.mean(synthetic["text"]) <= share[1]
        assert all(synthetic["syn_text"])

    def test_samples_without_synthetic_captions(self, tmp_path):
        many = [make_sample(0), make_sample(1, syn_captions={}, syn_text_emb={})]
        path = write_shard(tmp_path / "a.tar", many)
        for captions, keys in (("synthetic", ["000000"]), ("both", ["000000"]), ("either", ["000000", "000001"])):
            pipeline = spec(path, captions=captions, drop_last=False).build()
            assert sorted(key for batch in pipeline for key in batch.keys) == keys
            assert pipeline.report.keys("no_syn_caption") == (() if captions == "either" else ("000001",))

    def test_captions_of_the_chosen_sets_and_the_first_of_each(self, tmp_path, caplog):
        sets = {"syn_text_a": ("a1", "a2", "a3"), "syn_text_b": ("b1",), "syn_text_c": ()}
        emb = {name: np.full((len(texts), 6), ord(name[-1]), np.float32) for name, texts in sets.items()}
        many = [make_sample(number, syn_captions=sets, syn_text_emb=emb) for number in range(30)]
        path = write_shard(tmp_path / "a.tar", many)
        texts = {tuple(Tokenizer()(text)[0].tolist()): text for text in chain(*sets.values())}

        def drawn(**changes):
            (batch,) = spec(path, batch_size=30, captions="synthetic", **changes).build()
            found = [texts[tuple(row)] for row in batch.text.tolist()]
            assert [ord(text[0]) for text in found] == batch.teacher_text[:, 0].tolist()
            return Counter(found)

        assert drawn().keys() == {"a1", "a2", "a3", "b1"}
        assert drawn(num_captions=2).keys() == {"a1", "a2", "b1"}
        assert drawn(num_captions=9) == drawn()
        assert drawn(caption_sets="syn_text_a$").keys() == {"a1", "a2", "a3"}
        assert drawn(caption_sets="syn_text_(a|b)$", num_captions=1).keys() == {"a1", "b1"}
        with fails(ValueError, "30 no_syn_caption"):
            drawn(caption_sets="^syn_text$")
        assert "matches '^syn_text$'; the sample has syn_text_a, syn_text_b" in caplog.text

    def test_all_real_captions_are_drawn_from_and_the_first_stored_augmentations(self, tmp_path):
        captions, emb = ("one", "two", "three"), np.eye(3, 6, dtype=np.float32)
        many = [make_sample(n, captions=captions, text_emb=emb, image_emb=emb) for n in range(40)]
        path = write_shard(tmp_path / "a.tar", many)
        for num, there in ((None, 3), (1, 1), (2, 2), (30, 3)):
            (batch,) = spec(path, batch_size=40, num_augmentations=num).build()
            assert batch.teacher_image.argmax(dim=1).unique().tolist() == list(range(there))
            drawn = batch.teacher_text.argmax(dim=1)
            assert len(drawn.unique()) == 3
            torch.testing.assert_close(batch.text, Tokenizer()(captions)[drawn])

    def test_compact_shards_give_the_batches_that_bfloat16_ones_give(self, tmp_path, samples):
        batches = {}
        for layout in ("pth.gz", "compact", "compact8"):
            path = write_shard(tmp_path / f"{layout}.tar", samples.values(), layout=layout)
            (batches[layout],) = spec(path, batch_size=NUM_SAMPLES).build()
        assert rows([batches["compact"]]) == rows([batches["pth.gz"]])
        whole, rounded = batches["compact"].as_dict(), batches["compact8"].as_dict()
        assert rounded.pop("keys") == whole.pop("keys")
        for name, value in whole.items():
            rtol, atol = (0.01, 0.02) if name.startswith("teacher") else (0, 0)
            torch.testing.assert_close(rounded[name], value, rtol=rtol, atol=atol)

    def test_images_of_sampled_augmentations_move_by_the_same_fraction(self, tmp_path):
        """At three times the side, an image that was moved has bands of black that are three times as broad."""
        white = file_of(Image.new("RGB", (64, 64), "white"), "PNG")
        many = [ImageTextSample(key=f"{n}", captions=("a",), image=white, image_extension="png") for n in range(60)]
        path = write_shard(tmp_path / "a.tar", many)
        (batch,) = spec(path, online=(48,), reinforced=False, batch_size=60).build()
        # Translations alone give bands that reach from one side to the other.
        small, large = ((one == 0).all(1).all(2).sum(1) for one in (batch.image, batch.online_images[48]))
        moved = (small > 0) & (small < 8)
        assert moved.sum() >= 3
        assert ((large - 3 * small)[moved].abs() <= 3).all()
        assert batch.syn_captions is None

    def test_some_of_the_teachers_columns(self, tmp_path):
        paths = write_shards(tmp_path, [make_sample(number) for number in range(6)])
        whole, part = (
            next(iter(spec(paths, batch_size=6, teacher_columns=columns, shuffle=False).build()))
            for columns in (None, (4, 6))
        )
        for name in ("teacher_image", "teacher_text", "teacher_syn_text"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[:, 4:6])
        pipeline = spec(paths, teacher_columns=(4, 8)).build()
        with fails(ValueError, "1"):
            next(iter(pipeline))
        assert pipeline.report.counts == {"wrong_dim": 6}


class TestReproducibility:
    @pytest.mark.parametrize("reinforced", [True, False])
    def test_epochs_and_seeds_differ(self, shards, reinforced):
        def one(seed: int, epoch: int) -> tuple[list, dict]:
            batches = list(spec(shards, seed=seed, reinforced=reinforced, drop_last=False).build().epoch(epoch))
            return [batch.keys for batch in batches], rows(batches)

        order, content = one(0, 0)
        assert one(0, 0) == (order, content)
        for seed, epoch in ((0, 1), (1, 0)):
            other_order, other_content = one(seed, epoch)
            assert other_order != order
            assert other_content.keys() == content.keys()
            assert sum(other_content[key] != content[key] for key in content) > NUM_SAMPLES / 2

    def test_in_order(self, shards, samples):
        batches = spec(shards, shuffle=False, num_readers=1, drop_last=False).build()
        assert [key for batch in batches for key in batch.keys] == sorted(samples)

    @pytest.mark.parametrize(
        ("choices", "rest"),
        [({}, []), ({"drop_last": False, "num_workers": 2}, [3]), ({"drop_last": False, "sampling": "endless"}, [])],
    )
    def test_length(self, shards, choices, rest):
        pipeline = spec(shards, epochs=2, num_samples=NUM_SAMPLES, **choices).build()
        sizes = [len(batch) for batch in pipeline]
        assert sizes == [*[4] * 5, *rest] * 2
        assert len(pipeline) == len(sizes)

    def test_what_cannot_be_counted_or_filled_is_refused(self, shards, tmp_path):
        with fails(TypeError):
            len(spec(shards).build())
        with fails(ValueError, "23", "24"):
            next(spec(shards, batch_size=24).build().stream())
        with fails(ValueError, "3", "0.tar"):
            spec(str(tmp_path / "{0..2}.tar")).build()
        path = write_shard(tmp_path / "a.tar", [make_sample(number, image=None) for number in range(3)])
        with fails(ValueError, "1", "3 no_image"):
            list(spec(path).build())

    def test_processes_share_the_samples(self, shards, samples, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        keys = []
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            keys += rows(spec(shards, drop_last=False).build())
        assert sorted(keys) == sorted(samples)
        monkeypatch.setenv("WORLD_SIZE", "6")
        with fails(ValueError, "16", "6"):
            next(spec(shards).build().epoch(0))

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_an_epoch_can_be_left_early(self, shards, num_workers):
        pipeline = spec(shards, drop_last=False, num_workers=num_workers).build()
        expected = rows(pipeline.epoch(1))
        next(iter(pipeline.epoch(0)))
        assert rows(pipeline.epoch(1)) == expected


class TestStream:
    def test_epochs_have_equal_length_even_where_samples_are_lost(self, tmp_path):
        broken = [make_sample(n, image=b"broken" if n % 3 == 0 else encoded(40, 30, n)) for n in range(12)]
        path = write_shard(tmp_path / "a.tar", broken)
        pipeline = spec(path, shuffle=False, num_readers=3).build()
        numbers = [[int(key) for key in batch.keys] for batch in islice(pipeline.stream(), 6)]
        # Readers have samples 0 to 3, 4 to 7 and 8 to 11; one that lost some has its own again.
        assert numbers == [[1, 4, 8, 2], [5, 10, 1, 7], [11, 2, 4, 8]] * 2

    def test_one_sample_in_the_place_of_all(self, tmp_path):
        path = write_shard(tmp_path / "a.tar", [make_sample(0), make_sample(1, image=b"broken")])
        assert next(spec(path, batch_size=2).build().stream()).keys == ("000000", "000000")

    def test_a_position_without_places(self, shards):
        pipeline = spec(shards).build()
        with fails(ValueError, "3"):
            next(pipeline.stream(StreamPosition(first_batch=3)))
        assert next(pipeline.stream(StreamPosition(first_batch=5))).keys == next(pipeline.epoch(1)).keys


class TestSkips:
    """Whatever happens in a worker is counted by the process that trains."""

    @pytest.fixture(scope="class")
    @staticmethod
    def damaged(tmp_path_factory) -> list[str]:
        directory = tmp_path_factory.mktemp("damaged")
        bad = [
            make_sample(0, image_sha256=hash_image(make_sample(0).image)),
            make_sample(1, image=None),
            make_sample(2, image=b"no image"),
            make_sample(3, image=encoded(40, 30)[:-300]),
            make_sample(4, image=encoded(20, 15)),
            make_sample(5, dim=7),
            make_sample(6, syn_captions={}, syn_text_emb={}),
            make_sample(7),
            make_sample(8, image=make_sample(0).image, image_sha256=hash_image(make_sample(8).image)),
        ]
        first = write_shard(directory / "0.tar", bad, layout="compact")
        second = write_shard(directory / "1.tar", [make_sample(number) for number in range(9, 15)])
        second.write_bytes(second.read_bytes()[:-12000])
        third = write_raw(directory / "2.tar", {"x": {"txt": b"only a caption"}})
        return [str(first), str(second), third, str(directory / "missing.tar")]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_every_reason_arrives(self, damaged, num_workers, caplog):
        pipeline = spec(damaged, batch_size=2, num_workers=num_workers, drop_last=False, epochs=2).build()
        with caplog.at_level(logging.WARNING, logger="mobileclip"):
            batches = list(pipeline)
        report = pipeline.report
        assert report.counts.pop("missing_member") in {1, 2}  # the cut may have torn the last sample apart
        samples = ("no_image", "image_not_an_image", "image_truncated", "wrong_dim", "no_syn_caption")
        assert report.counts == {"wrong_image": 2} | dict.fromkeys((*samples, "truncated_shard", "unreadable_shard"), 1)
        assert sorted(report.keys("wrong_image")) == ["000004", "000008"]
        assert report.keys("image_truncated") == ("000003",)
        assert report.num_read * 2 == sum(map(len, batches))
        assert {"000000", "000007", "000009"} <= {key for batch in batches for key in batch.keys}
        assert "skipped 000004" in caplog.text

    def test_the_expected_dim_can_be_given(self, damaged):
        batches = list(spec(damaged, batch_size=1, teacher_dim=7).build())
        assert [batch.keys for batch in batches] == [("000005",)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("batch_size", "epochs", "shuffle_buffer", "num_samples", "teacher_dim")),
        *((name, 0) for name in ("num_captions", "num_augmentations", "worker_seconds")),
        *(("num_workers", -1), ("synthetic_share", 1.5), ("augmentation", AugmentationSpec(size=32))),
        *(("captions", "some"), ("caption_sets", "syn_text_("), ("sampling", "once"), ("decode", "half")),
        *(("online", (0,)), ("online", (32, 32)), ("weights", (3.0, 1.0)), ("teacher_columns", (4, 4))),
    ],
)
def test_bad_choices(name, value):
    with fails(ValueError, name.partition("_")[0]):
        spec(("a.tar", "b.tar"), **{name: value})


def test_batches_are_joined_cut_moved_and_pickled():
    def made(number: int, count: int) -> ReinforcedBatch:
        names = tuple(f"{number}{index}" for index in range(count))
        images = empty_shared((count, 3, 4, 4)).fill_(number)
        assert images.is_shared()
        text = torch.full((count, 4), number)
        return ReinforcedBatch(keys=names, image=images, text=text, online_images={4: images}, captions=names)

    joined = join_batches([made(1, 2), made(2, 3)])
    assert joined.keys == joined.captions == ("10", "11", "20", "21", "22")
    assert joined.syn_text is joined.syn_captions is None
    part = joined.rows(1, 3)
    assert part.keys == part.captions == ("11", "20")
    for tensor in (part.image[:, 0, 0, 0], part.online_images[4][:, 0, 0, 0], part.text[:, 0]):
        assert tensor.tolist() == [1, 2]
    assert {one.device.type for one in part.to("meta").tensors()} == {"meta"}
    twin = pickle.loads(pickle.dumps(part))
    assert (len(twin), twin.keys, twin.online_images[4].shape) == (2, part.keys, (2, 3, 4, 4))


class Numbers:
    """A source of chunks: numbers, dealt out to the workers."""

    def chunks(self, worker, num_workers):
        return iter(range(worker, 20, num_workers))

    def last_shard(self, worker):
        return f"at shard {worker}"


class TestWorkerPool:
    @pytest.fixture
    @staticmethod
    def opened():
        """A pool, in a list that holds the only reference to it, and its processes, which end in every test."""
        others = set(multiprocessing.active_children())
        pool = [WorkerPool(Numbers(), num_workers=2, seconds=60.0, seed=0)]
        processes = set(multiprocessing.active_children()) - others
        assert len(processes) == 2
        yield pool, processes
        assert not any(process.is_alive() for process in processes)

    def test_its_processes_end_with_its_block_stopped_ones_too(self, opened):
        with opened[0][0] as numbers:
            assert next(numbers) == 0
            os.kill(next(iter(opened[1])).pid, signal.SIGSTOP)

    def test_they_end_with_the_last_reference_to_it(self, opened):
        opened[0].clear()

    def test_the_end_of_a_forked_copy_ends_none_of_them(self, opened):
        copy = multiprocessing.get_context("fork").Process(target=opened[0][0].__exit__)
        copy.start()
        copy.join()
        with opened[0][0] as numbers:
            assert list(numbers) == list(range(20))


class TestWaiting:
    @pytest.mark.parametrize("place", [pytest.param(0, marks=pytest.mark.slow), 1])
    def test_a_worker_that_is_stopped_is_named(self, shards, place):
        """It would hold the run, and even the end of the program, for ever."""
        started = time.monotonic()
        list(spec(shards, num_workers=2, batch_size=1).build().epoch(0))
        patience = max(2.0, 5 * (time.monotonic() - started))  # a busy machine takes longer
        batches = spec(shards, num_workers=2, batch_size=1, worker_seconds=patience).build().epoch(0)
        next(batches)
        stopped = sorted(multiprocessing.active_children(), key=lambda child: child.pid)[place]
        bystander = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        bystander.start()
        os.kill(stopped.pid, signal.SIGSTOP)
        started = time.monotonic()
        try:
            with fails(TimeoutError, f"{patience:g}", f"worker {place} (process {stopped.pid}), last", ".tar"):
                list(batches)
            assert not stopped.is_alive()
            assert bystander.is_alive()
        finally:
            stopped.kill()
            bystander.kill()
            bystander.join()
        assert time.monotonic() - started < 10 * patience
        assert multiprocessing.active_children() == []

    def test_what_others_draw_in_a_worker_is_of_the_seed_the_process_and_the_worker(self, shards, monkeypatch):
        def tokenizer(texts):
            legacy = np.random.randint(2**32)  # noqa: NPY002 - as others do
            return torch.tensor([[random.getrandbits(32), legacy, int(torch.randint(2**32, ()))]] * len(texts))

        def drawn(seed: int, rank: int) -> list[list[int]]:
            monkeypatch.setenv("RANK", str(rank))
            choices = {"num_workers": 2, "num_readers": 4, "batch_size": 2, "seed": seed}
            stream = spec(shards, **choices).build(tokenizer=tokenizer).stream()
            first = next(stream).text.tolist()
            stream.close()
            return first

        monkeypatch.setenv("WORLD_SIZE", "2")
        found = {run: drawn(*run) for run in ((0, 0), (0, 1), (1, 0), (1, 1))}
        assert drawn(0, 1) == found[0, 1]
        for numbers in zip(*chain(*found.values()), strict=True):
            assert len(set(numbers)) == 8

    def test_how_long_is_waited_makes_no_other_run(self, shards):
        patient = spec(shards, worker_seconds=9.0, stores=storage.StoreLimits(stall_seconds=9.0))
        assert patient == spec(shards)

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_stores_are_waited_for_as_the_spec_says(self, shards, num_workers):
        choices = {"teacher_dim": 6, "sampling": "endless", "num_samples": NUM_SAMPLES, "num_workers": num_workers}
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            hung = f"http://127.0.0.1:{deaf.getsockname()[1]}/a.tar"
            limits = storage.StoreLimits(answer_seconds=0.2, retry_delays_seconds=())
            pipeline = spec((shards, hung), stores=limits, **choices).build()
            started = time.monotonic()
            assert sum(len(batch) for batch in pipeline.epoch(0)) == NUM_SAMPLES // 4 * 4
            assert time.monotonic() - started < 15
        assert pipeline.report.counts["connection_failed"] == 1
        assert storage.store_limits() == storage.StoreLimits()
