"""Convolutions that are quick on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_aten = torch.ops.aten
_STRIP = 3  # the widest depthwise kernel whose weight gradient oneDNN generates code for
_FEW = 16  # channels
_WIDE = {torch.float32, torch.float64}


class Conv2d(nn.Conv2d):
    """PyTorch's convolution, with the same values and gradients, by way of what oneDNN is fast at.

    On the CPU, a convolution of `m` outputs per channel becomes `m` depthwise ones, up to three times as fast; where
    gradients are asked for, those with a stride alone. For gradients, too:

    - the weight gradient of a wide depthwise kernel is computed in strips three columns wide: up to ten times as fast
      as whole;
    - a strided 1x1 convolution of fewer than 16 channels sees the picked positions alone: with channels innermost in
      memory, oneDNN's backward pass of the strided one crashes.

    Args, shape and errors are those of `torch.nn.Conv2d`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Return the convolution of `input`."""
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not plain or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        needed = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        few = self.groups == 1 and self.in_channels < _FEW
        if needed and few and self.kernel_size == (1, 1) and self.stride != (1, 1) and self.padding == (0, 0):
            picked = input[..., :: self.stride[0], :: self.stride[1]].contiguous(memory_format=memory_format(input))
            return F.conv2d(picked, self.weight, self.bias, groups=self.groups)
        if self.dilation != (1, 1) or input.dtype not in _WIDE or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if 1 < self.groups == self.in_channels < self.out_channels and (self.stride != (1, 1) or not needed):
            return self._interleaved(input)
        depthwise = self.groups == self.in_channels == self.out_channels
        wide = input.shape[-1] >= self.kernel_size[1] > _STRIP and self.weight.requires_grad
        if needed and depthwise and wide and self.stride == (1, 1):
            y: Tensor = _DepthwiseConv.apply(input, self.weight, self.bias, self.padding)  # type: ignore[no-untyped-call]
            return y
        return super().forward(input)

    def _interleaved(self, x: Tensor) -> Tensor:
        """Return the convolution as one depthwise convolution for each of the outputs of a channel."""
        several = self.out_channels // self.groups
        biases = [None] * several if self.bias is None else [self.bias[start::several] for start in range(several)]
        return interleave(
            [
                F.conv2d(x, self.weight[start::several], bias, self.stride, self.padding, groups=self.groups)
                for start, bias in enumerate(biases)
            ]
        )


def as_conv2d(conv: nn.Conv2d) -> Conv2d:
    """Return the convolution that folding made as one of these; the parameters are the same."""
    stride, padding = conv.stride, conv.padding
    assert len(stride) == len(padding) == 2
    assert not isinstance(padding, str)
    height, width = conv.kernel_size
    quick = Conv2d(
        conv.in_channels,
        conv.out_channels,
        (height, width),
        stride,
        padding,
        groups=conv.groups,
        bias=False,
        device="meta",
    ).eval()
    quick.weight, quick.bias = conv.weight, conv.bias
    return quick


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


def conv_and_picked(conv: Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `conv(x)`, depthwise and without bias, and the positions of `x` that its stride picks.

    Their gradients meet in place: that of the few picked positions alone would fill a whole feature map with zeros.
    """
    outputs: tuple[Tensor, Tensor] = _ConvAndPicked.apply(x, conv.weight, conv.stride, conv.padding)  # type: ignore[no-untyped-call]
    return outputs


class _ConvAndPicked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        picked = x[..., :: stride[0], :: stride[1]].contiguous(memory_format=memory_format(x))
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1]), picked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_picked: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        mask = [*ctx.needs_input_grad[:2], False]
        grad_x, grad_weight, _ = _aten.convolution_backward(
            grad, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), x.shape[1], mask
        )
        if grad_x is not None:
            grad_x[..., :: ctx.stride[0], :: ctx.stride[1]].add_(grad_picked)
        return grad_x, grad_weight, None, None


class _DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution of stride 1 whose weight gradient comes in strips."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        """Return the convolution."""
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return the gradients of the input, of the weight and of the bias.

        Column `v` of the kernel meets columns `v` to `v + width` of the padded input: so do a few columns together,
        as a narrower kernel over that part.
        """
        x, weight = ctx.saved_tensors
        rows, columns = ctx.padding
        grad_x = _gradients(grad, x, weight, (rows, columns), weight=False) if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, grad_bias, None
        padded, strips = F.pad(x, (columns, columns)), []
        for strip, start in zip(weight.split(_STRIP, dim=-1), range(0, weight.shape[-1], _STRIP), strict=True):
            part = padded[..., start : start + grad.shape[-1] + strip.shape[-1] - 1]
            part = part.contiguous(memory_format=memory_format(x))
            strips.append(_gradients(grad, part, strip, (rows, 0), weight=True))
        return grad_x, torch.cat(strips, dim=-1), grad_bias, None


def _gradients(grad: Tensor, x: Tensor, kernel: Tensor, padding: tuple[int, int], *, weight: bool) -> Tensor:
    """Return the gradient of the weight, or of the input, of a depthwise convolution of stride 1."""
    mask = [not weight, weight, False]
    both = _aten.convolution_backward(grad, x, kernel, None, (1, 1), padding, (1, 1), False, (0, 0), x.shape[1], mask)
    wanted: Tensor = both[1] if weight else both[0]
    return wanted
