"""What detectors, vision-language models and trainers take towers for: parts, tokens, tracing, less memory."""

import attrs
import pytest
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from mobileclip import build_model
from mobileclip.blocks import BlockSequence
from mobileclip.encoders import MCtSpec, TextTransformerSpec
from mobileclip.reparam import reparameterize
from tests.encoders.small import MCT, SMALL, randomised
from tests.errors import fails

IMAGE, TEXT = SMALL.image, SMALL.text


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, IMAGE.input.size, IMAGE.input.size, generator=torch.Generator().manual_seed(0))


def small_vit():
    vit = build_model("vit_b16", width=32, depth=3, num_heads=2, embedding_dim=16)
    return randomised_module(vit)


def randomised_module(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()


TOWERS = {"mci": lambda: randomised_module(IMAGE.build()), "vit": small_vit}


@pytest.mark.parametrize("make", TOWERS.values(), ids=TOWERS)
def test_a_backbone_gives_the_same_maps_without_the_rest(make):
    encoder = make()
    size = 32 * encoder.strides[-1]
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    whole = encoder.features(images)
    backbone = encoder.backbone((0,))
    torch.testing.assert_close(backbone.features(images)[0], whole[0], rtol=0, atol=0)
    assert backbone.dims == encoder.dims[:1]
    assert backbone.strides == encoder.strides[:1]
    kept = {parameter.data_ptr() for parameter in backbone.parameters()}
    assert kept < {parameter.data_ptr() for parameter in encoder.parameters()}
    everything = encoder.backbone()
    for own, other in zip(everything.features(images), whole, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    assert len(list(everything.parameters())) < len(list(encoder.parameters()))
    with fails(ValueError):
        encoder.backbone((9,))


def test_every_parameter_of_a_backbone_learns():
    encoder = build_model("vit_b16", width=32, depth=3, num_heads=2, embedding_dim=16)
    backbone = encoder.backbone((1,))
    backbone.features(torch.randn(1, 3, 64, 64), (1,))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("pool", ["end", "mean"])
@pytest.mark.parametrize(
    "spec",
    [
        TEXT,
        attrs.evolve(TEXT, causal=True),
        attrs.evolve(TEXT, depth=0),
        MCT,
        TextTransformerSpec(width=16, depth=2, num_heads=2, embedding_dim=8),
    ],
)
@pytest.mark.parametrize("fold", [False, True])
def test_token_features_are_those_that_the_embedding_is_read_from(spec, pool, fold):
    encoder = randomised_module(attrs.evolve(spec, pool=pool).build())
    encoder = reparameterize(encoder) if fold else encoder
    tokens = torch.tensor([[598, 5, 6, 599, 0, 0], [598, 599, 0, 0, 0, 0]])  # the end token's id is the highest
    features, mask = encoder.token_features(tokens)
    assert mask.tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]
    read = features[torch.arange(2), mask.sum(1) - 1]
    if pool == "mean":  # whose norm is that of the mean
        raw = encoder.layers(encoder.embed(tokens))
        torch.testing.assert_close(encoder.norm(raw), features)
        read = encoder.norm(torch.stack([row[inside].mean(0) for row, inside in zip(raw, mask, strict=True)]))
    torch.testing.assert_close(encoder.project(read), encoder(tokens))


TRACED = {
    **TOWERS,
    "text": lambda: randomised_module(TextTransformerSpec(width=16, depth=2, num_heads=2, embedding_dim=8).build()),
    "mct": lambda: randomised_module(MCtSpec(width=16, depth=2, num_heads=2, embedding_dim=8).build()),
}


@pytest.mark.parametrize("make", TRACED.values(), ids=TRACED)
def test_towers_can_be_traced_by_fx(make):
    encoder = make()
    tokens = torch.tensor([[49406, 320, 49407, *[0] * 74]])
    size = encoder.spec.input.size if hasattr(encoder, "strides") else 0
    x = torch.randn(2, 3, size, size) if size else tokens
    traced = fx.symbolic_trace(encoder)
    torch.testing.assert_close(traced(x), encoder(x))


def flops(model, x):
    model.zero_grad()
    with FlopCounterMode(display=False) as counter:
        model(x).square().sum().backward()
    return counter.get_total_flops(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("make", TOWERS.values(), ids=TOWERS)
def test_activation_checkpointing_computes_again_and_gives_the_same_gradients(make):
    encoder = make().train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x = torch.randn(2, 3, encoder.spec.input.size, encoder.spec.input.size)
    before, wanted = flops(encoder, x)
    encoder.set_grad_checkpointing()
    again, gradients = flops(encoder, x)
    assert again > 1.05 * before
    for own, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(own, other)
    encoder.set_grad_checkpointing(False)
    assert flops(encoder, x)[0] == before


def test_a_whole_model_checkpoints_both_towers():
    model = randomised(SMALL)
    model.set_grad_checkpointing(True)
    sequences = [module for module in model.modules() if isinstance(module, BlockSequence)]
    assert all(sequence.recomputes for sequence in sequences)
    assert len({name.partition(".")[0] for name, module in model.named_modules() if module in sequences}) == 2
