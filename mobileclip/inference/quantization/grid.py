"""Numbers on a grid of 8 bits, as runtimes round them, with gradients for what is tuned."""

from __future__ import annotations

from torch import Tensor

LARGEST_VALUE = 255
"""Of what goes into a layer or comes out, in steps above the least: uint8. As int8, with its zero point, 128 less."""

LARGEST_WEIGHT = 64
"""Of a weight, in steps from zero: processors without VNNI add pairs of products in 16 bits, which more would saturate,
silently. A file for every runtime cannot ask which processor will read it."""


def on_grid(x: Tensor, step: Tensor, zero: Tensor, *, least: int, largest: int) -> Tensor:
    """Return `x` as ONNX's DequantizeLinear gives back what QuantizeLinear made of it, to the bit.

    `q = clamp(round(x / step) + zero, least, largest)` and `(q - zero) * step`, halves rounded to even. Gradients pass
    the rounding unchanged, so that the step's is `q - zero - x / step` within the range and `q - zero` outside, the
    zero point's nothing within and `-step` outside.

    Shape:
        that of `x`; the step and the zero point broadcast to it.

    Args:
        x: float32.
        step: above zero.
        zero: the step that zero is at; any number, rounded to an integer.
        least: of the integers.
        largest: of the integers.

    Source: Esser et al. 2020, Learned step size quantization; Bhalgat et al. 2020, LSQ+, for the zero point.
    """
    whole = nearest(zero)
    return ((nearest(x / step) + whole).clamp(least, largest) - whole) * step


def nearest(x: Tensor) -> Tensor:
    """Return the nearest integers, of two the even one; their gradient is that of `x`."""
    # The difference is exact in floating point, and so is the sum.
    return x + (x.round() - x).detach()
