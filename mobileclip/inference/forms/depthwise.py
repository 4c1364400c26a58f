"""Convolutions of several outputs for every channel, as depthwise ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor, nn

from mobileclip.reparam import children_by_name, some_outputs, with_children

Module = TypeVar("Module", bound=nn.Module)


class DepthwiseConvs(nn.Module):
    """A convolution with `m` outputs per input channel, computed as `m` depthwise convolutions.

    Most libraries have code for depthwise convolutions alone. MCi's layers between two stages, and the one at its end,
    take half of the time this way in PyTorch, ONNX Runtime and OpenVINO on a CPU.

    Shape:
        as the convolution's.

    Args:
        conv: with as many groups as channels come in; its weights are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        several = conv.out_channels // conv.groups
        parts = [some_outputs(conv, slice(start, None, several)) for start in range(several)]
        for part in parts:
            part.out_channels = conv.groups
        self.convs = nn.ModuleList(parts)
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x`."""
        outputs = [conv(x) for conv in self.convs]
        # One of the layers may be kept in float32.
        wide = reduce(torch.promote_types, (output.dtype for output in outputs))
        return interleave([output.to(wide) for output in outputs])


def interleave(outputs: Sequence[Tensor]) -> Tensor:
    """Return the first channel of each, then the second of each, and so on, with channels as deep in memory.

    Shape:
        each `(batch, dim, height, width)`, to `(batch, len(outputs) * dim, height, width)`.
    """
    # What is compiled or exported has the simpler form, and a layout of its own.
    if not torch.compiler.is_compiling() and memory_format(outputs[0]) is torch.channels_last:
        return torch.stack([output.permute(0, 2, 3, 1) for output in outputs], dim=-1).flatten(3).permute(0, 3, 1, 2)
    return torch.stack(list(outputs), dim=2).flatten(1, 2)


def memory_format(x: Tensor) -> torch.memory_format:
    """Return whether channels lie outermost or innermost in memory; outermost where both are true."""
    innermost = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if innermost else torch.contiguous_format


def with_depthwise_convs(module: Module) -> Module:
    """Return a module whose convolutions of several outputs for every channel are depthwise ones.

    Args:
        module: in evaluation mode; the other one shares its weights.
    """
    changed = {}
    for name, child in children_by_name(module).items():
        replaced = _replaced(child)
        if replaced is not child:
            changed[name] = replaced
    return with_children(module, changed) if changed else module


def _replaced(child: nn.Module) -> nn.Module:
    if isinstance(child, nn.Conv2d) and 1 < child.groups == child.in_channels < child.out_channels:
        return DepthwiseConvs(child)
    return with_depthwise_convs(child)
