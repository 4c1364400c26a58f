import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.encoders import load_model, save_model
from mobileclip.training import train
from mobileclip.training.finetuning import LoraSpec, add_lora, freeze_tower, layer_rate_groups, merge_lora, rate_scales
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, embeddings, inputs
from tests.errors import fails
from tests.training.finetuning.models import fresh
from tests.training.runs import Batches, new_model, training_spec

# Importing it takes seconds, of every process that collects tests.
pytestmark = pytest.mark.extra("lora")

SPECS = {"mci": SMALL, "mct": SMALL_MCT, "vit": SMALL_VIT}


def stepped(model, num_steps=2):
    """The model after some steps of training, in evaluation mode."""
    images, tokens = inputs(model.spec, batch=4)
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=1e-2)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (model.encode_image(images) * model.encode_text(tokens) * model.logit_scale.exp()).mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_adapters_train_alone_and_merge_into_an_ordinary_checkpoint(spec, tmp_path):
    model, original = fresh(spec), fresh(spec)
    add_lora(model, LoraSpec(rank=2))
    torch.testing.assert_close(embeddings(model), embeddings(original), rtol=1e-5, atol=1e-6)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if ".lora_A." not in name and ".lora_B." not in name} == {"logit_scale"}
    stepped(model)
    trained = embeddings(model)
    assert not torch.allclose(trained, embeddings(original), atol=1e-3)

    merge_lora(model)
    torch.testing.assert_close(embeddings(model), trained, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert list(model.state_dict()) == list(original.state_dict())
    before = original.state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("qkv.weight", "project.weight", "fc1.weight", "fc2.weight", "logit_scale")
    assert all(name.endswith(parts) for name in changed)
    assert {"image", "text"} <= {name.partition("_encoder")[0] for name in changed}
    save_model(model, tmp_path / "merged.safetensors")
    folded = load_model(tmp_path / "merged.safetensors")
    torch.testing.assert_close(embeddings(folded), trained, rtol=1e-3, atol=1e-4)


def test_the_change_of_every_weight_has_the_rank_and_the_scale():
    model, original = fresh(SMALL), fresh(SMALL)
    torch.manual_seed(0)
    add_lora(model, LoraSpec(rank=3, alpha=12))
    stepped(model)
    name = "image_encoder.stages.1.blocks.0.ffn.fc1"
    layer = model.get_submodule(name)
    product = layer.lora_B["default"].weight[:, :, 0, 0] @ layer.lora_A["default"].weight[:, :, 0, 0]
    merge_lora(model)
    change = (model.get_parameter(f"{name}.weight") - original.get_parameter(f"{name}.weight"))[:, :, 0, 0]
    torch.testing.assert_close(change, 4.0 * product, rtol=1e-3, atol=1e-5)
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 3


def test_extras_train_and_frozen_towers_get_no_adapters():
    model = fresh(SMALL)
    freeze_tower(model, "text")
    add_lora(model, LoraSpec(rank=2, extras=("image_encoder.head.project", "logit_scale")))
    adapted = {name for name, parameter in model.named_parameters() if ".lora_A." in name}
    assert adapted
    assert all(name.startswith("image_encoder.") for name in adapted)
    others = {name for name, one in model.named_parameters() if one.requires_grad and ".lora_" not in name}
    assert others == {"image_encoder.head.project.weight", "logit_scale"}


def test_adapters_have_the_rate_of_their_layer():
    model = fresh(SMALL)
    add_lora(model, LoraSpec(rank=2))
    scales = rate_scales(model, 0.5)
    assert scales["image_encoder.stages.2.blocks.0.attention.qkv.lora_A.default.weight"] == 0.5
    assert scales["text_encoder.layers.0.ffn.fc1.lora_B.default.weight"] == 0.25


def test_merging_without_adapters_changes_nothing():
    model = fresh(SMALL)
    merge_lora(model)
    torch.testing.assert_close(embeddings(model), embeddings(fresh(SMALL)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_what_is_evaluated_in_training_folds(tmp_path, ema_decay):
    """An evaluation folds the model that it is given; the adapters train on."""
    model, seen = new_model(), []

    def evaluate(evaluated, _):
        seen.append(embeddings(reparameterize(evaluated)))
        return {}

    add_lora(model, LoraSpec(rank=2))
    spec = training_spec(4, evaluate_every_steps=2, ema_decay=ema_decay)
    result = train(spec, model=model, batches=Batches(), output=tmp_path, evaluate=evaluate)
    assert any(".lora_A." in name for name in result.model.state_dict())
    first, last = seen
    torch.testing.assert_close(last, embeddings(result.model), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(first, last, atol=1e-4)


@pytest.mark.parametrize("around", [lambda tower: tower, lambda tower: nn.ModuleDict({"body": tower})])
@pytest.mark.parametrize("spec", [SMALL, SMALL_VIT], ids=["mci", "vit"])
def test_a_tower_alone_or_as_a_part_takes_adapters(spec, around):
    original, model = fresh(spec), fresh(spec)
    part = around(model.image_encoder)
    add_lora(part)
    trainable = {name for name, one in part.named_parameters() if one.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    images, _ = inputs(spec, batch=4)
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
    model = fresh(SMALL)
    with fails(ValueError, "image_encoder.heads"):
        add_lora(model, LoraSpec(extras=("image_encoder.heads",)))
    with fails(ValueError, "logit_scale"):
        add_lora(model.image_encoder, LoraSpec(extras=("logit_scale", "head.project")))
    add_lora(model, LoraSpec())
    with fails(ValueError):
        add_lora(model, LoraSpec())
    with fails(ValueError):
        add_lora(fresh(SMALL).requires_grad_(False), LoraSpec())
    with fails(ValueError, "'rank'"):
        LoraSpec(rank=0)
