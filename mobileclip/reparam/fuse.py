"""Kernel algebra: pure functions on weights that express a branch, a norm or a scale as a convolution.

All functions compute in float64 (float32 on devices without float64), since folding in bfloat16 has several times the
error of folding in float64 and casting afterwards. The functions do not cast the results back; the caller
casts once, at the end.
"""

from __future__ import annotations

from typing import TypeVar, cast, overload

import torch
from torch import Tensor, nn

from mobileclip import hardware

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
"""Norms that are an affine map per channel in evaluation mode, and can therefore be folded."""


def widened(tensor: Tensor) -> Tensor:
    """Return `tensor` detached, in float64, or in float32 if the device has no float64.

    Examples:
        >>> widened(nn.Linear(2, 2, dtype=torch.bfloat16).weight).dtype
        torch.float64
    """
    return tensor.detach().to(torch.float64 if hardware.has_float64(tensor.device) else torch.float32)


def norm_affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and shift that a batch norm applies per channel in evaluation mode.

    `norm(x) = scale * x + shift`, `scale = weight / sqrt(running_var + eps)`, `shift = bias - running_mean * scale`.

    Shape:
        both `(channels,)`.

    Raises:
        ValueError: if `norm` is not a batch norm, or has no running statistics.

    Examples:
        >>> norm = nn.BatchNorm2d(2, eps=0.0)
        >>> norm.load_state_dict({"running_mean": torch.tensor([3.0, 4.0])}, strict=False).unexpected_keys
        []
        >>> norm_affine(norm)
        (tensor([1., 1.], dtype=torch.float64), tensor([-3., -4.], dtype=torch.float64))
    """
    if not isinstance(norm, BATCH_NORMS):
        raise ValueError(f"a {type(norm).__name__} replaces a batch norm, but is not an affine map per channel")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics depends on each batch, so it cannot be folded")
    scale = (widened(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * widened(norm.weight)
    shift = -widened(norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + widened(norm.bias)
    return scale, shift


def fuse_conv_bn(conv: nn.Conv2d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the kernel and bias of the single convolution equal to `norm(conv(x))`.

    Shape:
        kernel `(out, in / groups, height, width)`, bias `(out,)`.

    Examples:
        >>> conv, norm, x = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8).eval(), torch.rand(1, 3, 4, 4)
        >>> kernel, bias = fuse_conv_bn(conv, norm)
        >>> torch.allclose(nn.functional.conv2d(x, kernel.float(), bias.float()), norm(conv(x)), atol=1e-5)
        True
    """
    scale, shift = norm_affine(norm)
    kernel = widened(conv.weight) * scale[:, None, None, None]
    if conv.bias is not None:
        shift = shift + widened(conv.bias) * scale
    return kernel, shift


def identity_kernel(dim: int, kernel_size: tuple[int, int], *, groups: int, like: Tensor) -> Tensor:
    """Return the kernel of the identity convolution.

    Shape:
        `(dim, dim / groups, height, width)`, in float64 on the device of `like`.

    Args:
        dim: number of input and of output channels.
        kernel_size: height and width of the kernel, both odd, so that the kernel has a centre.
        groups: groups of the convolution.
        like: a tensor on the target device.

    Raises:
        ValueError: if a side of the kernel is even.

    Examples:
        >>> identity_kernel(2, (1, 3), groups=2, like=torch.zeros(())).squeeze()
        tensor([[0., 1., 0.],
                [0., 1., 0.]], dtype=torch.float64)
    """
    height, width = kernel_size
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"an identity kernel needs a centre, so its sides must be odd; got {height}x{width}")
    group_dim = dim // groups
    kernel = widened(like.new_zeros(dim, group_dim, height, width))
    centre = kernel[:, :, height // 2, width // 2].view(groups, group_dim, group_dim)
    centre.diagonal(dim1=1, dim2=2).fill_(1.0)
    return kernel


def pad_kernel(kernel: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return `kernel` centred and zero-padded to `kernel_size`.

    Convolutions with the original and the padded kernel agree if each pads its input by half its kernel size.

    Raises:
        ValueError: if a target side is smaller than the kernel side, or differs from the kernel side by an odd number,
            so that the centres do not align.

    Examples:
        >>> pad_kernel(torch.full((1, 1, 1, 1), 5), (3, 3)).squeeze()
        tensor([[0, 0, 0],
                [0, 5, 0],
                [0, 0, 0]])
    """
    rows, columns = (target - own for target, own in zip(kernel_size, kernel.shape[-2:], strict=True))
    if min(rows, columns) < 0 or rows % 2 or columns % 2:
        own_size = "x".join(map(str, kernel.shape[-2:]))
        raise ValueError(f"a {own_size} kernel cannot be centred in {kernel_size[0]}x{kernel_size[1]}")
    return nn.functional.pad(kernel, (columns // 2, columns // 2, rows // 2, rows // 2))


def plain_conv(
    kernel: Tensor,
    bias: Tensor | None,
    *,
    like: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] | None = None,
    groups: int = 1,
) -> nn.Conv2d:
    """Return a convolution with `kernel` and `bias`, in evaluation mode.

    Args:
        kernel: kernel of shape `(out, in / groups, height, width)`.
        bias: bias of shape `(out,)`; None for a convolution without bias.
        like: a tensor with the dtype of the result, such as the original weight.
        stride: stride in (rows, columns).
        padding: zero padding of (rows, columns); half the kernel size by default.
        groups: groups of the convolution.

    Examples:
        >>> kernel = identity_kernel(8, (3, 3), groups=8, like=torch.zeros(()))
        >>> plain_conv(kernel, None, like=torch.zeros((), dtype=torch.bfloat16), groups=8)
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8, bias=False)
    """
    out_dim, group_dim, height, width = kernel.shape
    padding = padding if padding is not None else (height // 2, width // 2)
    conv = nn.Conv2d(
        *(group_dim * groups, out_dim, (height, width), stride, padding),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return _holding(conv, kernel, bias, like=like)


def conv_with(conv: nn.Conv2d, kernel: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a plain convolution with the geometry and dtype of `conv`, and with `kernel` and `bias`.

    Examples:
        >>> conv = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        >>> conv_with(conv, *fuse_conv_bn(conv, nn.BatchNorm2d(8)))
        Conv2d(3, 8, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3))
    """
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        cast("tuple[int, int]", conv.kernel_size),
        stride=cast("tuple[int, int]", conv.stride),
        padding=cast("str | tuple[int, int]", conv.padding),
        dilation=cast("tuple[int, int]", conv.dilation),
        groups=conv.groups,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    return _holding(plain, kernel, bias, like=conv.weight)


@overload
def scale_output(layer: nn.Conv2d, scale: Tensor) -> nn.Conv2d: ...
@overload
def scale_output(layer: nn.Linear, scale: Tensor) -> nn.Linear: ...
def scale_output(layer: nn.Conv2d | nn.Linear, scale: Tensor) -> nn.Conv2d | nn.Linear:
    """Return the layer equal to `scale * layer(x)`, per output channel.

    Args:
        layer: layer to scale, which stays unchanged.
        scale: scale per output channel, `(out,)`, possibly with trailing singleton dimensions.

    Raises:
        ValueError: if the layer is neither a plain convolution nor a plain linear layer, for example because of an
            adapter.

    Examples:
        >>> scaled = scale_output(nn.Linear(4, 2), torch.tensor([0.0, 1.0]))
        >>> scaled(torch.ones(4))[0].item()
        0.0
    """
    _refuse_other(layer, nn.Conv2d, nn.Linear)
    factor = widened(scale).flatten()
    weight = widened(layer.weight)
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    bias = None if layer.bias is None else widened(layer.bias) * factor
    if isinstance(layer, nn.Linear):
        return _plain_linear(weight, bias, like=layer.weight)
    return conv_with(layer, weight, bias)


def shift_input(layer: nn.Linear, scale: Tensor, shift: Tensor) -> nn.Linear:
    """Return the linear layer equal to `layer(scale * x + shift)`; the result has a bias even if `layer` has no bias.

    Shape:
        `scale` and `shift` `(in,)`.

    Examples:
        >>> layer, x = nn.Linear(2, 3, bias=False), torch.rand(5, 2)
        >>> scale, shift = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0])
        >>> torch.allclose(shift_input(layer, scale, shift)(x), layer(scale * x + shift), atol=1e-5)
        True
    """
    _refuse_other(layer, nn.Linear)
    weight = widened(layer.weight)
    bias = weight @ widened(shift)
    if layer.bias is not None:
        bias = bias + widened(layer.bias)
    return _plain_linear(weight * widened(scale), bias, like=layer.weight)


def _refuse_other(layer: nn.Module, *kinds: type[nn.Module]) -> None:
    if not isinstance(layer, kinds):
        shown = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"a {type(layer).__name__} replaces a {shown}; merge adapters first")


def _plain_linear(weight: Tensor, bias: Tensor | None, *, like: Tensor) -> nn.Linear:
    out_dim, in_dim = weight.shape
    return _holding(nn.Linear(in_dim, out_dim, bias=bias is not None, device="meta"), weight, bias, like=like)


def _holding(layer: Layer, weight: Tensor, bias: Tensor | None, *, like: Tensor) -> Layer:
    """Assign weight and bias to a layer on the meta device, and return the layer in evaluation mode."""
    layer.weight = nn.Parameter(weight.to(like.dtype))
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(like.dtype))
    return layer.eval()
