"""Convolutions with gradients that are quick on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mobileclip.inference.forms import interleave, memory_format
from mobileclip.reparam import PLAIN

_aten = torch.ops.aten
_STRIP = 3  # the widest depthwise kernel whose weight gradient oneDNN generates code for
_FEW = 16  # channels
_WIDE = {torch.float32, torch.float64}


class QuickConv2d(nn.Conv2d):
    """PyTorch's convolution, with the same values and gradients, by way of what oneDNN is fast at on a CPU.

    - The weight gradient of a wide depthwise kernel is computed in strips three columns wide: up to ten times as fast
      as whole.
    - A strided convolution of `m` outputs per channel becomes `m` depthwise ones: up to three times as fast.
    - A strided 1x1 convolution of fewer than 16 channels sees the picked positions alone: with channels innermost in
      memory, as the compiler lays them too, oneDNN's backward pass of the strided one writes beyond its own memory.

    Args, shape and errors are those of `torch.nn.Conv2d`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Return the convolution of `input`."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        if _picks(self) and input.device.type == "cpu":
            picked = input[..., :: self.stride[0], :: self.stride[1]].contiguous(memory_format=memory_format(input))
            return F.conv2d(picked, self.weight, self.bias, groups=self.groups)
        if not computes_wide(input):
            return super().forward(input)
        if self.out_channels > self.in_channels:
            return self._interleaved(input)
        if self.weight.requires_grad and input.shape[-1] >= self.kernel_size[1]:
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


PLAIN.add(QuickConv2d)


def is_quicker(conv: nn.Conv2d) -> bool:
    """Return whether `QuickConv2d` computes this convolution in another way than PyTorch."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    depthwise = 1 < conv.groups == conv.in_channels and conv.dilation == (1, 1)
    wide = conv.out_channels == conv.in_channels and conv.kernel_size[1] > _STRIP and conv.stride == (1, 1)
    several = conv.out_channels > conv.in_channels and conv.stride != (1, 1)
    return _picks(conv) or (depthwise and (wide or several))


def _picks(conv: nn.Conv2d) -> bool:
    """Whether the kernel sees one position in several, of few channels."""
    few = conv.groups == 1 and conv.in_channels < _FEW
    return few and conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.padding == (0, 0)


def on_cpu(x: Tensor) -> bool:
    """Return whether `x` is on a CPU, and nothing is being compiled."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def computes_wide(x: Tensor) -> bool:
    """Return whether `x` is on a CPU, in float32 or float64 without autocast, and nothing is being compiled."""
    return on_cpu(x) and x.dtype in _WIDE and not torch.is_autocast_enabled("cpu")


def conv_and_picked(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
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
