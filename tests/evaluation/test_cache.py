"""Embeddings in files: found again, and made again where the files are damaged or not wanted."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from pathlib import Path
from random import Random

import attrs
import pytest
import safetensors.torch
import torch

from mobileclip import storage
from mobileclip.evaluation import (
    BenchmarkSample,
    FeatureCache,
    Session,
    evaluate_models,
    open_benchmark,
    open_candidate,
)
from mobileclip.evaluation.data import fingerprint, hash_of
from mobileclip.recipes.tiny import SHAPES
from tests.errors import fails
from tests.evaluation.conftest import CAPTIONS, COUNT, TEMPLATES
from tests.evaluation.public_layout import write_benchmark
from tests.evaluation.scene_models import scene_images
from tests.evaluation.test_runner import spec_of


def emptied(_: bytes) -> bytes:
    return b""


def zeroed(data: bytes) -> bytes:
    """What a power loss leaves of what was not on the disk yet: the size, and zeros at the end."""
    start = 8 + int.from_bytes(data[:8], "little")
    return data[:start] + bytes(len(data) - start)


def pickled(_: bytes) -> bytes:
    return pickle.dumps({"image": [1.0]})


def of_the_version_before(data: bytes) -> bytes:
    """Without a checksum."""
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["header"]
    return safetensors.torch.save(tensors, {"header": header})


def nested_text(_: bytes) -> bytes:
    text = b'{"__metadata__":' + b"[" * 200_000
    return len(text).to_bytes(8, "little") + text


def opened(root, benchmark="wds_vtab-pets_test"):
    """Return a model and a data set, and the function to the features of a data set."""
    candidate = open_candidate(str(root / "model0.safetensors"))
    session = Session.of(candidate, batch_size=8, show_progress=False, cache=root / "features")
    return candidate, open_benchmark(root / benchmark), session.features


class TestCache:
    def test_damaged_files_are_made_again(self, root, caplog):
        _, benchmark, features_of = opened(root)
        first, _ = features_of(benchmark)
        paths = sorted((root / "features").rglob("*.safetensors"))
        assert len(paths) == 2
        for path in paths:
            path.write_bytes(path.read_bytes()[:200])
        again, report = features_of(benchmark)
        assert caplog.text.count("is damaged") == 2
        torch.testing.assert_close(again.image, first.image)
        assert (again.keys, report.num_read) == (first.keys, COUNT)

    def test_what_was_left_out_is_remembered(self, root):
        samples, _ = scene_images(3)
        broken = [
            BenchmarkSample(key=sample.key, image=image, captions=sample.captions[:CAPTIONS])
            for sample, image in zip(samples, (samples[0].image, samples[1].image[:300], samples[2].image), strict=True)
        ]
        write_benchmark(root / "broken", broken)
        _, benchmark, features_of = opened(root, "broken")
        first, made = features_of(benchmark)
        again, remembered = features_of(benchmark)
        assert made.num_skipped == 1
        assert (remembered.num_read, remembered.counts, remembered.named) == (made.num_read, made.counts, made.named)
        for name in ("image", "text", "num_captions"):
            assert torch.equal(getattr(first, name), getattr(again, name))

    def test_whatever_is_wrong_with_a_file_it_is_not_taken(self, root, caplog):
        candidate, named, features_of = opened(root)
        retrieval = open_benchmark(root / "wds_flickr30k")
        for benchmark in (named, retrieval):
            features_of(benchmark)
        paths = {path.name.rpartition("-")[0]: path for path in (root / "features").rglob("*.safetensors")}
        cache = FeatureCache.of(candidate, root / "features")
        prompts = [template.format(name) for name in SHAPES for template in TEMPLATES]
        readers = {
            "vtab-pets": lambda: cache.read("vtab-pets", fingerprint(named)),
            "flickr30k": lambda: cache.read("flickr30k", fingerprint(retrieval)),
            "texts": lambda: cache.read("texts", hash_of(prompts)),
        }
        assert set(paths) == set(readers)
        for name, path in paths.items():
            whole = path.read_bytes()
            assert readers[name]() is not None
            for damage in (emptied, zeroed, pickled, of_the_version_before, nested_text):
                path.write_bytes(damage(whole))
                caplog.clear()
                assert readers[name]() is None, (name, damage.__name__)
                assert caplog.text.count("is damaged") == 1

    def test_random_damage_is_seen_wherever_it_is(self, root):
        candidate, benchmark, features_of = opened(root, "wds_flickr30k")
        first, _ = features_of(benchmark)
        (path,) = (root / "features").rglob("*.safetensors")
        cache, content = FeatureCache.of(candidate, root / "features"), fingerprint(benchmark)
        whole, random = path.read_bytes(), Random(0)
        num_seen = 0
        for _ in range(300):
            data = bytearray(whole)
            start = random.randrange(len(data))
            length = random.choice((1, 1, 1, 8, 512, 4096))
            for place in range(start, min(len(data), start + length)):
                data[place] ^= 1 << random.randrange(8)
            path.write_bytes(data if random.random() < 0.8 else data[:start])
            stored = cache.read(benchmark.name, content)
            num_seen += stored is None
            assert stored is None or (torch.equal(stored.image, first.image) and stored.keys == first.keys)
        assert num_seen > 290

    @pytest.mark.parametrize("cache", [True, False])
    def test_labels_that_changed_with_size_and_time_kept(self, root, cache):
        """Embeddings and results of what was there before are not those of what is there now."""
        model, spec = str(root / "model0.safetensors"), spec_of(root, datasets=("vtab/pets",), cache=cache)
        before = evaluate_models([model], spec).models[0].results["vtab/pets"].main_metric
        assert before > 0.5
        for path in (root / "wds_vtab-pets_test" / "test").glob("*.tar"):
            times = path.stat().st_atime_ns, path.stat().st_mtime_ns
            with tarfile.open(path) as tar:
                labels = [member.offset_data for member in tar if member.name.endswith(".cls")]
            data = bytearray(path.read_bytes())
            for place in labels:
                data[place] = ord("0") + (data[place] - ord("0") + 1) % len(SHAPES)
            path.write_bytes(data)
            os.utime(path, ns=times)
        changed = evaluate_models([model], spec).models[0].results["vtab/pets"].main_metric
        anew = evaluate_models([model], attrs.evolve(spec, output=root / "anew"))
        assert changed == anew.models[0].results["vtab/pets"].main_metric
        assert changed < 0.5

    def test_data_that_change_while_they_are_evaluated_are_refused(self, root):
        candidate, benchmark, _ = opened(root)

        def change(*_):
            with Path(benchmark.shards[0]).open("ab") as shard:
                shard.write(bytes(512))

        candidate.clip.model.image_encoder.register_forward_pre_hook(change)
        session = Session.of(candidate, batch_size=8, show_progress=False, cache=root / "features")
        with fails(ValueError, "vtab-pets"):
            session.features(benchmark)
        assert not list((root / "features").rglob("vtab-pets*"))

    def test_a_full_disk_costs_the_cache_and_nothing_else(self, root, caplog, monkeypatch):
        monkeypatch.setattr(storage, "atomic_write", lambda _: Path("/dev/full").open("wb"))  # noqa: SIM115
        _, benchmark, features_of = opened(root, "wds_flickr30k")
        features, _ = features_of(benchmark)
        assert len(features.image) == COUNT
        assert "No space left on device" in caplog.text
        assert list((root / "features").rglob("*.safetensors")) == []
