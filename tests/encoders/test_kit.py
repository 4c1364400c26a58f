"""What detectors, vision-language models and trainers take towers for: parts, tokens, tracing, less memory."""

import attrs
import pytest
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from mobileclip.blocks import BlockSequence
from mobileclip.encoders import MCtSpec, TextTransformerSpec, ViTSpec
from mobileclip.reparam import reparameterize
from tests.blocks.filling import filled, noise
from tests.encoders.small import MCT, SMALL, randomised
from tests.errors import fails

IMAGE, TEXT = SMALL.image, SMALL.text


VIT = ViTSpec(width=32, depth=3, num_heads=2, embedding_dim=16)
TEXTS = {"width": 16, "depth": 2, "num_heads": 2, "embedding_dim": 8}
TOWERS = {"mci": IMAGE, "vit": VIT}
TRACED = {**TOWERS, "text": TextTransformerSpec(**TEXTS), "mct": MCtSpec(**TEXTS)}


@pytest.mark.parametrize("name", TOWERS)
def test_a_backbone_gives_the_same_maps_without_the_rest(name):
    encoder = filled(TOWERS[name].build())
    size = 32 * encoder.strides[-1]
    images = noise(1, 3, size, size)
    whole = encoder.features(images)
    backbone = encoder.backbone((0,))
    (first,) = backbone.features(images)
    torch.testing.assert_close(first, whole[0], rtol=0, atol=0)
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert backbone.dims == encoder.dims[:1]
    assert backbone.strides == encoder.strides[:1]
    kept = {parameter.data_ptr() for parameter in backbone.parameters()}
    assert kept < {parameter.data_ptr() for parameter in encoder.parameters()}
    everything = encoder.backbone()
    torch.testing.assert_close(everything.features(images), whole, rtol=0, atol=0)
    assert len(list(everything.parameters())) < len(list(encoder.parameters()))
    with fails(ValueError):
        encoder.backbone((9,))


@pytest.mark.parametrize("pool", ["end", "mean"])
@pytest.mark.parametrize("spec", [TEXT, attrs.evolve(TEXT, causal=True), attrs.evolve(TEXT, depth=0), MCT])
@pytest.mark.parametrize("fold", [False, True])
def test_token_features_are_those_that_the_embedding_is_read_from(spec, pool, fold):
    encoder = filled(attrs.evolve(spec, pool=pool).build())
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


@pytest.mark.parametrize("name", TRACED)
def test_towers_can_be_traced_by_fx(name):
    encoder, size = filled(TRACED[name].build()), getattr(TRACED[name].input, "size", 0)
    x = noise(2, 3, size, size) if size else torch.tensor([[49406, 320, 49407, *[0] * 74]])
    torch.testing.assert_close(fx.symbolic_trace(encoder)(x), encoder(x))


def flops(model, x):
    model.zero_grad()
    with FlopCounterMode(display=False) as counter:
        model(x).square().sum().backward()
    return counter.get_total_flops(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", TOWERS)
def test_activation_checkpointing_computes_again_and_gives_the_same_gradients(name):
    encoder = filled(TOWERS[name].build()).train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x = noise(2, 3, encoder.spec.input.size, encoder.spec.input.size)
    before, wanted = flops(encoder, x)
    encoder.set_grad_checkpointing()
    again, gradients = flops(encoder, x)
    assert again > 1.05 * before
    torch.testing.assert_close(gradients, wanted)
    encoder.set_grad_checkpointing(False)
    assert flops(encoder, x)[0] == before


def test_a_whole_model_checkpoints_both_towers():
    model = randomised(SMALL)
    model.set_grad_checkpointing(True)
    sequences = [module for module in model.modules() if isinstance(module, BlockSequence)]
    assert all(sequence.recomputes for sequence in sequences)
    assert len({name.partition(".")[0] for name, module in model.named_modules() if module in sequences}) == 2
