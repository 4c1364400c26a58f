"""Each part that `docs/extending.md` shows runs as it stands there, on shards that were written here."""

from __future__ import annotations

import io

import attrs
import pytest
from PIL import Image

from mobileclip import build_model
from mobileclip.blocks import models
from mobileclip.data import datacompdr_augmentation, write_shards
from tests.data.made_samples import encoded, make_sample
from tests.encoders.small import SMALL
from tests.test_pages import PAGES, blocks

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PARTS = blocks(PAGES["docs/extending.md"].partition("\n## Use one part in your own code\n")[2], "python")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs the part of a number, and returns its names, on two shards in the public layout."""
    samples = [
        make_sample(number, image=encoded(40, 30, number, "jpeg"), image_extension="jpg", dim=768 + 768)
        for number in range(8)
    ]
    write_shards(tmp_path / "DataCompDR", samples, samples_per_shard=4)
    monkeypatch.chdir(tmp_path)

    def run(number):
        names: dict = {}
        exec(compile(PARTS[number], "docs/extending.md", "exec"), names)
        return names

    return run


def test_replay_in_webdataset(run):
    views = [sample["view"] for sample in run(0)["samples"]]
    assert [view.size for view in views] == [(256, 256)] * 8
    sample = make_sample(0, image=encoded(40, 30, 0, "jpeg"))
    expected = datacompdr_augmentation(256).apply(Image.open(io.BytesIO(sample.image)), sample.augmentations[0])
    assert views[0].tobytes() == expected.tobytes()


def test_decoder_in_webdataset(run):
    names = run(1)
    (batch,) = names["batches"]
    assert batch.image.shape == (8, 3, 256, 256)
    assert batch.teacher_image.shape == (8, 768 + 768)
    assert names["report"].num_skipped == 0


def test_loss_in_plain_pytorch(run):
    terms = run(2)["terms"]
    assert terms.total == terms.contrastive + terms.distillation
    assert terms.distillation > 0


def test_pipeline_and_loss_in_fabric(run, monkeypatch):
    """With a small model of the same contract behind the name."""
    whole = models["mobileclip_s0"]
    image, text = (attrs.evolve(getattr(SMALL, one), input=getattr(whole, one).input) for one in ("image", "text"))
    monkeypatch.setitem(models._values, "mobileclip_s0", attrs.evolve(SMALL, image=image, text=text))
    before = build_model("mobileclip_s0").logit_scale.item()
    names = run(3)
    assert names["batch"].image.shape == (8, 3, 256, 256)
    assert names["model"].logit_scale.item() != before
