"""Exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average of weights: each update sets `average = decay * average + (1 - decay) * weight`.

    The average starts at the initial weights, and includes floating-point buffers such as BatchNorm statistics.
    `update` copies integer buffers.

    Args:
        model: model to average; `module` starts as a copy of the model in evaluation mode.
        decay: factor of the old average per update, in [0, 1); MobileCLIP uses 0.9995 for 200k steps.

    Source: MobileCLIP, table 12.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of `model`."""
        current = model.state_dict()
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        # A tensor with several names is updated only once.
        names = {tensor: name for name, tensor in self.module.state_dict(keep_vars=True).items()}
        for average, name in names.items():
            averages, values = groups.setdefault((average.device, average.dtype), ([], []))
            averages.append(average)
            values.append(current[name])
        for (_, dtype), (averages, values) in groups.items():
            # One call for all tensors: on a GPU, one kernel for many tensors instead of one kernel each.
            if dtype.is_floating_point:
                torch._foreach_lerp_(averages, values, 1 - self.decay)
            else:
                torch._foreach_copy_(averages, values)
