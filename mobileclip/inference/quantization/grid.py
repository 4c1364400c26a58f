"""Numbers on a grid of 8 bits, as runtimes round them, with gradients for what is tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST_VALUE = 255
"""Of what goes into a layer or comes out, in steps above the least: uint8. As int8, with its zero point, 128 less."""

LARGEST_WEIGHT = 64
"""Of a weight, in steps from zero: processors without VNNI add pairs of products in 16 bits, which more would saturate,
silently. A file for every runtime cannot ask which processor will read it."""

_HALF = 0.5


def on_grid(x: Tensor, step: Tensor, zero: Tensor, *, least: int, largest: int) -> Tensor:
    """Return `x` as ONNX's DequantizeLinear gives back what QuantizeLinear made of it, to the bit.

    `q = clamp(round(x / step) + zero, least, largest)` and `(q - zero) * step`, halves rounded to even. Gradients pass
    the rounding unchanged, so that the step's is `q - zero - x / step` within the range and `q - zero` outside, the
    zero point's nothing within and `-step` outside.

    Shape:
        that of `x`; the step broadcasts to it, the zero point is one number.

    Args:
        x: float32.
        step: above zero.
        zero: the step that zero is at; any number, rounded to an integer.
        least: of the integers.
        largest: of the integers.

    Source: Esser et al. 2020, Learned step size quantization; Bhalgat et al. 2020, LSQ+, for the zero point.
    """
    y: Tensor = _OnGrid.apply(x, step, zero, (least, largest))  # type: ignore[no-untyped-call]
    return y


class _OnGrid(torch.autograd.Function):
    """The formula of `on_grid` in few passes over memory, which is what it takes its time with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, ends: tuple[int, int]) -> Tensor:
        """Return the rounded numbers."""
        # Sums of integers are exact, so that the zero point may move the ends in place of the numbers.
        whole = zero.round().item()
        ctx.ends = (ends[0] - whole, ends[1] - whole)
        y = (x / step).round_().clamp_(*ctx.ends).mul_(step)
        ctx.save_for_backward(x, y, step, zero)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, the step and the zero point."""
        (gradient,) = gradients
        x, y, step, zero = ctx.saved_tensors
        least, largest = ctx.ends
        steps = x / step
        # What is rounded to an end is within; this is `gradient` there, and nothing outside.
        of_x = torch.ops.aten.hardtanh_backward(gradient, steps, least - _HALF, largest + _HALF)
        of_step = of_zero = None
        # Differences before sums: what is no gradient at all must be zero, which Adam would else make a step of.
        if ctx.needs_input_grad[1]:
            of_step = (gradient * y).div_(step).addcmul_(steps, of_x, value=-1).sum_to_size(step.shape)
        if ctx.needs_input_grad[2]:
            of_zero = torch.sub(of_x, gradient, out=steps).sum().reshape(zero.shape) * step
        return of_x, of_step, of_zero, None
