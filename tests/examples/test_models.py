"""The scripts on models of one's own, run on real parts of small size."""

import importlib
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mobileclip import reparameterize, specs
from mobileclip.cli import main
from mobileclip.data import ImageTransform
from mobileclip.encoders import MCiSpec, StageSpec, image_encoder_families, load_model, save_model, token_mixers
from mobileclip.evaluation import Session, candidate_of, evaluation_tasks
from mobileclip.export import targets, verify_export
from mobileclip.inputs import ImageInput
from mobileclip.losses import losses
from mobileclip.reparam import is_folded
from mobileclip.testing import check_loss
from tests.blocks.filling import filled
from tests.contracts.tasks import check_task
from tests.encoders.small import SMALL
from tests.errors import told
from tests.plugins import install

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "models"
IMAGE = MCiSpec(stages=tuple(StageSpec(dim=dim, depth=1) for dim in (16, 32, 64)), input=ImageInput(size=64))


@pytest.fixture
def script(monkeypatch):
    """Import a script; what it registers is forgotten after the test."""
    monkeypatch.syspath_prepend(MODELS)
    for registry in (image_encoder_families, token_mixers, losses, evaluation_tasks, targets):
        monkeypatch.setattr(registry, "_values", dict(registry._values))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == MODELS:
            del sys.modules[name]


def assert_folded(model):
    assert is_folded(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())


def assert_agree(folded, model, inputs):
    with torch.inference_mode():
        torch.testing.assert_close(folded(inputs), model(inputs), rtol=1e-4, atol=1e-4)


def test_a_detector_learns_and_folds(script, capsys):
    model, folded = script("detector").main(IMAGE.build(), size=64, steps=12, lr=1e-3)
    first, *_, last = map(float, re.findall(r"^step.* (\S+?)}?$", capsys.readouterr().out, re.MULTILINE))
    assert last < 0.8 * first
    assert_folded(folded.backbone.encoder)
    image = torch.zeros(3, 64, 64)
    image[:, 16:32, 16:32] = 1.0
    model.score_thresh = folded.score_thresh = 0.0
    with torch.inference_mode():
        (ours,), (plain,) = folded([image]), model([image])
    assert len(ours["boxes"])
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


def test_a_hybrid_vit_folds_its_stem(script):
    model, folded = script("hybrid_vit").main(size=64, rounds=1)
    assert_folded(folded)
    filled(model).eval()
    assert_agree(reparameterize(model), model, torch.rand(2, 3, 64, 64))


@pytest.mark.slow
def test_repmixer_learns_keywords(script):
    model, folded, right = script("keyword_audio").main(steps=60)
    assert right > 0.8, "a guess is right once in four"
    assert_folded(folded)
    assert_agree(folded, model, script("keyword_audio").tones(8, torch.Generator().manual_seed(1))[0])


@pytest.mark.slow
def test_mci0_is_a_classifier_from_a_step_of_training_to_a_file(script, tmp_path, capsys):
    drawn = script("drawn_classifier")
    model, loaded, losses = drawn.main(side=64, steps=1, batch_size=4, out=tmp_path)
    assert losses == [pytest.approx(math.log(len(drawn.SHAPES)), abs=1)]
    assert all(weight.grad is not None for weight in model.parameters())
    assert (loaded.spec, loaded.spec.class_names) == (model.spec, drawn.SHAPES)
    assert attrs.evolve(loaded.spec.image, input=specs.mci0().input) == specs.mci0().without_projection()
    assert_folded(loaded)
    assert_agree(loaded, model, drawn.batch(4, ImageTransform(loaded.spec.image.input), random.Random(1))[0])
    said = (f"step 0 of 1: loss {losses[0]:.3f}", "10.89M parameters as trained, 10.83M folded")
    told(capsys.readouterr().out, *said)


@pytest.mark.slow
def test_own_parts_go_all_the_way_and_are_found_by_entry_point(script, tmp_path):
    script("own_parts").main(tmp_path)
    for name in ("pooling", "conv_mixer"):
        assert verify_export(tmp_path / name, show_progress=False).passed
        assert is_folded(load_model(tmp_path / f"{name}.safetensors"))
    site, source = tmp_path / "site", (MODELS / "own_parts.py").read_text()
    site.mkdir()
    install(site, "own_parts", "token_mixer", "pooling", source, attribute="PoolingSpec")
    with (site / "own_parts-1.0.dist-info" / "entry_points.txt").open("a") as entry_points:
        entry_points.write("[mobileclip.image_encoder_family]\nconv_mixer = own_parts:ConvMixerSpec\n")
    command = [sys.executable, "-m", "mobileclip.cli", "info", str(tmp_path / "conv_mixer.safetensors")]
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    assert '"kind": "conv_mixer"' in subprocess.check_output(command, text=True, env=environment)


def test_an_own_loss_trains_an_own_task_measures_and_an_own_target_exports(script, tmp_path, monkeypatch, capsys):
    own = script("own_work")
    loss = own.HingeLossSpec(margin=0.3)
    check_loss(loss, synthetic=False)
    image, text = F.normalize(torch.randn(2, 6, 8), dim=2)
    similarity = image @ text.T
    positive, others = similarity.diagonal(), similarity.clone().fill_diagonal_(-9)
    expected = sum((0.3 + others.amax(dim) - positive).relu().mean() for dim in (0, 1))
    terms = loss.build()(image=image, text=text, logit_scale=torch.tensor(1.0))
    torch.testing.assert_close(terms.total, expected)

    monkeypatch.chdir(tmp_path)
    for name in ("red", "blue"):
        Path("pictures", name).mkdir(parents=True)
        for index in range(3):
            colour = (200 + index, 30, 30) if name == "red" else (30, 30, 200 + index)
            Image.new("RGB", (64, 64), colour).save(f"pictures/{name}/{index}.png")
    model = filled(SMALL.build())
    check_task("neighbours", Path("pictures"), Session.of(candidate_of(model, name="mine"), batch_size=4))
    save_model(model, "model.safetensors")
    main("eval model.safetensors --datasets neighbours --data pictures --output results".split())
    assert "neighbours" in capsys.readouterr().out
    (results,) = Path("results").glob("*/results.jsonl")
    assert json.loads(results.read_text())["metrics"]["main_metric"] == 1.0

    main("export model.safetensors --target zipped_torch --tower image -o out".split())
    assert verify_export(Path("out"), show_progress=False).passed
    assert list(Path("out").glob("*.pt2.gz"))
