"""Weights of 8 and 4 bits that are computed with in float32: steps, and a scale and a zero point of each block."""

from __future__ import annotations

from typing import Literal, cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.hardware.precision import Precision
from mobileclip.inference.optimization.layers import is_grouped

Bits = Literal[8, 4]
BLOCK = 32
"""Numbers that share a scale in 4 bits."""

_LEAST_SCALE = 1e-12


@attrs.frozen(kw_only=True, eq=False)
class RoundedWeight:
    """A weight in steps: `(steps - zero) * scale`.

    Shape:
        steps: `(rows, blocks, block)`, uint8. scale: `(rows, blocks, 1)`, float32. zero: `(rows, blocks, 1)`, uint8.

    Args:
        bits: of a step, 8 or 4.
        steps: in `[0, 2 ** bits)`.
        scale: of a step.
        zero: the step that stands for zero.
    """

    bits: Bits
    steps: Tensor
    scale: Tensor
    zero: Tensor

    def restored(self) -> Tensor:
        """Return the weight that the steps stand for, `(rows, columns)`, float32."""
        return ((self.steps.float() - self.zero.float()) * self.scale).flatten(1)


def round_weight(rows: Tensor, bits: Bits) -> RoundedWeight:
    """Return a weight in steps from the least to the largest value of each block, zero among them.

    In 8 bits a block is a row, in 4 bits it is `BLOCK` numbers of one.

    Shape:
        `(rows, columns)`; in 4 bits, `columns` is a multiple of `BLOCK`.

    Args:
        rows: a row for each output channel, or for each entry of a table.
        bits: of a step.
    """
    blocks = rows.detach().float().reshape(len(rows), -1, BLOCK if bits == 4 else rows.shape[1])
    largest = 2**bits - 1
    least, most = blocks.amin(dim=2, keepdim=True).clamp_max(0), blocks.amax(dim=2, keepdim=True).clamp_min(0)
    scale = ((most - least) / largest).clamp_min(_LEAST_SCALE)
    zero = (-least / scale).round()
    steps = ((blocks / scale).round() + zero).clamp(0, largest)
    return RoundedWeight(bits=bits, steps=steps.to(torch.uint8), scale=scale, zero=zero.to(torch.uint8))


def rounded_to(weight: Tensor, bits: Bits) -> Tensor:
    """Return a layer's weight as it is stored in so many bits; in 8 where 4 do not fit.

    Args:
        weight: of any shape, its first axis that of the rows.
        bits: of a step.
    """
    rows = weight.flatten(1)
    fitting = 8 if rows.shape[1] % BLOCK else bits
    return round_weight(rows, fitting).restored().reshape(weight.shape)


def bits_of(layer: nn.Module, precision: Precision, *, is_kept: bool) -> Bits | None:
    """Return how many bits the weight of a layer is stored in; None where it stays float32.

    Grouped convolutions, which hold few numbers and lose most, stay float32 beside weights of 4 bits.

    Args:
        layer: a convolution, a linear layer or a table of embeddings.
        precision: of the export, `int8-weights` or `int4-weights`.
        is_kept: whether it is one of the layers that keep more bits.
    """
    if precision == "int8-weights":
        return None if is_kept else 8
    if is_grouped(layer):
        return None
    columns = cast("Tensor", layer.weight)[0].numel()
    return 8 if is_kept or columns % BLOCK else 4
