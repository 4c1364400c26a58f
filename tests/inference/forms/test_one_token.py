"""Layers that compute the token that is read alone give what the whole layer gives for it."""

import copy

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import Attention, EndTokenPool, TextRepMixerBlock, TransformerLayer
from mobileclip.data import Tokenizer
from mobileclip.encoders import MCtSpec, TextEncoder, ViTSpec
from mobileclip.inference.forms import (
    OneTokenRepMixerBlock,
    OneTokenTransformerLayer,
    SingleQueryAttention,
    pick,
    with_one_token,
)
from mobileclip.inputs import ImageInput, TextInput
from tests.blocks.filling import filled, noise
from tests.encoders.small import SMALL, SMALL_MCT, randomised

INDEX = torch.tensor([0, 6, 3])
LAYERS = {
    "attention": (Attention(8, num_heads=2), SingleQueryAttention),
    "attention_causal": (Attention(8, num_heads=2, causal=True, qkv_bias=False), SingleQueryAttention),
    "transformer": (TransformerLayer(8, num_heads=2), OneTokenTransformerLayer),
    "transformer_causal": (TransformerLayer(8, num_heads=2, causal=True), OneTokenTransformerLayer),
    "repmixer": (TextRepMixerBlock(8, kernel_size=5), OneTokenRepMixerBlock),
}
VIT = ViTSpec(input=ImageInput(size=32), width=16, depth=2, num_heads=2, patch_size=16, embedding_dim=8)


def test_pick():
    x = noise(3, 7, 8)
    assert pick(x, INDEX).tolist() == [x[0, 0].tolist(), x[1, 6].tolist(), x[2, 3].tolist()]
    assert torch.equal(pick(x, 2), x[:, 2])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("index", [INDEX, 2], ids=["each", "one"])
@torch.inference_mode()
def test_one_token_is_that_of_the_whole(name, index):
    layer, form = LAYERS[name]
    layer, x = filled(layer).double(), noise(3, 7, 8).double()
    torch.testing.assert_close(form(layer)(x, index), pick(layer(x), index), rtol=1e-12, atol=1e-12)


TOWERS = {
    "vit": (lambda: filled(VIT.build()), lambda: noise(3, 3, 32, 32)),
    "transformer": (lambda: randomised(SMALL).text_encoder, lambda: Tokenizer(SMALL.text.input)(["", "a cat", "dog"])),
    "mct": (lambda: randomised(SMALL_MCT).text_encoder, lambda: Tokenizer(SMALL_MCT.text.input)(["", "a cat", "dog"])),
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@torch.inference_mode()
def test_a_tower_reads_one_token_and_shares_its_weights(name, folded):
    tower, inputs = (make() for make in TOWERS[name])
    tower, inputs = tower.double(), inputs.double() if inputs.is_floating_point() else inputs
    tower = reparameterize(tower) if folded else tower
    state = copy.deepcopy(tower.state_dict())
    form = with_one_token(tower)
    assert isinstance(form, type(tower))
    assert type(form) is not type(tower)
    torch.testing.assert_close(form(inputs), tower(inputs), rtol=1e-12, atol=1e-12)
    seen = []
    form.layers[-1].ffn.fc1.register_forward_pre_hook(lambda _, taken: seen.append(taken[0].shape))
    form(inputs)
    wide = tower.layers[-1].ffn.fc1.weight.shape[1]
    assert seen[0].numel() == len(inputs) * wide
    for parameter in tower.parameters():
        parameter.mul_(1.5)
    torch.testing.assert_close(form(inputs), tower(inputs), rtol=1e-12, atol=1e-12)
    assert tower.state_dict().keys() == state.keys()
    assert with_one_token(form) is form


@torch.inference_mode()
def test_in_front_of_a_last_repmixer_a_layer_computes_what_that_one_reads():
    """Texts that end anywhere, in rows that are longer or shorter than what is read: 21 tokens."""
    spec = MCtSpec(input=TextInput(vocab_size=40), width=16, depth=2, num_heads=2, embedding_dim=8)
    tower = reparameterize(filled(spec.build()).double())
    form, seen = with_one_token(tower), []
    form.layers[-2].ffn.fc1.register_forward_pre_hook(lambda _, taken: seen.append(taken[0].shape))
    for length in (77, 15, 1):
        ends = torch.arange(length)
        tokens = torch.where(ends[:, None] > ends, ends % 37 + 1, 0)
        tokens[ends, ends] = 39
        torch.testing.assert_close(form(tokens), tower(tokens), rtol=1e-12, atol=1e-12)
        assert seen == [(length, 21, 16), (length, length, 16)], "of the form, then of the tower, which share the layer"
        seen.clear()
    assert with_one_token(form) is form
    tower.layers[-1].token_mixer.register_forward_pre_hook(lambda _, taken: (2 * taken[0],))
    assert not isinstance(with_one_token(tower), type(form)), "what is hooked may read anything"


class Adapted(nn.Linear):
    """A linear layer with something learned beside it, that shows its own weight as an adapter does."""

    def forward(self, x):
        return 2 * super().forward(x)


@torch.inference_mode()
def test_what_stands_for_the_projection_is_computed_as_it_is():
    tower, tokens = randomised(SMALL).text_encoder, Tokenizer(SMALL.text.input)(["a cat"])
    attention = tower.layers[-1].attention
    attention.qkv.__class__ = Adapted
    assert with_one_token(tower) is tower
    attention.qkv.__class__ = nn.Linear
    attention.qkv.register_forward_pre_hook(lambda _, taken: (2 * taken[0],))
    assert with_one_token(tower) is tower
    assert tower(tokens).shape == (1, SMALL.text.embedding_dim)


class Doubling(nn.Module):
    """A layer that knows no token of its own."""

    def forward(self, x):
        return x + x.flip(1)


def test_a_last_layer_of_another_kind_is_computed_whole():
    layers, project = [Doubling(), Doubling()], nn.Linear(4, 3)
    tower = TextEncoder(nn.Embedding(9, 4), layers, project, context_length=5, pool=EndTokenPool()).eval()
    assert with_one_token(tower) is tower
    image_tower = randomised(SMALL).image_encoder
    assert with_one_token(image_tower) is image_tower
