from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from mobileclip import specs
from mobileclip.training import AdamWSpec, decay_groups
from mobileclip.training.finetuning import LayerDecayAdamWSpec, freeze_tower, layer_rate_groups, rate_scales
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT
from tests.training.finetuning.models import fresh


def test_scales_of_an_mci_and_a_transformer_by_hand():
    """The image tower has a stem, 1 + 2 + 1 blocks and a head; the text tower an embedding, 2 layers and a head."""
    scales = rate_scales(fresh(SMALL), 0.5)
    depth = {
        "image_encoder.head.project.weight": 0,
        "image_encoder.stages.2.blocks.0.attention.qkv.weight": 1,
        "image_encoder.stages.2.position.conv.weight": 1,
        "image_encoder.stages.2.downsample.0.large.conv.weight": 1,
        "image_encoder.stages.1.blocks.1.layer_scale.gamma": 2,
        "image_encoder.stages.1.blocks.0.layer_scale.gamma": 3,
        "image_encoder.stages.1.downsample.1.branches.0.conv.weight": 3,
        "image_encoder.stages.0.blocks.0.ffn.fc1.bias": 4,
        "image_encoder.stem.0.branches.0.conv.weight": 5,
        "text_encoder.project.weight": 0,
        "text_encoder.norm.weight": 0,
        "text_encoder.layers.1.attention.qkv.bias": 1,
        "text_encoder.layers.0.ffn.fc1.weight": 2,
        "text_encoder.position": 3,
        "text_encoder.token_embedding.weight": 3,
        "logit_scale": 0,
    }
    assert {name: scales[name] for name in depth} == {name: 0.5**steps for name, steps in depth.items()}


def test_scales_by_stage_and_of_a_vision_transformer():
    by_stage = rate_scales(fresh(SMALL), 0.5, by="stage")
    blocks = [by_stage[f"image_encoder.stages.1.blocks.{index}.layer_scale.gamma"] for index in range(2)]
    assert blocks == [0.25, 0.25]
    assert by_stage["image_encoder.stem.0.branches.0.conv.weight"] == 0.5**4
    vit = rate_scales(fresh(SMALL_VIT), 0.5)
    assert vit["image_encoder.project.weight"] == 1
    assert vit["image_encoder.layers.1.ffn.fc1.weight"] == 0.5
    assert vit["image_encoder.class_token"] == vit["image_encoder.position"] == 0.125
    assert vit["image_encoder.stem.conv1.conv.weight"] == 0.125


@pytest.mark.parametrize(
    "name", ["mobileclip_s0", "mobileclip_s2", "mobileclip_b", "mobileclip2_s4", "mobileclip2_l14"]
)
def test_every_published_model_has_an_order(name):
    """Along the tower rates only rise, from the first parameter that the input meets to the head's."""
    with torch.device("meta"):
        model = getattr(specs, name)().build()
    scales = rate_scales(model, 0.9)
    assert scales.keys() == dict(model.named_parameters()).keys()
    image = [scales[name] for name, _ in model.named_parameters() if name.startswith("image_encoder.st")]
    assert all(one <= other for one, other in itertools.pairwise(image))
    assert max(scales.values()) == 1


def test_groups_hold_every_trainable_parameter_once_with_its_own_rate_and_decay():
    model = fresh(SMALL_MCT)
    freeze_tower(model, "text")
    groups = layer_rate_groups(model, 0.8, weight_decay=0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, _ = decay_groups(model)
    scales = rate_scales(model, 0.8)
    seen = [parameter for group in groups for parameter in group["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == {parameter for parameter in model.parameters() if parameter.requires_grad}
    for group in groups:
        for parameter in group["params"]:
            assert group["rate_scale"] == scales[names[parameter]]
            assert group["weight_decay"] == (0.1 if names[parameter] in decayed else 0.0)
    assert [group["rate_scale"] for group in groups] == sorted(group["rate_scale"] for group in groups)


def test_without_decay_the_step_is_adamw_s():
    """One step with every rate equal gives AdamW's weights; with a decay, updates shrink towards the input."""
    steps = {}
    rates = {"flat": LayerDecayAdamWSpec(rate_decay=1.0), "steep": LayerDecayAdamWSpec(rate_decay=0.5)}
    for name, spec in {"plain": AdamWSpec(), **rates}.items():
        model = fresh(SMALL)
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        optimizer = spec.build(model)
        assert {group["lr"] for group in optimizer.param_groups} == {0.0}, "until a schedule says otherwise"
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * group.get("rate_scale", 1.0)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        steps[name] = {key: value.detach() - before[key] for key, value in model.named_parameters()}
    scales = rate_scales(fresh(SMALL), 0.5)
    for key, step in steps["plain"].items():
        torch.testing.assert_close(steps["flat"][key], step, rtol=0, atol=0)
        torch.testing.assert_close(steps["steep"][key], scales[key] * step, rtol=1e-3, atol=1e-7)


def test_a_model_inside_of_a_module_is_found():
    model = fresh(SMALL)
    around = nn.ModuleDict({"model": model, "loss": nn.Linear(2, 2)})
    scales = rate_scales(around, 0.5)
    assert scales["model.image_encoder.stem.0.branches.0.conv.weight"] == 0.5**5
    assert scales["loss.weight"] == scales["model.logit_scale"] == 1
    assert len(scales) == len(rate_scales(model, 0.5)) + 2


def test_mistakes_are_named():
    model = fresh(SMALL)
    with pytest.raises(ValueError, match=r"lies in \(0, 1\], got 0"):
        rate_scales(model, 0)
    with pytest.raises(ValueError, match="'rate_decay' must be <= 1"):
        LayerDecayAdamWSpec(rate_decay=1.5)
    with pytest.raises(ValueError, match="need a DualEncoder or a Classifier with its towers, got Linear"):
        LayerDecayAdamWSpec().build(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="nothing to train"):
        layer_rate_groups(model.requires_grad_(False), 0.9)
    model.image_encoder = nn.Sequential(nn.Flatten(), nn.Linear(3, 24))
    with pytest.raises(ValueError, match=r"layers of a Sequential is not known; register .*tower_layers\.register"):
        rate_scales(model, 0.9)
