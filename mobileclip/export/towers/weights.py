"""Weights of 8 bits that are computed with in float32: steps, and a scale and a zero point of each row."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

_LARGEST = 255
_LEAST_SCALE = 1e-12


@attrs.frozen(kw_only=True, eq=False)
class RoundedWeight:
    """A weight in steps: `(steps - zero) * scale`.

    Shape:
        steps: `(rows, columns)`, uint8. scale: `(rows, 1)`, float32. zero: `(rows, 1)`, uint8.

    Args:
        steps: in `[0, 255]`.
        scale: of a step.
        zero: the step that stands for zero.
    """

    steps: Tensor
    scale: Tensor
    zero: Tensor

    def restored(self) -> Tensor:
        """Return the weight that the steps stand for, `(rows, columns)`, float32."""
        return (self.steps.float() - self.zero.float()) * self.scale


def round_weight(rows: Tensor) -> RoundedWeight:
    """Return a weight in steps from the least to the largest value of each row, zero among them.

    Shape:
        `(rows, columns)`.

    Args:
        rows: one for each output channel, or for each entry of a table.
    """
    rows = rows.detach().float()
    least, most = rows.amin(dim=1, keepdim=True).clamp_max(0), rows.amax(dim=1, keepdim=True).clamp_min(0)
    scale = ((most - least) / _LARGEST).clamp_min(_LEAST_SCALE)
    zero = (-least / scale).round()
    steps = ((rows / scale).round() + zero).clamp(0, _LARGEST)
    return RoundedWeight(steps=steps.to(torch.uint8), scale=scale, zero=zero.to(torch.uint8))
