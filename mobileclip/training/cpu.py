"""Faster training on a CPU: the same formulas, values and gradients, computed by operations that oneDNN runs fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mobileclip.blocks import (
    AttentionBlock,
    ConvFFN,
    ConvNorm,
    ConvStem,
    LargeKernelConv,
    MobileOneBlock,
    RepMixer,
    RepMixerBlock,
    TextRepMixerBlock,
)
from mobileclip.inference.forms import interleave, memory_format
from mobileclip.reparam import PLAIN, LayerScale, in_classes, is_hooked

Module = TypeVar("Module", bound=nn.Module)
_aten = torch.ops.aten
_STRIP = 3  # for wider depthwise kernels, oneDNN does not generate code for the weight gradient
_FEW = 16  # channels
_WIDE = {torch.float32, torch.float64}


class CpuConv2d(nn.Conv2d):
    """A `torch.nn.Conv2d` with the same values and gradients, computed by operations that oneDNN runs fast.

    - The class computes the weight gradient of a wide depthwise kernel in strips of three columns, up to ten times as
      fast as in one piece.
    - A strided depthwise convolution with `m` output channels per input channel runs as `m` depthwise convolutions, up
      to three times as fast.
    - A strided 1x1 convolution with fewer than 16 input channels runs without stride, on the positions that the stride
      selects. In the channels-last memory format, which `torch.compile` also uses, oneDNN's backward pass of the
      strided convolution writes out of bounds.

    Arguments, shapes and errors are those of `torch.nn.Conv2d`.
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
        """Return the convolution, computed as `out_channels / groups` depthwise convolutions."""
        several = self.out_channels // self.groups
        biases = [None] * several if self.bias is None else [self.bias[start::several] for start in range(several)]
        return interleave(
            [
                F.conv2d(x, self.weight[start::several], bias, self.stride, self.padding, groups=self.groups)
                for start, bias in enumerate(biases)
            ]
        )


PLAIN.add(CpuConv2d)
_PLAIN = (nn.Conv2d, CpuConv2d)


def is_slow(conv: nn.Conv2d) -> bool:
    """Return whether `CpuConv2d` has its own algorithm for `conv`."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    depthwise = 1 < conv.groups == conv.in_channels and conv.dilation == (1, 1)
    wide = conv.out_channels == conv.in_channels and conv.kernel_size[1] > _STRIP and conv.stride == (1, 1)
    several = conv.out_channels > conv.in_channels and conv.stride != (1, 1)
    return _picks(conv) or (depthwise and (wide or several))


def _picks(conv: nn.Conv2d) -> bool:
    """Return whether `conv` is a strided 1x1 convolution with few input channels."""
    few = conv.groups == 1 and conv.in_channels < _FEW
    return few and conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.padding == (0, 0)


def on_cpu(x: Tensor) -> bool:
    """Return whether `x` is on a CPU and the call is outside `torch.compile`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def computes_wide(x: Tensor) -> bool:
    """Return whether `x` is on a CPU in float32 or float64, and the call is outside autocast and `torch.compile`."""
    return on_cpu(x) and x.dtype in _WIDE and not torch.is_autocast_enabled("cpu")


def conv_and_picked(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the depthwise convolution `conv(x)` without bias, and `x` at the positions that the stride selects.

    The backward pass adds the gradient of the selected positions to the convolution's input gradient in place. Computed
    separately, the gradient of the selected positions would need a full feature map of zeros.
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
    """A depthwise convolution with stride 1 that computes its weight gradient in strips of columns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        """Return the depthwise convolution of `x`."""
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return the gradients of the input, weight and bias.

        The convolution multiplies column `v` of the kernel with columns `v` to `v + width` of the padded input. A strip
        of neighbouring kernel columns is therefore a narrower kernel over a part of the padded input.
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
    """Return a gradient of a depthwise convolution with stride 1: the weight's if `weight`, else the input's."""
    mask = [not weight, weight, False]
    both = _aten.convolution_backward(grad, x, kernel, None, (1, 1), padding, (1, 1), False, (0, 0), x.shape[1], mask)
    wanted: Tensor = both[1] if weight else both[0]
    return wanted


class NormBranch(NamedTuple):
    """One summand `sign * norm(scale * x)` of `sum_of_norms`.

    Args:
        x: input of shape `(batch, dim, height, width)`; several branches may share one input.
        norm: batch norm of the branch.
        scale: factor per channel, such as the weight of a depthwise 1x1 convolution; None for 1.
        sign: 1 or -1.
    """

    x: Tensor
    norm: nn.BatchNorm2d
    scale: Tensor | None = None
    sign: int = 1


def can_fuse_norms(norms: Sequence[nn.Module | None], x: Tensor) -> bool:
    """Return whether `sum_of_norms` can replace `norms`, the norms of `x` or of convolutions of `x`.

    The function returns False for frozen or synchronised norms, which do not use the statistics of this process's batch
    alone, and in half precision, where the fused sums are slower.
    """
    own = all(type(norm) is nn.BatchNorm2d and norm.training and norm.affine for norm in norms)
    return own and computes_wide(x)


def sum_of_norms(
    branches: Sequence[NormBranch], *, residual: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """Return `residual + factor * sum of sign * norm(scale * x)`, normalised with the batch's statistics.

    A batch norm is an affine function of its input, so a sum of batch norms is affine as well. With the mean `m_i` and
    the variance `v_i` of each distinct input `x_i`, and the weight `g_j` (times sign and factor) and scale `w_j` of
    each branch `j`:

    `y = residual + sum_i a_i (x_i - m_i) + shift`, where `shift` is the sum of the biases (times sign and factor), and
    `a_i` is the sum of `g_j w_j / sqrt(w_j^2 v_i + eps_j)` over the branches `j` with input `x_i`.

    The function reads each input once for its statistics and once for the sum; the norms' running statistics follow
    from `m_i` and `v_i`. The backward pass needs the sums of `dy` and of `dy (x_i - m_i)` for each input, and one pass
    for `dx_i`.

    Shape:
        `(batch, dim, height, width)`.

    Args:
        branches: the summands; `can_fuse_norms` must return True for the norms of the branches.
        residual: tensor to add, which must be the same object as the `x` of a branch; None adds no tensor.
        factor: factor per channel of the sum, a tensor of any shape with `dim` values; None for 1.

    Raises:
        ValueError: if a channel has only one value, and therefore no variance.
    """
    count = branches[0].x.numel() // branches[0].x.shape[1]
    if count == 1:
        size = tuple(branches[0].x.shape)
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    inputs: list[Tensor] = []
    source: list[int] = []
    for branch in branches:
        known = [index for index, x in enumerate(inputs) if x is branch.x]
        source.append(known[0] if known else len(inputs))
        inputs.extend([] if known else [branch.x])
    weights = torch.stack([branch.sign * branch.norm.weight for branch in branches])
    shift = torch.stack([branch.sign * branch.norm.bias for branch in branches]).sum(0)
    if factor is not None:
        weights, shift = weights * factor.flatten(), shift * factor.flatten()
    one = torch.ones_like(branches[0].norm.weight)
    scales = torch.stack([one if branch.scale is None else branch.scale.flatten() for branch in branches])
    kept = next((index for index, x in enumerate(inputs) if x is residual), None)
    assert residual is None or kept is not None
    eps = tuple(branch.norm.eps for branch in branches)
    y, means, variances = _SumOfNorms.apply(weights, scales, shift, eps, tuple(source), kept, *inputs)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for branch, index, scale in zip(branches, source, scales.detach(), strict=True):
            _track(branch.norm, scale * means[index], scale.square() * variances[index] * (count / (count - 1)))
    result: Tensor = y
    return result


def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics of `norm` with the batch's statistics, as `norm` itself would."""
    if norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum or 0.0)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), momentum or 0.0)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel of `x`."""
    mean, variance = _aten.batch_norm_update_stats(x, None, None, 0.0)
    return mean, variance


def _of_branches(values: Tensor, source: Sequence[int]) -> Tensor:
    """Return the values of the branches' inputs, one row per branch."""
    return torch.stack([values[index] for index in source])


def _of_inputs(values: Tensor, source: Sequence[int]) -> Tensor:
    """Return, for each input, the sum of its branches' values, without index tensors (which would need a copy)."""
    rows = values.unbind()
    sums = [[row for row, index in zip(rows, source, strict=True) if index == own] for own in range(max(source) + 1)]
    return torch.stack([sum(own[1:], start=own[0]) for own in sums])


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


class _SumOfNorms(torch.autograd.Function):
    """`sum_of_norms` on tensors only, with an explicit backward pass."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd's calls are positional
        ctx: Any,
        weights: Tensor,
        scales: Tensor,
        shift: Tensor,
        eps: tuple[float, ...],
        source: tuple[int, ...],
        residual: int | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum, and the mean and variance of each input."""
        means, variances = map(torch.stack, zip(*(_statistics(x) for x in inputs), strict=True))
        added: float | Tensor = eps[0] if len(set(eps)) == 1 else shift.new_tensor(eps)[:, None]
        roots = (scales.square() * _of_branches(variances, source) + added).rsqrt()
        slopes = _of_inputs(weights * scales * roots, source)
        offset = shift - (slopes * means).sum(0)
        steps = slopes.clone()
        if residual is not None:
            steps[residual] += 1
        y = torch.addcmul(_per_channel(offset), inputs[0], _per_channel(steps[0]))
        for x, step in zip(inputs[1:], steps[1:], strict=True):
            y.addcmul_(x, _per_channel(step))
        ctx.save_for_backward(weights, scales, means, roots, slopes, steps, *inputs)
        ctx.added, ctx.source = added, source
        ctx.mark_non_differentiable(means, variances)
        return y, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the weights, scales and shift, and of each input.

        With `S_i = sum of dy (x_i - m_i)`, `G = sum of dy`, `r_j = 1 / sqrt(w_j^2 v_i + eps_j)` and `n` values per
        channel: `dg_j = w_j r_j S_i`, `dw_j = g_j eps_j r_j^3 S_i`, `dv_i = -S_i / 2 sum_j g_j w_j^3 r_j^3` and `dx_i =
        a_i (dy - G / n) + 2 dv_i / n (x_i - m_i)`; the residual's gradient adds `dy`.
        """
        weights, scales, means, roots, slopes, steps, *inputs = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(inputs[0]))  # mixing two memory formats is slow
        count = grad.numel() // grad.shape[1]
        moments, total = _moments(grad, inputs, means)
        of_branch = _of_branches(moments, ctx.source)
        cubes = roots.pow(3)
        grad_weights = scales * roots * of_branch
        grad_scales = weights * ctx.added * cubes * of_branch
        bends = _of_inputs(weights * scales.pow(3) * cubes, ctx.source) * moments / -count
        offsets = slopes * total / -count - bends * means
        grad_inputs: list[Tensor | None] = [None] * len(inputs)
        for index, x in enumerate(inputs):
            if ctx.needs_input_grad[-len(inputs) + index]:
                offset, step, bend = (_per_channel(values[index]) for values in (offsets, steps, bends))
                grad_inputs[index] = torch.addcmul(offset, grad, step).addcmul_(x, bend)
        return grad_weights, grad_scales, total, None, None, None, *grad_inputs


def _moments(grad: Tensor, inputs: Sequence[Tensor], means: Tensor) -> tuple[Tensor, Tensor]:
    """Return two sums per channel: the sum of `grad (x - mean)` for each input, and the sum of `grad`."""
    moments, total = [], grad
    one = torch.ones_like(means[0])
    for x, mean in zip(inputs, means, strict=True):
        # The kernel multiplies its first sum by the inverse standard deviation; the value 1 leaves the sum unchanged.
        _, moment, total = _aten.native_batch_norm_backward(
            grad, x, one, None, None, mean, one, True, 0.0, [False, True, True]
        )
        moments.append(moment)
    return torch.stack(moments), total


def fuse_for_cpu(model: Module) -> Module:
    """Make every block of a model train faster on a CPU, with the same values and gradients.

    The function replaces blocks and convolutions of the model by faster versions with the same parameters, names, hooks
    and folding. In training mode, the faster versions keep feature maps in the channels-last memory format. In float32,
    the faster versions also compute a sum of batch norms in one pass over the common input, compute the weight
    gradients of wide depthwise kernels in strips, and multiply layer scales into the preceding weights. A block uses
    its plain formula in evaluation mode, under `torch.compile`, or if its submodules have hooks or were replaced.
    Strided 1x1 convolutions with fewer than 16 input channels are an exception: under `torch.compile`, the plain
    versions would crash.

    The plain formulas support double backward and `torch.func`; the faster versions do not.

    Args:
        model: any module, modified in place.

    Returns:
        The model, or the replacement of `model` if the function replaces `model` itself.
    """
    return in_classes(
        model, lambda one: CpuConv2d if isinstance(one, nn.Conv2d) and is_slow(one) else _FUSED.get(type(one))
    )


class FusedConvStem(ConvStem):
    """A convolutional stem with channels-last output; later feature maps keep this memory format."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of the images `x`."""
        if self.training and on_cpu(x):
            # Convolutions and norms train about twice as fast in this format.
            x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return y


class FusedMobileOneBlock(MobileOneBlock):
    """A MobileOne block that computes the sum of its branches' batch norms in one pass."""

    fold = MobileOneBlock.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches' outputs for `x`, passed through squeeze-and-excite and the activation."""
        if _hooked(self) or not _branches_merge(self, x):
            return super().forward(x)
        y: Tensor = self.activation(self.squeeze_excite(sum_of_norms(_norm_branches(self, x))))
        return y


class FusedLargeKernelConv(LargeKernelConv):
    """A large-kernel convolution that normalizes the outputs of both kernels and adds them in one pass."""

    fold = LargeKernelConv.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both kernels' outputs for `x`, passed through squeeze-and-excite and the activation."""
        convs = [conv for conv in (self.large, self.small) if isinstance(conv, ConvNorm)]
        if _hooked(self) or not self.training or len(convs) < 2 or not can_fuse_norms([conv.norm for conv in convs], x):
            return super().forward(x)
        total = sum_of_norms([NormBranch(conv.conv(x), conv.norm) for conv in convs])
        y: Tensor = self.activation(self.squeeze_excite(total))
        return y


class FusedRepMixer(RepMixer):
    """A RepMixer that computes its skip connection, layer scale and norms as one sum."""

    fold = RepMixer.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after token mixing."""
        parts = (self.mixer, self.norm)
        if _hooked(self) or not all(isinstance(part, MobileOneBlock) and _branches_merge(part, x) for part in parts):
            return super().forward(x)
        norms = [branch._replace(sign=-1) for branch in _norm_branches(self.norm, x)]
        return sum_of_norms([*_norm_branches(self.mixer, x), *norms], residual=x, factor=self.layer_scale.gamma)


class FusedRepMixerBlock(RepMixerBlock):
    """A RepMixer block that multiplies its layer scale into the last weights of its feed-forward network."""

    fold = RepMixerBlock.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed feature map."""
        x = self.token_mixer(x)
        y: Tensor = x + self.drop_path(_scaled(self.layer_scale, self.ffn, x))
        return y


class FusedTextRepMixerBlock(TextRepMixerBlock, FusedRepMixerBlock):
    """A RepMixer block for sequences that multiplies its layer scale into its feed-forward network's last weights."""

    fold = TextRepMixerBlock.fold


class FusedAttentionBlock(AttentionBlock):
    """An attention block that multiplies its second layer scale into the last weights of its feed-forward network."""

    fold = AttentionBlock.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed feature map."""
        x = x + self.attention_drop_path(self.attention_scale(self.attention(self.norm(x))))
        y: Tensor = x + self.ffn_drop_path(_scaled(self.ffn_scale, self.ffn, x))
        return y


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    fused.__mro__[1]: fused
    for fused in (
        FusedAttentionBlock,
        FusedConvStem,
        FusedLargeKernelConv,
        FusedMobileOneBlock,
        FusedRepMixer,
        FusedRepMixerBlock,
        FusedTextRepMixerBlock,
    )
}


def _hooked(block: nn.Module) -> bool:
    """Return whether a submodule of the block has hooks."""
    return any(is_hooked(part) for part in block.modules() if part is not block)


def _conv_norms(block: MobileOneBlock) -> list[ConvNorm]:
    return [branch for branch in (*block.branches, block.scale) if isinstance(branch, ConvNorm)]


def _branches_merge(block: MobileOneBlock, x: Tensor) -> bool:
    """Return whether the block is in training mode and not folded, and `sum_of_norms` can replace its norms."""
    convs = _conv_norms(block)
    unfolded = len(convs) == len(block.branches) + (block.scale is not None)
    norms: list[nn.Module] = [conv.norm for conv in convs]
    return block.training and unfolded and can_fuse_norms([*norms, *([] if block.skip is None else [block.skip])], x)


def _norm_branches(block: MobileOneBlock, x: Tensor) -> list[NormBranch]:
    """Return the branches of `block`; each branch is the norm of `x` or of a convolution of `x`."""
    convs = _conv_norms(block)
    is_factor = _is_factor(block)
    if is_factor and block.stride > 1 and [type(conv.conv) in _PLAIN for conv in convs] == [True, True]:
        y, picked = conv_and_picked(convs[0].conv, x)
        return [NormBranch(y, convs[0].norm), NormBranch(picked, convs[1].norm, scale=convs[1].conv.weight)]
    as_factor = convs.pop() if is_factor and block.stride == 1 else None
    branches = [NormBranch(branch.conv(x), branch.norm) for branch in convs]
    if as_factor is not None:
        branches.append(NormBranch(x, as_factor.norm, scale=as_factor.conv.weight))
    if isinstance(block.skip, nn.BatchNorm2d):
        branches.append(NormBranch(x, block.skip))
    return branches


def _is_factor(block: MobileOneBlock) -> bool:
    """Return whether the 1x1 branch is depthwise, that is, only scales each channel."""
    if not isinstance(block.scale, ConvNorm) or type(block.scale.conv) not in _PLAIN:
        return False
    return block.groups == block.scale.conv.in_channels == block.scale.conv.out_channels


def _scaled(scale: nn.Module, network: nn.Module, x: Tensor) -> Tensor:
    """Return `scale(network(x))`; in training, multiply the weights instead of the larger feature map by the scale.

    Since `gamma * (W h + b) = (gamma W) h + gamma b`, scaled weights save one stored feature map, and one pass over the
    features in the forward pass and one in the backward pass.
    """
    known = type(scale) is LayerScale and type(network) is ConvFFN and type(network.fc2) in _PLAIN
    watched = is_hooked(scale) or _hooked(network)
    if watched or not (known and network.training and computes_wide(x)):
        y: Tensor = scale(network(x))
        return y
    assert isinstance(network, ConvFFN)
    assert isinstance(scale, LayerScale)
    assert network.fc2.bias is not None
    weight, bias = network.fc2.weight * scale.gamma[..., None], network.fc2.bias * scale.gamma.flatten()
    return F.conv2d(network.activation(network.fc1(network.conv(x))), weight, bias)
