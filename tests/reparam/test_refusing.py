"""A fold is equal or refused: whatever computes more than the weights that are read is named."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from mobileclip import reparameterize
from mobileclip.blocks import (
    Attention2d,
    AttentionBlock,
    ConvNorm,
    LargeKernelConv,
    MobileOneBlock,
    RepCPE,
    RepMixer,
    RepMixerBlock,
    TextRepMixerBlock,
)
from mobileclip.reparam import Reparameterizable, is_folded
from mobileclip.training.cpu import fuse_for_cpu
from tests.blocks.filling import filled, noise
from tests.errors import fails


class Louder(RepMixer):
    def forward(self, x):
        return 2 * super().forward(x)


class LouderAttention(Attention2d):
    def forward(self, x):
        return 2 * super().forward(x)


class LouderNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def with_forward(block):
    block.forward = lambda x: 2 * type(block).forward(block, x)
    return block


def with_hook(block, part=""):
    block.get_submodule(part).register_forward_hook(lambda *given: 2 * given[-1])
    return block


def with_part(block, name, part):
    parent, _, own = name.rpartition(".")
    setattr(block.get_submodule(parent), own, part)
    return block


def with_adapter(block, *targets):
    from peft import LoraConfig, inject_adapter_in_model

    return inject_adapter_in_model(LoraConfig(target_modules=list(targets), init_lora_weights=False), block)


REFUSED = {
    "an adapter on the attention's last projection": (
        lambda: with_adapter(AttentionBlock(4, head_dim=2), "project"),
        "merge adapters",
    ),
    "an adapter on the first projection": (
        lambda: with_adapter(AttentionBlock(4, head_dim=2), "qkv"),
        "merge adapters",
    ),
    "an adapter on the network's last projection": (lambda: with_adapter(RepMixerBlock(4), "fc2"), "merge adapters"),
    "a hook on a branch": (lambda: with_hook(MobileOneBlock(4), "branches.0"), "'branches.0' has hooks"),
    "a hook on a norm": (lambda: with_hook(RepMixer(4), "norm.skip"), "'norm.skip' has hooks"),
    "a hook on what becomes a convolution": (lambda: with_hook(RepMixer(4)), "has hooks"),
    "a hook on the network before a scale": (lambda: with_hook(RepMixerBlock(4), "ffn"), "'ffn' has hooks"),
    "a forward of one module's own": (lambda: with_forward(RepMixer(4)), "forward"),
    "a subclass with a forward of its own": (lambda: Louder(4), "Louder"),
    "an attention with a forward of its own": (
        lambda: AttentionBlock(4, mixer=LouderAttention(4, num_heads=2, qkv_bias=False)),
        "'attention' is a LouderAttention",
    ),
    "a norm with a forward of its own": (lambda: with_part(MobileOneBlock(4), "skip", LouderNorm(4)), "LouderNorm"),
    "another norm behind a convolution": (lambda: with_part(ConvNorm(4), "norm", nn.GroupNorm(1, 4)), "GroupNorm"),
    "another norm as the skip": (lambda: with_part(MobileOneBlock(4), "skip", nn.GroupNorm(1, 4)), "GroupNorm"),
    "a norm without statistics": (
        lambda: with_part(ConvNorm(4), "norm", nn.BatchNorm2d(4, track_running_stats=False)),
        "running statistics",
    ),
    "an activation in the mixer": (lambda: with_part(RepMixer(4), "mixer.activation", nn.ReLU()), "activation"),
    "a convolution in place of the activation": (
        lambda: with_part(RepMixer(4), "mixer.activation", nn.Conv2d(4, 4, 1)),
        "activation",
    ),
    "a gate in the mixer": (lambda: with_part(RepMixer(4), "mixer.squeeze_excite", nn.Sigmoid()), "gate"),
    "another layer scale": (lambda: with_part(RepMixer(4), "layer_scale", nn.Tanh()), "gamma"),
    "a dilated branch": (
        lambda: with_part(MobileOneBlock(4), "branches.0.conv", nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False)),
        r"padding=\(2, 2\), dilation=\(2, 2\)",
    ),
    "a branch that repeats its edge": (
        lambda: with_part(
            MobileOneBlock(4), "branches.0.conv", nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate", bias=False)
        ),
        "padding_mode=replicate",
    ),
    "a small kernel of other taps": (
        lambda: with_part(LargeKernelConv(4), "small.conv", nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)),
        "groups=2",
    ),
    "a branch that is no convolution": (
        lambda: with_part(MobileOneBlock(4), "branches.0", nn.AvgPool2d(1)),
        "AvgPool2d",
    ),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_what_would_vanish_is_refused(make, said):
    model = nn.Sequential(nn.Identity(), filled(make())).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said) as error:
        reparameterize(model)
    assert "'1'" in str(error.value)  # the block's name
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


EQUAL = {
    "a dilated convolution before its norm": lambda: with_part(
        ConvNorm(4, kernel_size=3), "conv", nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False)
    ),
    "one that repeats its edge": lambda: with_part(
        ConvNorm(4, kernel_size=3), "conv", nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False)
    ),
    "a positional encoding that repeats its edge": lambda: with_part(
        RepCPE(4, kernel_size=3), "conv", nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4, bias=False)
    ),
    "a convolution with a bias before its norm": lambda: with_part(
        ConvNorm(4, kernel_size=3), "conv", nn.Conv2d(4, 4, 3, padding="same")
    ),
    "a parametrized weight": lambda: with_part(
        ConvNorm(4, kernel_size=3), "conv", parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1, bias=False))
    ),
    "a norm over several devices": lambda: with_part(ConvNorm(4), "norm", nn.SyncBatchNorm(4)),
    "an adapter on what is not folded": lambda: with_adapter(RepMixerBlock(4), "fc1"),
    "a hook on a block that stays": lambda: with_hook(RepMixerBlock(4)),
    "a hook on the activation, which stays": lambda: with_hook(MobileOneBlock(4), "activation"),
}


@pytest.mark.parametrize("make", EQUAL.values(), ids=EQUAL)
def test_what_stays_equal_is_folded(make):
    block, x = make().eval(), noise(2, 4, 7, 6, dtype=torch.float64)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    block.double()
    folded = reparameterize(block, check=x)
    torch.testing.assert_close(folded(x), block(x), rtol=1e-9, atol=1e-9)
    assert len(list(folded.modules())) < len(list(block.modules())) or isinstance(block, RepMixerBlock)


def test_a_subclass_that_says_how_it_folds_is_folded():
    class Same(RepMixer):
        def forward(self, x):
            return super().forward(x).contiguous()

        fold = RepMixer.fold

    mixer, x = filled(Same(4)), noise(1, 4, 5, 5)
    assert type(reparameterize(mixer, check=x)) is nn.Conv2d


@pytest.mark.parametrize("make", [lambda: RepMixerBlock(4), lambda: MobileOneBlock(4), lambda: LargeKernelConv(4)])
def test_what_trains_sooner_on_a_cpu_folds(make):
    block, x = filled(make()), noise(1, 4, 9, 9)
    wanted = reparameterize(block)(x)
    folded = reparameterize(fuse_for_cpu(block), check=x)
    assert is_folded(folded)
    torch.testing.assert_close(folded(x), wanted)


def test_a_text_block_that_trains_sooner_folds():
    block, x = filled(TextRepMixerBlock(4, kernel_size=5)), noise(1, 9, 4)
    assert is_folded(reparameterize(fuse_for_cpu(block), check=x))


@pytest.mark.parametrize("make", [lambda: RepMixerBlock(4), lambda: AttentionBlock(4, head_dim=2), lambda: RepMixer(4)])
def test_frozen_weights_stay_frozen(make):
    frozen = reparameterize(filled(make()).requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    trained = reparameterize(filled(make()))
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_weights_are_frozen_part_by_part():
    block = filled(RepMixerBlock(4))
    block.token_mixer.requires_grad_(False)
    folded = reparameterize(block)
    assert not any(parameter.requires_grad for parameter in folded.token_mixer.parameters())
    assert all(parameter.requires_grad for parameter in folded.ffn.parameters())


class Wrong(Reparameterizable):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x + self.conv(x)

    def fold(self):
        return nn.Conv2d(4, 4, 1).eval()


@pytest.mark.parametrize("inplace", [True, False])
def test_an_example_shows_a_fold_that_is_not_equal(inplace):
    model, x = nn.Sequential(RepMixer(4), Wrong()).eval(), noise(1, 4, 5, 5)
    reparameterize(copy.deepcopy(model))
    with fails(ValueError, "output 0"):
        reparameterize(model, inplace=inplace, check=(x,))


def test_a_fold_with_outputs_of_zero_is_equal():
    model, x = RepMixer(4).eval(), torch.zeros(1, 4, 5, 5)
    torch.testing.assert_close(reparameterize(model, check=(x,))(x), x)
