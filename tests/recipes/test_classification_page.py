"""The example of docs/finetuning.md, run as it is written: a classifier from a model that learned drawn scenes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mobileclip.datasets import find_class_names
from mobileclip.encoders import ClassifierSpec, load_backbone, load_model
from mobileclip.evaluation import evaluate_classifier
from mobileclip.recipes.tiny import SHAPES
from mobileclip.training import read_metrics
from tests.recipes.world import World, write_model, write_shapes

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"


@pytest.mark.slow
def test_accuracy_rises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        write_model(Path("made"), World(num_scenes=500, num_steps=100, batch_size=32)).rename("clip.safetensors")
        for split, count, seed in (("train", 24, 4), ("val", 20, 5)):
            write_shapes(Path("shapes") / split, SHAPES, count, seed=seed)
        section = PAGE.read_text(encoding="utf-8").partition("\n## Train a classifier\n")[2]
        (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        result: dict[str, object] = {}
        exec(compile(code, str(PAGE), "exec"), result)
    finally:
        torch.set_num_threads(threads)

    names = find_class_names("shapes/train")
    tower = load_model("clip.safetensors", tower="image", fold=False).spec
    untrained = ClassifierSpec(image=tower.without_projection(), num_classes=len(names), class_names=names).build()
    load_backbone(untrained, "clip.safetensors")
    before = evaluate_classifier(untrained.eval(), "shapes/val").result.top1
    assert before < 0.35
    assert result["accuracy"] > before + 0.2
    losses = [line["loss"] for line in read_metrics(Path("outputs/shapes/metrics.jsonl"))]
    assert losses[-1] < losses[0]
    assert result["backbone"](torch.rand(1, 3, 64, 64)).shape == (1, tower.without_projection().embedding_dim)
