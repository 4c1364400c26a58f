"""Several batch norms, added up, in one pass over each of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mobileclip.inference.forms import memory_format
from mobileclip.training.cpu.convolutions import computes_wide

_aten = torch.ops.aten


class NormBranch(NamedTuple):
    """One summand, `sign * norm(scale * x)`.

    Args:
        x: `(batch, dim, height, width)`; several branches may share one.
        norm: its batch norm.
        scale: a factor per channel, such as the weight of a depthwise 1x1 convolution; none for 1.
        sign: 1 or -1.
    """

    x: Tensor
    norm: nn.BatchNorm2d
    scale: Tensor | None = None
    sign: int = 1


def merges(norms: Sequence[nn.Module | None], x: Tensor) -> bool:
    """Return whether `sum_of_norms` can stand for these norms, one by one, of `x` and of convolutions of it.

    Not for frozen or synchronised norms, whose statistics are others than the batch's, nor in half precision, where
    sums cost more than they save.
    """
    own = all(type(norm) is nn.BatchNorm2d and norm.training and norm.affine for norm in norms)
    return own and computes_wide(x)


def sum_of_norms(
    branches: Sequence[NormBranch], *, residual: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """Return `residual + factor * sum of sign * norm(scale * x)`, normalised with the batch's statistics.

    A batch norm is an affine function of its input, and so is a sum of them. With the mean `m` and the variance `v` of
    every distinct input `x_i`, and of every branch `j` the weight `g_j` (times sign and factor), scale `w_j` and bias:

    `y = residual + sum_i a_i (x_i - m_i) + shift`, `a_i = sum over its j of g_j w_j / sqrt(w_j^2 v_i + eps_j)`.

    Each input is read once for its statistics, and once to be added; the norms' running statistics follow from `m` and
    `v`. The gradient needs two sums per input, of `dy` and of `dy (x_i - m_i)`, and one pass for `dx_i`.

    Shape:
        `(batch, dim, height, width)`.

    Args:
        branches: the summands; `merges` holds for their norms.
        residual: one of the branches' inputs.
        factor: factor per channel of the sum, any shape of `dim` values.

    Raises:
        ValueError: if a channel has one value alone, and so no variance.
    """
    count = branches[0].x.numel() // branches[0].x.shape[1]
    if count == 1:
        size = tuple(branches[0].x.shape)
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    inputs: list[Tensor] = []
    source: list[int] = []
    for branch in branches:
        known = [index for index, x in enumerate(inputs) if x is branch.x]
        source.append(known[0] if known else len(inputs))
        inputs.extend([] if known else [branch.x])
    weights = torch.stack([branch.sign * branch.norm.weight for branch in branches])
    shift = torch.stack([branch.sign * branch.norm.bias for branch in branches]).sum(0)
    if factor is not None:
        weights, shift = weights * factor.flatten(), shift * factor.flatten()
    one = torch.ones_like(branches[0].norm.weight)
    scales = torch.stack([one if branch.scale is None else branch.scale.flatten() for branch in branches])
    kept = next((index for index, x in enumerate(inputs) if x is residual), None)
    assert residual is None or kept is not None
    eps = tuple(branch.norm.eps for branch in branches)
    y, means, variances = _SumOfNorms.apply(weights, scales, shift, eps, tuple(source), kept, *inputs)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for branch, index, scale in zip(branches, source, scales.detach(), strict=True):
            _track(branch.norm, scale * means[index], scale.square() * variances[index] * (count / (count - 1)))
    result: Tensor = y
    return result


def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards the batch's, as the norm itself would."""
    if norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum or 0.0)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), momentum or 0.0)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance, over the count, per channel."""
    mean, variance = _aten.batch_norm_update_stats(x, None, None, 0.0)
    return mean, variance


def _of_branches(values: Tensor, source: Sequence[int]) -> Tensor:
    """Return for every branch the values of its input."""
    return torch.stack([values[index] for index in source])


def _of_inputs(values: Tensor, source: Sequence[int]) -> Tensor:
    """Return for every input the sum of its branches' values. Index tensors would have to travel to the device."""
    rows = values.unbind()
    sums = [[row for row, index in zip(rows, source, strict=True) if index == own] for own in range(max(source) + 1)]
    return torch.stack([sum(own[1:], start=own[0]) for own in sums])


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


class _SumOfNorms(torch.autograd.Function):
    """`sum_of_norms` on tensors alone; the gradient is written out below."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd's calls are positional
        ctx: Any,
        weights: Tensor,
        scales: Tensor,
        shift: Tensor,
        eps: tuple[float, ...],
        source: tuple[int, ...],
        residual: int | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum, and the mean and variance of every input."""
        means, variances = map(torch.stack, zip(*(_statistics(x) for x in inputs), strict=True))
        added: float | Tensor = eps[0] if len(set(eps)) == 1 else shift.new_tensor(eps)[:, None]
        roots = (scales.square() * _of_branches(variances, source) + added).rsqrt()
        slopes = _of_inputs(weights * scales * roots, source)
        offset = shift - (slopes * means).sum(0)
        steps = slopes.clone()
        if residual is not None:
            steps[residual] += 1
        y = torch.addcmul(_per_channel(offset), inputs[0], _per_channel(steps[0]))
        for x, step in zip(inputs[1:], steps[1:], strict=True):
            y.addcmul_(x, _per_channel(step))
        ctx.save_for_backward(weights, scales, means, roots, slopes, steps, *inputs)
        ctx.added, ctx.source = added, source
        ctx.mark_non_differentiable(means, variances)
        return y, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weights, scales and shift, and of every input.

        With `S_i = sum of dy (x_i - m_i)`, `G = sum of dy`, `r_j = 1 / sqrt(w_j^2 v_i + eps_j)` and `n` values a
        channel: `dg_j = w_j r_j S_i`, `dw_j = g_j eps_j r_j^3 S_i`, `dv_i = -S_i / 2 sum_j g_j w_j^3 r_j^3` and
        `dx_i = a_i (dy - G / n) + 2 dv_i / n (x_i - m_i)`, to which a residual adds `dy`.
        """
        weights, scales, means, roots, slopes, steps, *inputs = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(inputs[0]))  # two layouts in one pass are slow
        count = grad.numel() // grad.shape[1]
        moments, total = _moments(grad, inputs, means)
        of_branch = _of_branches(moments, ctx.source)
        cubes = roots.pow(3)
        grad_weights = scales * roots * of_branch
        grad_scales = weights * ctx.added * cubes * of_branch
        bends = _of_inputs(weights * scales.pow(3) * cubes, ctx.source) * moments / -count
        offsets = slopes * total / -count - bends * means
        grad_inputs: list[Tensor | None] = [None] * len(inputs)
        for index, x in enumerate(inputs):
            if ctx.needs_input_grad[-len(inputs) + index]:
                offset, step, bend = (_per_channel(values[index]) for values in (offsets, steps, bends))
                grad_inputs[index] = torch.addcmul(offset, grad, step).addcmul_(x, bend)
        return grad_weights, grad_scales, total, None, None, None, *grad_inputs


def _moments(grad: Tensor, inputs: Sequence[Tensor], means: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of `grad (x - mean)` for every input, and of `grad`, per channel."""
    moments, total = [], grad
    one = torch.ones_like(means[0])
    for x, mean in zip(inputs, means, strict=True):
        # The kernel multiplies the first of its sums by the inverse deviation: 1 leaves it as it is.
        _, moment, total = _aten.native_batch_norm_backward(
            grad, x, one, None, None, mean, one, True, 0.0, [False, True, True]
        )
        moments.append(moment)
    return torch.stack(moments), total
