import pytest
import torch
from torch import nn

from mobileclip import specs
from mobileclip.training import decay_groups, finetuning
from mobileclip.training.finetuning import LayerDecayAdamWSpec, layer_rate_groups, rate_scales
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT
from tests.errors import fails
from tests.training.class_runs import new_classifier
from tests.training.finetuning.models import fresh

# Of some parameters, how many layers are above them. The image tower of SMALL has a stem, 1 + 2 + 1 blocks and a head;
# its text tower an embedding, 2 layers and a head.
DEPTHS = {
    "image_encoder.head.project.weight text_encoder.project.weight text_encoder.norm.weight logit_scale": 0,
    "image_encoder.stages.2.blocks.0.attention.qkv.weight image_encoder.stages.2.position.conv.weight": 1,
    "image_encoder.stages.2.downsample.0.large.conv.weight text_encoder.layers.1.attention.qkv.bias": 1,
    "image_encoder.stages.1.blocks.1.layer_scale.gamma text_encoder.layers.0.ffn.fc1.weight": 2,
    "image_encoder.stages.1.blocks.0.layer_scale.gamma text_encoder.position text_encoder.token_embedding.weight": 3,
    "image_encoder.stages.1.downsample.1.branches.0.conv.weight": 3,
    "image_encoder.stages.0.blocks.0.ffn.fc1.bias": 4,
    "image_encoder.stem.0.branches.0.conv.weight": 5,
}
STAGES = {
    "image_encoder.stages.1.blocks.0.layer_scale.gamma image_encoder.stages.1.blocks.1.layer_scale.gamma": 2,
    "image_encoder.stem.0.branches.0.conv.weight": 4,
}
VIT_DEPTHS = {
    "image_encoder.project.weight": 0,
    "image_encoder.layers.1.ffn.fc1.weight": 1,
    "image_encoder.class_token image_encoder.position image_encoder.stem.conv1.conv.weight": 3,
}
CLASSIFIER_DEPTHS = {
    "head.weight image_encoder.head.conv.branches.0.conv.weight": 0,
    "image_encoder.stem.0.branches.0.conv.weight": 3,
}


def test_scales_by_hand():
    for model, by, depths in (
        (fresh(SMALL), "block", DEPTHS),
        (fresh(SMALL), "stage", STAGES),
        (fresh(SMALL_VIT), "block", VIT_DEPTHS),
        (new_classifier(), "block", CLASSIFIER_DEPTHS),
    ):
        scales = rate_scales(model, 0.5, by=by)
        expected = {name: 0.5**depth for names, depth in depths.items() for name in names.split()}
        assert {name: scales[name] for name in expected} == expected


PUBLISHED = ["mobileclip_s0", "mobileclip_s2", "mobileclip_b", "mobileclip2_s4", "mobileclip2_l14"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_has_an_order(name):
    """Along the tower rates only rise, from the first parameter that the input meets to the head's."""
    with torch.device("meta"):
        model = getattr(specs, name)().build()
    scales = rate_scales(model, 0.9)
    assert scales.keys() == dict(model.named_parameters()).keys()
    image = [scales[name] for name, _ in model.named_parameters() if name.startswith("image_encoder.st")]
    assert image == sorted(image)
    assert max(scales.values()) == 1


def test_groups_hold_every_trainable_parameter_once_with_its_own_rate_and_decay():
    model = fresh(SMALL_MCT)
    finetuning.freeze_tower(model, "text")
    groups = layer_rate_groups(model, 0.8, lr=1e-3, weight_decay=0.1)
    decayed, kept = decay_groups(model)
    scales = rate_scales(model, 0.8)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        for name in (names[parameter] for parameter in group["params"]):
            assert name not in found
            found[name] = group["rate_scale"], group["weight_decay"]
    assert found == {name: (scales[name], 0.1 if name in decayed else 0.0) for name in decayed | kept}
    assert [group["rate_scale"] for group in groups] == sorted(group["rate_scale"] for group in groups)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_optimizer_of_a_run_has_these_groups(decay):
    model = fresh()
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


PARTS = {
    "alone": (lambda model: model.image_encoder, "", "head."),
    "in a detector": (lambda model: Detector(model.image_encoder), "backbone.body.", "pyramid."),
    "whole": (lambda model: model, "image_encoder.", "image_encoder.head."),
}


@pytest.mark.parametrize(("part", "prefix", "top"), PARTS.values(), ids=PARTS)
def test_a_plain_loop_of_pytorch_moves_every_layer_at_its_own_rate(part, prefix, top):
    """With AdamW's first step each weight moves by its learning rate; a schedule of PyTorch keeps the proportions."""
    model = part(fresh())
    optimizer = torch.optim.AdamW(layer_rate_groups(model, 0.5, lr=1e-3), lr=0.1, eps=1e-30)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    for factor in (1.0, 0.5):
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
        moved = {name: float((before[name] - one.detach()).abs().max()) for name, one in model.named_parameters()}
        rates = {name: 1e-3 * factor * scale for name, scale in rate_scales(model, 0.5).items()}
        assert moved == pytest.approx(rates, rel=0.02)
    names = ["stem.0.branches.0.conv.weight", *(f"stages.1.blocks.{index}.ffn.fc1.bias" for index in range(2))]
    stem, lower, upper = (moved[f"{prefix}{name}"] for name in names)
    assert stem < lower < upper
    assert all(moved[name] == pytest.approx(stem * 2**5, rel=0.05) for name in moved if name.startswith(top))


def test_another_s_tower_joins_by_its_class():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    around = nn.Sequential(Own())
    with fails(ValueError, "Sequential"):
        rate_scales(around, 0.5)
    finetuning.tower_layers.register(Own, lambda _: [["low", "low"], ["high", "high"]])
    assert rate_scales(around, 0.5) == {"0.low.weight": 0.5, "0.high.weight": 1.0}


def test_a_model_inside_of_a_module_is_found():
    model = fresh()
    scales, own = rate_scales(nn.ModuleDict({"model": model, "loss": nn.Linear(2, 2)}), 0.5), rate_scales(model, 0.5)
    assert scales == {f"model.{name}": scale for name, scale in own.items()} | {"loss.weight": 1, "loss.bias": 1}


def test_mistakes_are_named():
    strange = fresh()
    strange.image_encoder = nn.Sequential(nn.Flatten(), nn.Linear(3, 24))
    for call, *words in (
        (lambda: rate_scales(fresh(), 0), "0"),
        (lambda: LayerDecayAdamWSpec(rate_decay=1.5), "'rate_decay'"),
        (lambda: LayerDecayAdamWSpec().build(nn.Linear(2, 2)), "Linear"),
        (lambda: layer_rate_groups(fresh().requires_grad_(False), 0.9, lr=1e-3),),
        (lambda: rate_scales(strange, 0.9), "Sequential"),
    ):
        with fails(ValueError, *words):
            call()
