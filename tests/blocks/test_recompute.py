from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mobileclip.blocks import (
    AttentionBlock,
    BlockSequence,
    RepMixerBlock,
    TextRepMixerBlock,
    TransformerLayer,
    build_model,
    recomputed,
    set_recompute,
)
from mobileclip.blocks.picking import pick
from tests.encoders.small import SMALL


def maps(dtype=torch.float64):
    return torch.randn(4, 32, 8, 8, dtype=dtype)


def tokens(dtype=torch.float64):
    return torch.randn(4, 9, 32, dtype=dtype)


SEQUENCES = {
    "repmixer": (lambda: [RepMixerBlock(32, hidden_dim=48) for _ in range(3)], maps),
    "attention": (lambda: [AttentionBlock(32, head_dim=16, hidden_dim=48) for _ in range(2)], maps),
    "text": (lambda: [TextRepMixerBlock(32, kernel_size=3), TransformerLayer(32, num_heads=2)], tokens),
}


def bytes_kept(module: nn.Module, x: torch.Tensor) -> int:
    """Return how much the forward pass leaves for the backward pass, parameters aside."""
    own = {parameter.data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(kept.values())


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_and_running_statistics_are_those_of_keeping_everything(name, training):
    torch.manual_seed(0)
    blocks, inputs = SEQUENCES[name]
    keeping = BlockSequence(*blocks()).double().train(training)
    again = copy.deepcopy(keeping)
    assert set_recompute(again, enabled=True) == 1
    x = inputs()
    results = []
    for module in (keeping, again):
        own = x.clone().requires_grad_()
        for _ in range(2):
            module(own).square().sum().backward()
        results.append((own.grad, {n: p.grad for n, p in module.named_parameters()}, module.state_dict()))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_the_input_of_every_block_is_kept_and_nothing_else():
    keeping = BlockSequence(*(RepMixerBlock(32, hidden_dim=96) for _ in range(3))).train()
    again = copy.deepcopy(keeping)
    set_recompute(again, enabled=True)
    x = torch.randn(8, 32, 16, 16, requires_grad=True)
    in_pieces = sum(bytes_kept(block, x) for block in keeping)
    assert in_pieces > 5 * 3 * x.nbytes
    assert bytes_kept(again, x) == 3 * x.nbytes


@pytest.mark.parametrize("last", [TransformerLayer(8, num_heads=2), torch.nn.Linear(8, 8)], ids=["at", "whole"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("index", [0, torch.tensor([3, 1])], ids=["first", "each"])
def test_one_token_is_that_of_all(last, training, index):
    blocks = BlockSequence(TransformerLayer(8, num_heads=2), last).double().train(training)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(blocks.at(x, index), pick(blocks(x), index), rtol=1e-12, atol=1e-12)


def test_the_last_block_computes_one_token_alone():
    seen = []
    blocks = BlockSequence(*(TransformerLayer(8, num_heads=2) for _ in range(2))).eval()
    for block in blocks:
        block.ffn.register_forward_pre_hook(lambda _, taken: seen.append(tuple(taken[0].shape)))
    blocks.at(torch.randn(3, 5, 8), 0)
    assert seen == [(3, 5, 8), (3, 8)]


def test_without_gradients_nothing_is_wrapped():
    block = RepMixerBlock(32, hidden_dim=48).eval()
    with torch.no_grad():
        x = maps(torch.float32)
        torch.testing.assert_close(recomputed(block, block, x), block(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mci0", "mci3", "vit_b16", "text_base", "text_mct"])
def test_every_encoder_has_sequences_to_recompute(name):
    with torch.device("meta"):
        encoder = build_model(name)
    blocks = sum(len(module) for module in encoder.modules() if isinstance(module, BlockSequence))
    assert blocks >= 6
    assert set_recompute(encoder, enabled=True) > 0


def test_a_whole_model_trains_alike():
    torch.manual_seed(0)
    model = SMALL.build().train()
    size, context = SMALL.image.input.size, SMALL.text.input.context_length
    image, text = torch.rand(4, 3, size, size), torch.randint(1, SMALL.text.input.vocab_size, (4, context))
    gradients = []
    for enabled in (False, True):
        own = copy.deepcopy(model)
        set_recompute(own, enabled=enabled)
        image_embedding, text_embedding, scale = own(image, text)
        (scale * image_embedding @ text_embedding.mT).log_softmax(1).diagonal().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in own.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
