"""Convolutions of several outputs for every channel, as depthwise ones."""

from __future__ import annotations

from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor, nn

from mobileclip.blocks.conv2d import interleave
from mobileclip.reparam import with_children
from mobileclip.reparam.algebra import conv_with
from mobileclip.reparam.module import children_by_name

Module = TypeVar("Module", bound=nn.Module)


class DepthwiseConvs(nn.Module):
    """What a convolution of `m` outputs for every channel computes, by `m` depthwise convolutions.

    Most libraries have code for depthwise convolutions alone. MCi's layers between two stages, and the one at its end,
    take half of the time this way in PyTorch, ONNX Runtime and OpenVINO on a CPU.

    Shape:
        as the convolution's.

    Args:
        conv: folded, with as many groups as channels come in; its weights are copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        several = conv.out_channels // conv.groups
        weights, biases = conv.weight.detach(), conv.bias.detach()
        # Each in memory of its own: programs of inductor with frozen weights go wrong on one's every so-many-th row.
        self.convs = nn.ModuleList(
            conv_with(conv, weights[start::several].clone(), biases[start::several].clone()) for start in range(several)
        )
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x`."""
        outputs = [conv(x) for conv in self.convs]
        # One of the layers may be kept in float32.
        wide = reduce(torch.promote_types, (output.dtype for output in outputs))
        return interleave([output.to(wide) for output in outputs])


def with_depthwise_convs(module: Module) -> Module:
    """Return a module whose convolutions of several outputs for every channel are depthwise ones.

    Args:
        module: folded; the other one shares all other weights.
    """
    children = children_by_name(module)
    replaced = {name: _replaced(child) for name, child in children.items()}
    changed = {name: child for name, child in replaced.items() if child is not children[name]}
    return with_children(module, changed) if changed else module


def _replaced(child: nn.Module) -> nn.Module:
    if isinstance(child, nn.Conv2d) and 1 < child.groups == child.in_channels < child.out_channels:
        return DepthwiseConvs(child)
    return with_depthwise_convs(child)
