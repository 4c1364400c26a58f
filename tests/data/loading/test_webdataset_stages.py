"""Examples in webdataset's own pipelines: those of ours, to the bit, and damage costs the sample alone."""

from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
import webdataset as wds

from mobileclip.data import (
    ExampleMaker,
    ReinforcedExampleSpec,
    ReinforcedPipelineSpec,
    SkipReport,
    endless_shards,
    keep_samples,
    make_examples,
    read_reinforced_samples,
    read_shards,
    write_shard,
    write_shards,
)
from mobileclip.datasets import LabelledMaker, LabelledPipelineSpec
from mobileclip.inputs import ImageInput
from tests.data.made_samples import encoded, make_sample, write_raw
from tests.errors import fails

# webdataset leaves its files to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

IMAGE = ImageInput(size=24)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "a.tar"
    write_shard(path, [make_sample(number) for number in range(7)], layout="pth.gz")
    return str(path)


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys == other.keys
        assert one.as_dict().keys() == other.as_dict().keys()
        assert all(torch.equal(mine, its) for mine, its in zip(one.tensors(), other.tensors(), strict=True))


def members(*paths):
    """Return the first stages of webdataset."""
    return wds.SimpleShardList([*paths]), wds.tarfile_to_samples()


@pytest.mark.parametrize("reinforced", [True, False])
def test_batches_are_those_of_our_pipeline(shard, reinforced):
    choices = {"image": IMAGE, "reinforced": reinforced, "seed": 3}
    order = {"batch_size": 3, "shuffle": False, "num_readers": 1, "drop_last": False}
    ours = ReinforcedPipelineSpec(shards=shard, **choices, **order).build()
    maker, report = ExampleMaker(ReinforcedExampleSpec(**choices)), SkipReport()
    theirs = wds.DataPipeline(
        *members(shard),
        partial(make_examples, maker=maker, epoch=2, on_skip=report.add),
        wds.batched(3, collation_fn=maker.collate, partial=True),
    )
    same(ours.epoch(2), theirs)
    assert report.num_skipped == 0


def test_in_a_process_of_its_own_and_behind_other_stages(shard):
    maker = ExampleMaker(ReinforcedExampleSpec(image=IMAGE))
    stage = partial(make_examples, maker=maker, epoch=0, on_skip=SkipReport().add)
    chosen = wds.WebDataset(shard, shardshuffle=False).select(lambda sample: sample["__key__"] != "000003")
    dataset = chosen.compose(stage).batched(6, collation_fn=maker.collate)
    (batch,) = wds.WebLoader(dataset, batch_size=None, num_workers=1)
    assert batch.keys == tuple(f"{number:06d}" for number in (0, 1, 2, 4, 5, 6))
    spec = ReinforcedPipelineSpec(image=IMAGE, shards=shard, batch_size=7, shuffle=False, num_readers=1)
    (ours,) = spec.build().epoch(0)
    assert torch.equal(batch.image, ours.image[[0, 1, 2, 4, 5, 6]])


def test_everything_is_counted(tmp_path):
    """What is used, passed over and left out."""
    samples = [make_sample(n, image=b"broken" if n % 6 < 2 else encoded(40, 30)) for n in range(24)]
    paths = [str(path) for path in write_shards(tmp_path, samples, samples_per_shard=6)]
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    report = SkipReport(log=False)
    maker = ExampleMaker(ReinforcedExampleSpec(image=IMAGE))
    dataset = wds.DataPipeline(
        wds.SimpleShardList([*paths, str(tmp_path / "broken.tar")]),
        wds.split_by_worker,
        partial(read_shards, on_skip=report.add),
        partial(keep_samples, keep=lambda key, _: int(key) % 6 != 5, report=report),
        partial(make_examples, maker=maker, epoch=0, on_skip=report.add),
        wds.batched(3, collation_fn=maker.collate, partial=True),
    )
    for epoch in (1, 2):
        assert sum(len(batch) for batch in wds.WebLoader(dataset, batch_size=None, num_workers=0)) == 12
        assert (report.num_read, report.num_unwanted) == (12 * epoch, 4 * epoch)
        assert report.counts == {"image_not_an_image": 8 * epoch, "unreadable_shard": epoch}
        assert len(report.keys("image_not_an_image")) == 8 * epoch
    assert str(report).startswith("24 samples read, 8 passed over, 18 skipped")


@pytest.mark.parametrize("captions", ["real", "synthetic", "both"])
def test_samples_with_their_embeddings_in_memory_are_those_that_are_stored(shard, captions):
    maker = ExampleMaker(ReinforcedExampleSpec(image=IMAGE, captions=captions, seed=2))
    stored = list(wds.DataPipeline(*members(shard)))
    expected = list(make_examples(stored, maker=maker, epoch=1, on_skip=SkipReport().add))
    made = [maker.example(sample, 1) for sample in read_reinforced_samples(shard)]
    same([maker.collate(made)], [maker.collate(expected)])
    assert maker.collate(made).teacher_image is not None


def test_classes(tmp_path):
    path = write_raw(tmp_path / "a.tar", {f"{n}": {"png": encoded(40, 30, seed=n), "cls": b"%d" % n} for n in range(4)})
    spec = LabelledPipelineSpec(shards=path, batch_size=4, image=IMAGE, num_classes=4, shuffle=False, num_readers=1)
    maker = LabelledMaker(spec)
    theirs = wds.DataPipeline(
        *members(path),
        partial(make_examples, maker=maker, epoch=0, on_skip=SkipReport().add),
        wds.batched(4, collation_fn=maker.collate),
    )
    same(spec.build().epoch(0), theirs)


class TestShards:
    def test_every_source_has_its_weight_and_all_shards_come_before_one_comes_again(self):
        stage = partial(endless_shards, "a/{0..2}.tar", ["b/{0..4}.tar", "b/5.tar"], weights=(0.25, 0.75), seed=1)
        shards = list(islice(wds.DataPipeline(stage), 48))
        assert Counter(shard["url"][0] for shard in shards) == {"a": 12, "b": 36}
        assert Counter(shard["url"][0] for shard in shards[:8]) == {"a": 2, "b": 6}
        for source, size in (("a", 3), ("b", 6)):
            own = [shard for shard in shards if shard["url"][0] == source]
            rounds = [own[start : start + size] for start in range(0, len(own), size)]
            assert all(len({shard["url"] for shard in those}) == size for those in rounds)
            assert all({shard["epoch"] for shard in those} == {number} for number, those in enumerate(rounds))
            assert len({tuple(shard["url"] for shard in those) for those in rounds}) > 1

    def test_they_are_those_of_the_loader(self, tmp_path):
        """With one reader a shard, in the order of the loader's readers."""
        image = encoded(8, 6)
        for number in range(4):
            write_raw(tmp_path / f"{number}.tar", {f"{number}": {"txt": b"text", "png": image}})
        pattern = str(tmp_path / "{0..3}.tar")
        choices = {"batch_size": 8, "image": ImageInput(size=8), "reinforced": False, "sampling": "endless", "seed": 5}
        pipeline = ReinforcedPipelineSpec(shards=pattern, **choices).build()
        stage = partial(endless_shards, pattern, seed=5)
        ours = [shard["url"] for shard in islice(wds.DataPipeline(stage), 8)]
        assert [f"{tmp_path}/{key}.tar" for key in next(pipeline.stream()).keys] == ours

    def test_what_cannot_be_is_refused(self):
        with fails(ValueError, "1", "2"):
            next(endless_shards("a.tar", weights=(1, 2)))

    def test_samples_are_those_of_webdataset(self, shard):
        report = SkipReport()
        ours = wds.DataPipeline(wds.SimpleShardList([shard]), partial(read_shards, on_skip=report.add))
        theirs = wds.DataPipeline(*members(shard))
        local = {"__local_path__"}
        assert list(ours) == [{name: sample[name] for name in sample.keys() - local} for sample in theirs]

    def test_what_is_damaged_is_reported_and_the_rest_comes(self, tmp_path):
        path = Path(write_raw(tmp_path / "a.tar", {"a": {"txt": b"one"}, "b": {"txt": b"two"}}))
        path.write_bytes(path.read_bytes()[: 2 * 512 + 256])
        doubled = write_raw(tmp_path / "b.tar", [("c.txt", b"one"), ("c.txt", b"two"), ("d.txt", b"three")])
        report = SkipReport(log=False)
        shards = [{"url": str(path)}, {"url": str(tmp_path / "missing.tar")}, {"url": doubled, "epoch": 3}]
        samples = list(read_shards(shards, on_skip=report.add))
        assert [(sample["__key__"], sample.get("__epoch__")) for sample in samples] == [("a", None), ("d", 3)]
        assert report.counts == {"truncated_shard": 1, "unreadable_shard": 1, "duplicate_member": 1}

    def test_examples_are_those_of_the_epoch_of_their_shard(self, shard):
        maker = ExampleMaker(ReinforcedExampleSpec(image=IMAGE))
        make = partial(make_examples, maker=maker, on_skip=pytest.fail)
        endless = wds.DataPipeline(partial(endless_shards, shard), partial(read_shards, on_skip=pytest.fail), make)
        examples = list(islice(endless, 14))
        for epoch, own in enumerate((examples[:7], examples[7:])):
            read = wds.DataPipeline(*members(shard))
            same([maker.collate(own)], [maker.collate(list(make(read, epoch=epoch)))])
        with fails(ValueError, "000000"):
            next(make(read))
