import itertools

import pytest
import torch
from torch import nn

from mobileclip import specs
from mobileclip.training import decay_groups
from mobileclip.training.finetuning import (
    LayerDecayAdamWSpec,
    freeze_tower,
    layer_rate_groups,
    rate_scales,
    tower_layers,
)
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT
from tests.errors import fails
from tests.training.class_runs import new_classifier
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


def test_scales_by_stage_of_a_vision_transformer_and_of_a_classifier():
    by_stage = rate_scales(fresh(SMALL), 0.5, by="stage")
    blocks = [by_stage[f"image_encoder.stages.1.blocks.{index}.layer_scale.gamma"] for index in range(2)]
    assert blocks == [0.25, 0.25]
    assert by_stage["image_encoder.stem.0.branches.0.conv.weight"] == 0.5**4
    vit = rate_scales(fresh(SMALL_VIT), 0.5)
    assert vit["image_encoder.project.weight"] == 1
    assert vit["image_encoder.layers.1.ffn.fc1.weight"] == 0.5
    assert vit["image_encoder.class_token"] == vit["image_encoder.position"] == 0.125
    assert vit["image_encoder.stem.conv1.conv.weight"] == 0.125
    classifier = rate_scales(new_classifier(), 0.5)
    assert classifier["head.weight"] == classifier["image_encoder.head.conv.branches.0.conv.weight"] == 1
    assert classifier["image_encoder.stem.0.branches.0.conv.weight"] == 0.5**3


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
    groups = layer_rate_groups(model, 0.8, lr=1e-3, weight_decay=0.1)
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


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_optimizer_of_a_run_has_these_groups(decay):
    model = fresh(SMALL)
    scales = rate_scales(model, decay)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in LayerDecayAdamWSpec(rate_decay=decay).build(model).param_groups:
        assert group["lr"] == 0.0, "until a schedule says otherwise"
        assert {scales[names[parameter]] for parameter in group["params"]} == {group["rate_scale"]}


class Detector(nn.Module):
    """What a detector is: a backbone of whatever name, and what stands on its maps."""

    def __init__(self, tower):
        super().__init__()
        self.backbone = nn.ModuleDict({"body": tower})
        self.pyramid = nn.Conv2d(tower.dims[-1], 4, 1)

    def forward(self, images):
        (coarsest,) = self.backbone["body"].features(images, (len(self.backbone["body"].dims) - 1,))
        return self.pyramid(coarsest)


def alone(model):
    return model.image_encoder, "", "head."


def in_a_detector(model):
    return Detector(model.image_encoder), "backbone.body.", "pyramid."


def whole(model):
    return model, "image_encoder.", "image_encoder.head."


@pytest.mark.parametrize("part", [alone, in_a_detector, whole])
def test_a_plain_loop_of_pytorch_moves_every_layer_at_its_own_rate(part):
    """With AdamW's first step each weight moves by its learning rate; a schedule of PyTorch keeps the proportions."""
    model, prefix, top = part(fresh(SMALL))
    optimizer = torch.optim.AdamW(layer_rate_groups(model, 0.5, lr=1e-3), lr=0.1, eps=1e-30)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    moved = {}
    for factor in (1.0, 0.5):
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
        moved = {name: float((before[name] - one.detach()).abs().max()) for name, one in model.named_parameters()}
        rates = {name: 1e-3 * factor * scale for name, scale in rate_scales(model, 0.5).items()}
        assert moved == pytest.approx(rates, rel=0.02)
    stem = moved[f"{prefix}stem.0.branches.0.conv.weight"]
    assert stem < moved[f"{prefix}stages.1.blocks.0.ffn.fc1.bias"] < moved[f"{prefix}stages.1.blocks.1.ffn.fc1.bias"]
    above = [value for name, value in moved.items() if name.startswith(top)]
    assert above == pytest.approx([stem * 2**5] * len(above), rel=0.05)


def test_another_s_tower_joins_by_its_class():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Linear(4, 4), nn.Linear(4, 4)

    around = nn.Sequential(Own())
    with fails(ValueError, "Sequential"):
        rate_scales(around, 0.5)
    tower_layers.register(Own, lambda _: [["low", "low"], ["high", "high"]])
    assert rate_scales(around, 0.5) == {
        "0.low.weight": 0.5, "0.low.bias": 0.5, "0.high.weight": 1.0, "0.high.bias": 1.0
    }  # fmt: skip


def test_a_model_inside_of_a_module_is_found():
    model = fresh(SMALL)
    around = nn.ModuleDict({"model": model, "loss": nn.Linear(2, 2)})
    scales = rate_scales(around, 0.5)
    assert scales["model.image_encoder.stem.0.branches.0.conv.weight"] == 0.5**5
    assert scales["loss.weight"] == scales["model.logit_scale"] == 1
    assert len(scales) == len(rate_scales(model, 0.5)) + 2


def test_mistakes_are_named():
    model = fresh(SMALL)
    with fails(ValueError, "0"):
        rate_scales(model, 0)
    with fails(ValueError, "'rate_decay'"):
        LayerDecayAdamWSpec(rate_decay=1.5)
    with fails(ValueError, "Linear"):
        LayerDecayAdamWSpec().build(nn.Linear(2, 2))
    with fails(ValueError):
        layer_rate_groups(model.requires_grad_(False), 0.9, lr=1e-3)
    model.image_encoder = nn.Sequential(nn.Flatten(), nn.Linear(3, 24))
    with fails(ValueError, "Sequential"):
        rate_scales(model, 0.9)
