"""Restores norms and scales to folded weights, with neutral values.

timm and the research release fold branches only. A model that is folded to the end is written for them with norms
that do nothing and scales of one; the embeddings stay the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.blocks import AttentionBlock, ConvNorm
from mobileclip.reparam import LayerScale
from mobileclip.reparam.algebra import widened


def with_neutral_norms(folded: dict[str, Tensor], target: nn.Module) -> dict[str, Tensor]:
    """Return tensors for `target`, a model whose branches alone are folded, that compute what `folded` computes.

    Args:
        folded: the tensors of the same model folded to the end.
        target: that model in the form to write; only its structure is read.

    Raises:
        ValueError: if the bias of an attention's first projection cannot be expressed by the norm in front of it,
            which folding never produces.
    """
    dtype = next(tensor.dtype for tensor in folded.values() if tensor.is_floating_point())
    state = {name: folded[name] for name in target.state_dict() if name in folded}
    for name, module in target.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, ConvNorm):
            state[f"{prefix}conv.weight"] = folded[f"{prefix}weight"]
            state |= _neutral_norm(f"{prefix}norm.", module.norm, folded[f"{prefix}bias"])
        elif isinstance(module, LayerScale):
            state[f"{prefix}gamma"] = torch.ones(module.gamma.shape, dtype=dtype)
        elif isinstance(module, AttentionBlock) and isinstance(module.norm, nn.BatchNorm2d):
            shift = _input_shift(folded[f"{prefix}attention.qkv.weight"], folded[f"{prefix}attention.qkv.bias"], name)
            state |= _neutral_norm(f"{prefix}norm.", module.norm, shift)
    return {name: state[name] for name in target.state_dict()}


def _neutral_norm(prefix: str, norm: nn.BatchNorm2d, bias: Tensor) -> dict[str, Tensor]:
    return {
        f"{prefix}weight": torch.ones_like(bias),
        f"{prefix}bias": bias,
        f"{prefix}running_mean": torch.zeros_like(bias),
        # The norm adds its epsilon to the variance, and divides by the root of what should be one.
        f"{prefix}running_var": torch.full_like(bias, 1 - norm.eps),
        f"{prefix}num_batches_tracked": torch.tensor(0),
    }


def _input_shift(weight: Tensor, bias: Tensor, name: str) -> Tensor:
    """Return the shift of the input whose image under `weight` is `bias`: there is one, folding made `bias` from it."""
    matrix, target = widened(weight), widened(bias)
    shift: Tensor = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0]
    residual = torch.linalg.vector_norm(matrix @ shift - target) / torch.linalg.vector_norm(target).clamp_min(1e-12)
    if residual > 1e-4:
        raise ValueError(
            f"the attention bias in {name!r} is not what folding a norm leaves behind (relative residual "
            f"{residual:.1e}), so no layout with a norm there can hold it; convert the training form instead"
        )
    return shift.to(bias.dtype)
