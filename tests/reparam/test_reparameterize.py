"""Folding whole models and single blocks: equal, pure, idempotent, in any dtype, never in training mode."""

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import (
    AttentionBlock,
    ConvNorm,
    LargeKernelConv,
    MobileOneBlock,
    RepCPE,
    RepMixer,
    RepMixerBlock,
    TextRepMixerBlock,
)
from mobileclip.reparam import LayerScale, Reparameterizable, foldable_modules, is_folded
from tests.blocks.filling import filled, noise
from tests.errors import fails

EXACT = {"rtol": 1e-10, "atol": 1e-10}


class CountedCopies(nn.Module):
    """Passes its input on, and counts how often it was copied."""

    copies = 0

    def forward(self, x):
        return x

    def __deepcopy__(self, memo):
        type(self).copies += 1
        return CountedCopies().eval()


def small_encoder() -> nn.Sequential:
    """One of everything that folds, in a model whose root does not."""
    return nn.Sequential(
        MobileOneBlock(3, out_dim=8, stride=2),
        RepMixerBlock(8, hidden_dim=16),
        RepCPE(8),
        AttentionBlock(8, head_dim=4, hidden_dim=16),
        LargeKernelConv(8, out_dim=16, stride=2, squeeze_excite=True),
        ConvNorm(16, out_dim=4),
    )


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def error(ours, theirs):
    return float((ours.detach().double() - theirs.detach()).norm() / theirs.detach().norm())


def test_the_original_is_untouched():
    model, x = filled(small_encoder()), noise(2, 3, 12, 12)
    before, output = snapshot(model), model(x)
    kinds = [type(module) for module in model.modules()]
    folded = reparameterize(model)
    for parameter in folded.parameters():
        parameter.data.fill_(7.0)
    assert [type(module) for module in model.modules()] == kinds
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(x), output)


def test_in_place_is_the_model_itself_and_the_same_to_the_bit():
    model, x = filled(small_encoder()), noise(2, 3, 12, 12)
    copied = reparameterize(model)
    kept = [parameter.data_ptr() for parameter in model.parameters()]
    assert (folded := reparameterize(model, inplace=True)) is model
    assert torch.equal(folded(x), copied(x))
    assert folded.state_dict().keys() == copied.state_dict().keys()
    assert {parameter.data_ptr() for parameter in folded.parameters()} & set(kept)


def test_outputs_are_equal_and_nothing_foldable_is_left():
    model, x = filled(small_encoder()).double(), noise(2, 3, 12, 12, dtype=torch.float64)
    folded = reparameterize(model)
    torch.testing.assert_close(folded(x), model(x), **EXACT)
    assert is_folded(folded)
    assert not is_folded(model)
    assert not any(isinstance(module, (nn.BatchNorm2d, LayerScale)) for module in folded.modules())
    assert not any(module.training for module in folded.modules())
    assert type(folded) is nn.Sequential


def test_folding_again_changes_nothing():
    once = reparameterize(filled(small_encoder()))
    twice = reparameterize(once)
    assert twice is not once
    assert [type(module) for module in twice.modules()] == [type(module) for module in once.modules()]
    assert twice.state_dict().keys() == once.state_dict().keys()
    assert all(torch.equal(tensor, once.state_dict()[name]) for name, tensor in twice.state_dict().items())


ROOTS = [
    pytest.param(lambda: RepMixer(4), nn.Conv2d, id="repmixer"),
    pytest.param(lambda: MobileOneBlock(4), nn.Sequential, id="mobileone"),
    pytest.param(lambda: ConvNorm(4, kernel_size=(3, 3)), nn.Conv2d, id="conv_norm"),
    pytest.param(lambda: LargeKernelConv(4), nn.Sequential, id="large_kernel"),
    pytest.param(lambda: RepCPE(4), nn.Conv2d, id="rep_cpe"),
    pytest.param(lambda: RepMixerBlock(4), RepMixerBlock, id="repmixer_block"),
    pytest.param(lambda: AttentionBlock(4, head_dim=2), AttentionBlock, id="attention_block"),
    pytest.param(lambda: RepMixer(4, kernel_size=(1, 11)), nn.Conv2d, id="one_row"),
    pytest.param(lambda: MobileOneBlock(4, kernel_size=(5, 3)), nn.Sequential, id="not_square"),
]


@pytest.mark.parametrize(("make", "kind"), ROOTS)
def test_a_root_block_folds(make, kind):
    block, x = filled(make()).double(), noise(2, 4, 9, 12, dtype=torch.float64)
    before = snapshot(block)
    folded = reparameterize(block)
    assert type(folded) is kind
    assert is_folded(folded)
    torch.testing.assert_close(folded(x), block(x), **EXACT)
    torch.testing.assert_close(reparameterize(folded)(x), block(x), **EXACT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_a_text_block_folds():
    block, x = filled(TextRepMixerBlock(4, kernel_size=5)).double(), noise(2, 9, 4, dtype=torch.float64)
    folded = reparameterize(block)
    assert is_folded(folded)
    torch.testing.assert_close(folded(x), block(x), **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_kept(dtype):
    folded = reparameterize(filled(small_encoder()).to(dtype))
    assert {tensor.dtype for tensor in folded.state_dict().values()} == {dtype}
    assert folded(noise(1, 3, 12, 12, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("make", "kind"), [*ROOTS, pytest.param(small_encoder, nn.Sequential, id="model")])
def test_folding_in_half_precision_costs_no_more_than_folding_first_and_casting_after(make, kind, dtype):
    """The weights are rounded to `dtype` beforehand, so that both ways start from the same ones."""
    model = filled(make()).to(dtype)
    dim = 3 if kind is nn.Sequential and isinstance(model, nn.Sequential) else 4
    x = noise(4, dim, 12, 12, dtype=dtype)
    wide = copy.deepcopy(model).double()
    exact = wide(x.double())
    cast_after = error(reparameterize(wide).to(dtype)(x), exact)
    assert error(reparameterize(model)(x), exact) <= cast_after * 1.0001
    # And both weights are the nearest ones, which folding in `dtype` itself would not give.
    theirs = reparameterize(wide).to(dtype).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in reparameterize(model).state_dict().items())


def test_a_model_in_training_mode_is_refused():
    with fails(ValueError, "Sequential"):
        reparameterize(small_encoder())
    with fails(ValueError, "MobileOneBlock"):
        reparameterize(MobileOneBlock(4))


def test_one_part_in_training_mode_is_refused_by_name():
    model = filled(small_encoder())
    model[1].token_mixer.train()
    with fails(ValueError, "its part '1.token_mixer'"):
        reparameterize(model)


def test_the_model_is_copied_once():
    CountedCopies.copies = 0
    model = filled(nn.Sequential(RepMixerBlock(4), CountedCopies(), nn.Sequential(CountedCopies(), RepMixer(4))))
    reparameterize(model)
    assert CountedCopies.copies == 2


def test_a_block_used_twice_stays_one_block():
    shared = RepMixer(4)
    model, x = nn.Sequential(shared, nn.GELU(), nn.Sequential(shared), shared), noise(1, 4, 5, 5, dtype=torch.float64)
    filled(model).double()
    folded = reparameterize(model)
    assert is_folded(folded)
    assert folded[0] is folded[3]
    assert folded[0] is folded[2][0]
    torch.testing.assert_close(folded(x), model(x), **EXACT)


def test_only_some_classes_can_be_folded():
    model, x = filled(small_encoder()).double(), noise(2, 3, 12, 12, dtype=torch.float64)
    partly = reparameterize(model, only=(MobileOneBlock, RepMixer))
    assert isinstance(partly[1].token_mixer, nn.Conv2d)
    assert isinstance(partly[1].layer_scale, LayerScale)
    assert isinstance(partly[1].ffn.conv, ConvNorm)
    assert not is_folded(partly)
    torch.testing.assert_close(partly(x), model(x), **EXACT)
    torch.testing.assert_close(reparameterize(partly)(x), model(x), **EXACT)


def test_foldable_modules_names_branches_norms_and_scales():
    names = dict(foldable_modules(RepMixerBlock(4)))
    for name in ("", "token_mixer", "token_mixer.mixer.branches.0.norm", "ffn.conv", "layer_scale"):
        assert name in names
    assert "ffn.fc1" not in names
    assert not dict(foldable_modules(nn.Sequential(nn.Conv2d(3, 3, 3), nn.GELU())))
    assert dict(foldable_modules(nn.BatchNorm2d(3))).keys() == {""}


def test_a_model_without_anything_to_fold_is_only_copied():
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU()).eval()
    folded = reparameterize(model)
    assert folded is not model
    assert torch.equal(folded[0].weight, model[0].weight)


def test_a_block_of_ones_own_folds_with_the_rest():
    class Doubled(Reparameterizable):
        def __init__(self):
            super().__init__()
            self.norm = ConvNorm(4)

        def forward(self, x):
            return 2 * self.norm(x)

        def fold(self):
            conv = self.norm.fold()
            conv.weight.data.mul_(2)
            conv.bias.data.mul_(2)
            return conv

    assert Doubled().foldable is True
    model, x = filled(nn.Sequential(Doubled(), RepMixer(4))).double(), noise(1, 4, 5, 5, dtype=torch.float64)
    folded = reparameterize(model)
    assert [type(module) for module in folded] == [nn.Conv2d, nn.Conv2d]
    torch.testing.assert_close(folded(x), model(x), **EXACT)


odd = st.integers(0, 3).map(lambda half: 2 * half + 1)


@st.composite
def mobileone_blocks(draw):
    group_dim, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dim, stride = group_dim * groups, draw(st.integers(1, 3))
    out_dim = draw(st.sampled_from([dim, 2 * dim, groups]))
    same_shape = out_dim == dim and stride == 1
    branches, scale = draw(st.integers(0, 3)), draw(st.sampled_from([None, True, False]))
    skip = draw(st.sampled_from([None, True, False])) if same_shape else None
    kernel_size = (draw(odd), draw(odd))
    no_scale = scale is False or (scale is None and kernel_size[0] == 1)
    if not branches and no_scale and (skip is False or not same_shape):
        branches = 1
    return MobileOneBlock(
        dim,
        out_dim=out_dim,
        kernel_size=kernel_size,
        stride=stride,
        groups=groups,
        num_branches=branches,
        scale_branch=scale,
        skip=skip,
        squeeze_excite=draw(st.booleans()),
        activation=draw(st.sampled_from([None, nn.GELU, nn.ReLU])),
    )


@settings(max_examples=60, deadline=None)
@given(block=mobileone_blocks(), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_mobileone_block_folds_to_equal_outputs(block, height, width, seed):
    filled(block, seed=seed).double()
    x = noise(2, block.dim, height, width, seed=seed, dtype=torch.float64)
    folded = reparameterize(block)
    assert is_folded(folded)
    torch.testing.assert_close(folded(x), block(x), **EXACT)


@torch.no_grad()
def test_what_compiles_or_shares_gradients_is_taken_off():
    x = torch.rand(1, 8, 6, 6)
    plain = nn.Sequential(RepMixer(8), RepMixer(8)).eval()
    wanted = plain(x)
    blocks = nn.Sequential(*(torch.compile(block, backend="eager") for block in plain)).eval()
    torch.testing.assert_close(blocks(x), wanted)
    folded = reparameterize(blocks)
    assert [type(part) for part in folded] == [nn.Conv2d, nn.Conv2d]
    torch.testing.assert_close(folded(x), wanted)
    whole = reparameterize(torch.compile(plain, backend="eager"))
    assert is_folded(whole)
    assert type(whole) is nn.Sequential
    torch.testing.assert_close(reparameterize(nn.DataParallel(plain).eval())(x), wanted)


def test_a_convolution_that_computes_otherwise_is_refused():
    class Doubled(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return 2 * super()._conv_forward(x, weight, bias)

    block = ConvNorm(4, out_dim=4, kernel_size=3).eval()
    other = Doubled(4, 4, 3, padding=1, bias=False).eval()
    block.conv = other
    with pytest.raises(ValueError, match="Doubled"):
        reparameterize(block)
