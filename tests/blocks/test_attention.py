"""Attention: one result from every backend, and nobody looks ahead."""

import re
import sys
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mobileclip import reparameterize
from mobileclip.blocks import (
    Attention,
    Attention2d,
    AttentionBlock,
    TransformerLayer,
    attention_backends,
    set_attention_backend,
)
from mobileclip.extras import install
from tests.blocks.filling import filled, noise
from tests.errors import fails

reference_attention, sdpa_attention, xformers_attention = map(attention_backends.get, ("reference", "sdpa", "xformers"))


def heads(dtype, *, tokens=7, head_dim=5, device="cpu"):
    return (noise(2, 3, tokens, head_dim, seed=seed, dtype=dtype).to(device) for seed in range(3))


def by_hand(query, key, value, *, causal):
    """The formula, one token at a time."""
    rows = []
    for index in range(query.shape[2]):
        seen = slice(0, index + 1 if causal else None)
        logits = (query[:, :, index : index + 1] * key[:, :, seen]).sum(-1) / query.shape[-1] ** 0.5
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        rows.append((weights[..., None] * value[:, :, seen]).sum(2))
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_is_the_formula(causal):
    query, key, value = heads(torch.float64)
    attended = reference_attention(query, key, value, causal=causal)
    torch.testing.assert_close(attended, by_hand(query, key, value, causal=causal), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_sdpa_equals_the_reference(dtype, bound, causal):
    query, key, value = heads(dtype)
    fused = sdpa_attention(query, key, value, causal=causal)
    reference = reference_attention(query, key, value, causal=causal)
    assert fused.dtype == reference.dtype == dtype
    torch.testing.assert_close(fused, reference, rtol=bound, atol=bound)


def test_the_reference_computes_in_float32_at_least():
    query, key, value = heads(torch.float16)
    wide = reference_attention(query.float(), key.float(), value.float(), causal=False)
    assert torch.equal(reference_attention(query, key, value, causal=False), wide.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attended = reference_attention(query.float(), key.float(), value.float(), causal=False)
    assert torch.equal(attended, wide)
    assert reference_attention(*heads(torch.float32, device="meta"), causal=True).shape == (2, 3, 7, 5)


@pytest.mark.parametrize("make", [Attention, TransformerLayer])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_a_later_token_never_changes_an_earlier_output(make, backend):
    block, x = filled(make(8, num_heads=2, causal=True)), noise(2, 9, 8)
    set_attention_backend(block, backend)
    before = block(x)
    for position in range(9):
        changed = x.clone()
        changed[:, position] += 1
        after = block(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.allclose(after[:, position:], before[:, position:])


def test_without_the_mask_every_token_sees_every_other():
    block, x = filled(Attention(8, num_heads=2)), noise(1, 6, 8)
    jacobian = torch.autograd.functional.jacobian(block, x)[0, :, :, 0].abs().sum((1, 3))
    assert (jacobian > 0).all()


def test_attention_2d_is_attention_over_positions_row_by_row():
    block = filled(Attention2d(8, num_heads=2))
    flat = Attention(8, num_heads=2)
    flat.load_state_dict(block.state_dict())
    x = noise(2, 8, 3, 5)
    tokens = flat(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(block(x), tokens.transpose(1, 2).reshape(2, 8, 3, 5))


def test_heads_attend_apart():
    """With the identity as output projection, one head's queries cannot reach the other head's channels."""
    block, x = filled(Attention(8, num_heads=2, qkv_bias=False)), noise(1, 5, 8)
    block.project.weight.data.copy_(torch.eye(8))
    before = block(x)
    block.qkv.weight.data[:4] *= 2
    after = block(x)
    assert not torch.allclose(after[..., :4], before[..., :4])
    assert torch.equal(after[..., 4:], before[..., 4:])


@pytest.mark.parametrize("fold", [False, True])
def test_set_attention_backend_reaches_all(fold):
    model = filled(nn.Sequential(AttentionBlock(8, head_dim=4), nn.Sequential(Attention2d(8, num_heads=2))))
    model = reparameterize(model) if fold else model
    x = noise(1, 8, 4, 4)
    expected = model(x)
    set_attention_backend(model, "reference")
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(attentions) == 2
    assert all(module.backend is reference_attention for module in attentions)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    assert reparameterize(model)[0].attention.backend is reference_attention


def test_a_backend_of_ones_own(monkeypatch):
    recorded = Mock(side_effect=sdpa_attention)
    monkeypatch.setitem(attention_backends._values, "recorded", recorded)
    filled(Attention(8, num_heads=2, backend="recorded"))(noise(3, 5, 8))
    ((query, *_),) = (call.args for call in recorded.call_args_list)
    assert query.shape == (3, 2, 5, 4)


def test_an_unknown_backend_names_the_nearest():
    with fails(ValueError, "attention", "backend 'xformer'", "did you mean 'xformers'"):
        Attention(8, num_heads=2, backend="xformer")
    model = Attention(8, num_heads=2)
    with fails(ValueError, "attention", "backend 'flash'", "known: reference, sdpa, xformers"):
        set_attention_backend(model, "flash")
    assert model.backend is sdpa_attention
    with fails(ValueError, "10", "4"):
        Attention(10, num_heads=4)
    with fails(ValueError, "cpu"):
        Attention(8, num_heads=2, backend="xformers")(noise(1, 5, 8))


def test_where_xformers_is_missing_a_gpu_is_told_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with FakeTensorMode():  # which needs no GPU
        heads = torch.empty(1, 2, 5, 4, device="cuda")
    with pytest.raises(ImportError, match=re.escape(f"'xformers' needs xformers: `{install('xformers')}`")):
        xformers_attention(heads, heads, heads, causal=False)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("tokens", "head_dim"), [(77, 64), (197, 64), (64, 32)])
def test_xformers_equals_the_reference(tokens, head_dim, dtype, bound, causal):
    import xformers  # noqa: F401

    query, key, value = heads(dtype, tokens=tokens, head_dim=head_dim, device="cuda")
    expected = reference_attention(query, key, value, causal=causal)
    attended = xformers_attention(query, key, value, causal=causal)
    torch.testing.assert_close(attended, expected, rtol=bound, atol=bound)
