"""The exponential moving average of a model's weights: the model that is kept in the end."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class MovingAverage:
    """Holds `average <- decay average + (1 - decay) weight` after every step, starting at the weights it is given.

    Buffers in floating point (BatchNorm's statistics) are averaged as weights are; counters are copied.

    Args:
        model: copied; the copy is `module`, in evaluation mode.
        decay: per step, in [0, 1); the paper's is 0.9995 at 200k steps.

    Source: MobileCLIP, table 12.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of `model`."""
        current = model.state_dict()
        for name, average in self.module.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], 1 - self.decay)
            else:
                average.copy_(current[name])
