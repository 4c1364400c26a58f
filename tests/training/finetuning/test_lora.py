import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.encoders import load_model, save_model
from mobileclip.training.finetuning import LoraSpec, add_lora, freeze_tower, layer_rate_groups, merge_lora, rate_scales
from tests.encoders.small import SMALL, SMALL_VIT, embeddings, inputs
from tests.errors import fails
from tests.training import runs
from tests.training.finetuning.models import SPECS, fresh, moved, stepped, trainable

# Importing it takes seconds, of every process that collects tests.
pytestmark = pytest.mark.extra("lora")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_adapters_train_alone_and_merge_into_an_ordinary_checkpoint(spec, tmp_path):
    model, original = fresh(spec), fresh(spec)
    merge_lora(model)  # which changes nothing where there are none
    add_lora(model, LoraSpec(rank=2))
    torch.testing.assert_close(embeddings(model), embeddings(original), rtol=1e-5, atol=1e-6)
    assert {name for name in trainable(model) if ".lora_" not in name} == {"logit_scale"}
    trained = embeddings(stepped(model))
    assert not torch.allclose(trained, embeddings(original), atol=1e-3)

    merge_lora(model)
    torch.testing.assert_close(embeddings(model), trained, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == list(original.state_dict())
    changed = moved(model, original)
    parts = ("qkv.weight", "project.weight", "fc1.weight", "fc2.weight", "logit_scale")
    assert all(name.endswith(parts) for name in changed)
    assert {"image", "text"} <= {name.partition("_encoder")[0] for name in changed}
    save_model(model, tmp_path / "merged.safetensors")
    torch.testing.assert_close(embeddings(load_model(tmp_path / "merged.safetensors")), trained, rtol=1e-3, atol=1e-4)


def test_the_change_of_every_weight_has_the_rank_and_the_scale():
    model, name = fresh(), "image_encoder.stages.1.blocks.0.ffn.fc1"
    add_lora(model, LoraSpec(rank=3, alpha=12))
    layer = stepped(model).get_submodule(name)
    product = layer.lora_B["default"].weight[:, :, 0, 0] @ layer.lora_A["default"].weight[:, :, 0, 0]
    merge_lora(model)
    after, before = (one.get_parameter(f"{name}.weight")[:, :, 0, 0] for one in (model, fresh()))
    torch.testing.assert_close(after - before, 4.0 * product, rtol=1e-3, atol=1e-5)
    assert torch.linalg.matrix_rank(after - before, rtol=1e-3) == 3


def test_extras_train_and_frozen_towers_get_no_adapters():
    model = fresh()
    freeze_tower(model, "text")
    add_lora(model, LoraSpec(rank=2, extras=("image_encoder.head.project", "logit_scale")))
    adapted = {name for name in trainable(model) if ".lora_" in name}
    assert {name.partition(".")[0] for name in adapted} == {"image_encoder"}
    assert trainable(model) - adapted == {"image_encoder.head.project.weight", "logit_scale"}


def test_adapters_have_the_rate_of_their_layer():
    model = fresh()
    add_lora(model, LoraSpec(rank=2))
    scales = rate_scales(model, 0.5)
    assert scales["image_encoder.stages.2.blocks.0.attention.qkv.lora_A.default.weight"] == 0.5
    assert scales["text_encoder.layers.0.ffn.fc1.lora_B.default.weight"] == 0.25


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_what_is_evaluated_in_training_folds(tmp_path, ema_decay):
    """An evaluation folds the model that it is given; the adapters train on."""
    model, seen = runs.new_model(), []

    def evaluate(evaluated, _):
        seen.append(embeddings(reparameterize(evaluated)))
        return {}

    add_lora(model, LoraSpec(rank=2))
    spec = runs.training_spec(4, evaluate_every_steps=2, ema_decay=ema_decay)
    result = runs.trained(tmp_path, spec, model=model, evaluate=evaluate)
    assert any(".lora_A." in name for name in result.model.state_dict())
    first, last = seen
    torch.testing.assert_close(last, embeddings(result.model), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(first, last, atol=1e-4)


@pytest.mark.parametrize("around", [lambda tower: tower, lambda tower: nn.ModuleDict({"body": tower})])
@pytest.mark.parametrize("spec", [SMALL, SMALL_VIT], ids=["mci", "vit"])
def test_a_tower_alone_or_as_a_part_takes_adapters(spec, around):
    original, model, (images, _) = fresh(spec), fresh(spec), inputs(spec, batch=4)
    part = around(model.image_encoder)
    add_lora(part)
    assert all(".lora_" in name for name in trainable(part))
    optimizer = torch.optim.AdamW(layer_rate_groups(part, 0.9, lr=1e-2))
    for _ in range(2):
        optimizer.zero_grad()
        model.image_encoder(images).square().mean().backward()
        optimizer.step()
    trained = model.eval().image_encoder(images)
    merge_lora(part)
    torch.testing.assert_close(model.image_encoder(images), trained, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert not torch.allclose(trained, original.eval().image_encoder(images), atol=1e-4)


def test_mistakes_are_named():
    model, adapted = fresh(), fresh()
    add_lora(adapted)
    for part, spec, *words in (
        (model, {"extras": ("image_encoder.heads",)}, "image_encoder.heads"),
        (model.image_encoder, {"extras": ("logit_scale", "head.project")}, "logit_scale"),
        (adapted, {}),
        (fresh().requires_grad_(False), {}),
        (model, {"rank": 0}, "'rank'"),
    ):
        with fails(ValueError, *words):
            add_lora(part, LoraSpec(**spec))
