"""Embeddings in files: found again, and made again where the files are damaged or not wanted."""

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
from tests.evaluation.conftest import CAPTIONS, COUNT
from tests.evaluation.public_layout import write_benchmark
from tests.evaluation.scene_models import TEMPLATES, scene_images
from tests.evaluation.test_runner import spec_of

PETS, FLICKR = "wds_vtab-pets_test", "wds_flickr30k"


def header_end(data):
    return 8 + int.from_bytes(data[:8], "little")


def without_checksum(data):
    header = json.loads(data[8 : header_end(data)])["__metadata__"]["header"]
    return safetensors.torch.save(safetensors.torch.load(data), {"header": header})


NESTED = b'{"__metadata__":' + b"[" * 200_000
DAMAGES = {
    "emptied": lambda _: b"",
    "zeros, as a power loss leaves": lambda data: data[: header_end(data)].ljust(len(data), b"\0"),
    "pickled": lambda _: pickle.dumps({"image": [1.0]}),
    "of the version before": without_checksum,
    "nested": lambda _: len(NESTED).to_bytes(8, "little") + NESTED,
}


def opened(root, benchmark=PETS):
    """Return a model and a data set, and the function to the features of a data set."""
    candidate = open_candidate(str(root / "model0.safetensors"))
    session = Session.of(candidate, batch_size=8, show_progress=False, cache=root / "features")
    return candidate, open_benchmark(root / benchmark), session.features


def files(root):
    """Return the files of a cache by what they are of."""
    return {path.name.rpartition("-")[0]: path for path in (root / "features").rglob("*.safetensors")}


def test_damaged_files_are_made_again(root, caplog):
    _, benchmark, features_of = opened(root)
    first, _ = features_of(benchmark)
    assert len(files(root)) == 2
    for path in files(root).values():
        path.write_bytes(path.read_bytes()[:200])
    again, report = features_of(benchmark)
    assert caplog.text.count("is damaged") == 2
    torch.testing.assert_close(again.image, first.image)
    assert (again.keys, report.num_read) == (first.keys, COUNT)


def test_what_was_left_out_is_remembered(root):
    samples, _ = scene_images(3)
    broken = [BenchmarkSample(key=one.key, image=one.image, captions=one.captions[:CAPTIONS]) for one in samples]
    broken[1] = attrs.evolve(broken[1], image=broken[1].image[:300])
    write_benchmark(root / "broken", broken)
    _, benchmark, features_of = opened(root, "broken")
    (first, made), (again, remembered) = features_of(benchmark), features_of(benchmark)
    assert made.num_skipped == 1
    assert (remembered.num_read, remembered.counts, remembered.named) == (made.num_read, made.counts, made.named)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("image", "text", "num_captions"))


def test_whatever_is_wrong_with_a_file_it_is_not_taken(root, caplog):
    candidate, pets, features_of = opened(root)
    flickr = open_benchmark(root / FLICKR)
    for benchmark in (pets, flickr):
        features_of(benchmark)
    cache = FeatureCache.of(candidate, root / "features")
    prompts = hash_of([template.format(name) for name in SHAPES for template in TEMPLATES])
    contents = {"vtab-pets": fingerprint(pets), "flickr30k": fingerprint(flickr), "texts": prompts}
    assert files(root).keys() == contents.keys()
    for name, path in files(root).items():
        whole = path.read_bytes()
        assert cache.read(name, contents[name]) is not None
        for damage, damaged in DAMAGES.items():
            path.write_bytes(damaged(whole))
            caplog.clear()
            assert cache.read(name, contents[name]) is None, (name, damage)
            assert caplog.text.count("is damaged") == 1


def test_random_damage_is_seen_wherever_it_is(root):
    candidate, benchmark, features_of = opened(root, FLICKR)
    first, _ = features_of(benchmark)
    (path,) = files(root).values()
    cache, content = FeatureCache.of(candidate, root / "features"), fingerprint(benchmark)
    whole, random, num_seen = path.read_bytes(), Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        start = random.randrange(len(data))
        for place in range(start, min(len(data), start + random.choice((1, 1, 1, 8, 512, 4096)))):
            data[place] ^= 1 << random.randrange(8)
        path.write_bytes(data if random.random() < 0.8 else data[:start])
        stored = cache.read(benchmark.name, content)
        num_seen += stored is None
        assert stored is None or (torch.equal(stored.image, first.image) and stored.keys == first.keys)
    assert num_seen > 290


@pytest.mark.parametrize("cache", [True, False])
def test_labels_that_changed_with_size_and_time_kept(root, cache):
    """Embeddings and results of what was there before are not those of what is there now."""
    spec = spec_of(root, datasets=("vtab/pets",), cache=cache)

    def accuracy(**changes):
        done = evaluate_models([str(root / "model0.safetensors")], attrs.evolve(spec, **changes))
        return done.models[0].results["vtab/pets"].main_metric

    before = accuracy()
    for path in (root / PETS / "test").glob("*.tar"):
        times, data = (path.stat().st_atime_ns, path.stat().st_mtime_ns), bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            for place in (member.offset_data for member in tar if member.name.endswith(".cls")):
                data[place] = ord("0") + (data[place] - ord("0") + 1) % len(SHAPES)
        path.write_bytes(data)
        os.utime(path, ns=times)
    assert before > 0.5 > accuracy() == accuracy(output=root / "anew")


def test_data_that_change_while_they_are_evaluated_are_refused(root):
    candidate, benchmark, features_of = opened(root)

    def change(*_):
        with Path(benchmark.shards[0]).open("ab") as shard:
            shard.write(bytes(512))

    candidate.clip.model.image_encoder.register_forward_pre_hook(change)
    with fails(ValueError, "vtab-pets"):
        features_of(benchmark)
    assert "vtab-pets" not in files(root)


def test_a_full_disk_costs_the_cache_and_nothing_else(root, caplog, monkeypatch):
    monkeypatch.setattr(storage, "atomic_write", lambda _: Path("/dev/full").open("wb"))  # noqa: SIM115
    _, benchmark, features_of = opened(root, FLICKR)
    features, _ = features_of(benchmark)
    assert len(features.image) == COUNT
    assert "No space left on device" in caplog.text
    assert files(root) == {}
