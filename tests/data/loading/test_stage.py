"""Examples in webdataset's own pipelines: those of ours, to the bit, and damage costs the sample alone."""

from functools import partial

import pytest
import torch
import webdataset as wds

from mobileclip.data import (
    ExampleMaker,
    LabelledPipelineSpec,
    ReinforcedExampleSpec,
    ReinforcedPipelineSpec,
    SkipReport,
    make_examples,
    write_shard,
)
from mobileclip.data.loading.labelled import LabelledMaker
from mobileclip.inputs import ImageInput
from tests.data.made_samples import encoded, golden, make_sample, write_raw

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
        for name, value in one.as_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other.as_dict()[name]), name


@pytest.mark.parametrize("reinforced", [True, False])
def test_batches_are_those_of_our_pipeline(shard, reinforced):
    choices = {"image": IMAGE, "reinforced": reinforced, "seed": 3}
    ours = ReinforcedPipelineSpec(
        **choices, shards=shard, batch_size=3, shuffle=False, num_readers=1, drop_last=False
    ).build()
    maker, report = ExampleMaker(ReinforcedExampleSpec(**choices)), SkipReport()
    theirs = wds.DataPipeline(
        wds.SimpleShardList([shard]),
        wds.tarfile_to_samples(),
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
    (ours,) = (
        ReinforcedPipelineSpec(image=IMAGE, shards=shard, batch_size=7, shuffle=False, num_readers=1).build().epoch(0)
    )
    kept = torch.tensor([0, 1, 2, 4, 5, 6])
    assert torch.equal(batch.image, ours.image[kept])


def test_what_cannot_be_used_is_counted_with_its_reason(tmp_path):
    members = {"txt": b"a picture", "png": encoded(40, 30)}
    damaged = {"b": {**members, "png": b"no picture"}, "c": {"png": members["png"]}, "d": {**members, "txt": b"\xff"}}
    path = write_raw(tmp_path / "a.tar", {"a": members, **damaged, "e": members})
    maker, report = ExampleMaker(ReinforcedExampleSpec(image=IMAGE, reinforced=False)), SkipReport(log=False)
    samples = wds.DataPipeline(wds.SimpleShardList([path]), wds.tarfile_to_samples())
    examples = list(make_examples(samples, maker=maker, epoch=0, on_skip=report.add))
    assert [example.key for example in examples] == ["a", "e"]
    assert report.counts == {"image_not_an_image": 1, "missing_member": 1, "bad_text": 1}
    skips = [skip for those in report.named.values() for skip in those]
    assert {skip.shard for skip in skips} == {path}


def test_teachers_of_another_dim_are_refused(shard):
    maker, report = ExampleMaker(ReinforcedExampleSpec(image=IMAGE, teacher_dim=5)), SkipReport(log=False)
    samples = wds.DataPipeline(wds.SimpleShardList([shard]), wds.tarfile_to_samples())
    assert list(make_examples(samples, maker=maker, epoch=0, on_skip=report.add)) == []
    assert report.counts == {"wrong_dim": 7}


def test_published_shards(tmp_path):
    maker, report = ExampleMaker(ReinforcedExampleSpec(image=IMAGE)), SkipReport(log=False)
    samples = wds.DataPipeline(wds.SimpleShardList([golden("bf16")]), wds.tarfile_to_samples())
    batch = maker.collate(list(make_examples(samples, maker=maker, epoch=0, on_skip=report.add)))
    assert report.num_skipped == 0
    assert batch.teacher_image.shape == batch.teacher_syn_text.shape == (len(batch), 1536)


def test_classes(tmp_path):
    path = write_raw(tmp_path / "a.tar", {f"{n}": {"png": encoded(40, 30, seed=n), "cls": b"%d" % n} for n in range(4)})
    spec = LabelledPipelineSpec(shards=path, batch_size=4, image=IMAGE, num_classes=4, shuffle=False, num_readers=1)
    maker = LabelledMaker(spec)
    theirs = wds.DataPipeline(
        wds.SimpleShardList([path]),
        wds.tarfile_to_samples(),
        partial(make_examples, maker=maker, epoch=0, on_skip=SkipReport().add),
        wds.batched(4, collation_fn=maker.collate),
    )
    same(spec.build().epoch(0), theirs)
