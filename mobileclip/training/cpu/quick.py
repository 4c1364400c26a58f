"""Blocks that give the same values and gradients as their formulas for less work on a CPU."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
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
from mobileclip.reparam import LayerScale, children_by_name, in_class, is_hooked
from mobileclip.training.cpu.convolutions import QuickConv2d, computes_wide, conv_and_picked, is_quicker, on_cpu
from mobileclip.training.cpu.norm_sum import NormBranch, merges, sum_of_norms

Module = TypeVar("Module", bound=nn.Module)
_PLAIN = (nn.Conv2d, QuickConv2d)


def quicken(model: Module) -> Module:
    """Let every block of a model train faster on a CPU, with the same values and gradients.

    In training mode, feature maps have their channels innermost in memory. In float32, batch norms that are added up
    are computed in one pass over their common input, the gradients of wide depthwise kernels come in strips, and layer
    scales go into the weights in front of them. Blocks and convolutions in the model are replaced by ones that share
    their parameters, names and hooks, and fold alike. A block with hooks on its parts, or with other parts than it was
    made with, computes by its formula. So does everything in evaluation mode and under `torch.compile`, but for
    convolutions that would crash there.

    The formulas can be differentiated twice, and by `torch.func`; these cannot.

    Args:
        model: any module; it is changed.

    Returns:
        The model; where it is such a block itself, the one that replaces it.
    """
    quick: dict[nn.Module, nn.Module] = {}  # what is used in several places stays one module
    for module in model.modules():
        known = isinstance(module, nn.Conv2d) and is_quicker(module)
        cls = QuickConv2d if known else _QUICK.get(type(module))
        if cls is not None:
            quick[module] = in_class(module, cls)
    for module in list(model.modules()):
        for name, child in children_by_name(module).items():
            if child in quick:
                module.add_module(name, quick[child])
    return cast("Module", quick.get(model, model))


class QuickConvStem(ConvStem):
    """A stem whose feature maps, and so all that follow, have their channels innermost."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of the images `x`."""
        if self.training and on_cpu(x):
            # Convolutions and norms train about twice as fast in that order.
            x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return y


class QuickMobileOneBlock(MobileOneBlock):
    """A MobileOne block that adds up its branches' norms in one pass."""

    fold = MobileOneBlock.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated, gated sum of the branches of `x`."""
        if _hooked(self) or not _branches_merge(self, x):
            return super().forward(x)
        y: Tensor = self.activation(self.squeeze_excite(sum_of_norms(_norm_branches(self, x))))
        return y


class QuickLargeKernelConv(LargeKernelConv):
    """A large-kernel convolution that adds up its two norms in one pass."""

    fold = LargeKernelConv.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated, gated sum of both kernels over `x`."""
        convs = [conv for conv in (self.large, self.small) if isinstance(conv, ConvNorm)]
        if _hooked(self) or not self.training or len(convs) < 2 or not merges([conv.norm for conv in convs], x):
            return super().forward(x)
        total = sum_of_norms([NormBranch(conv.conv(x), conv.norm) for conv in convs])
        y: Tensor = self.activation(self.squeeze_excite(total))
        return y


class QuickRepMixer(RepMixer):
    """A RepMixer whose skip, scale and norms are one sum."""

    fold = RepMixer.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` mixed over its neighbourhoods."""
        parts = (self.mixer, self.norm)
        if _hooked(self) or not all(isinstance(part, MobileOneBlock) and _branches_merge(part, x) for part in parts):
            return super().forward(x)
        norms = [branch._replace(sign=-1) for branch in _norm_branches(self.norm, x)]
        return sum_of_norms([*_norm_branches(self.mixer, x), *norms], residual=x, factor=self.layer_scale.gamma)


class QuickRepMixerBlock(RepMixerBlock):
    """A RepMixer block whose layer scale goes into the network's last weights."""

    fold = RepMixerBlock.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed feature map."""
        x = self.token_mixer(x)
        y: Tensor = x + self.drop_path(_scaled(self.layer_scale, self.ffn, x))
        return y


class QuickTextRepMixerBlock(TextRepMixerBlock, QuickRepMixerBlock):
    """A RepMixer block over a sequence, likewise."""

    fold = TextRepMixerBlock.fold


class QuickAttentionBlock(AttentionBlock):
    """An attention block whose second layer scale goes into the network's last weights."""

    fold = AttentionBlock.fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed feature map."""
        x = x + self.attention_drop_path(self.attention_scale(self.attention(self.norm(x))))
        y: Tensor = x + self.ffn_drop_path(_scaled(self.ffn_scale, self.ffn, x))
        return y


_QUICK: dict[type[nn.Module], type[nn.Module]] = {
    quick.__mro__[1]: quick
    for quick in (
        QuickAttentionBlock,
        QuickConvStem,
        QuickLargeKernelConv,
        QuickMobileOneBlock,
        QuickRepMixer,
        QuickRepMixerBlock,
        QuickTextRepMixerBlock,
    )
}


def _hooked(block: nn.Module) -> bool:
    """Whether somebody watches or changes what a part of the block computes."""
    return any(is_hooked(part) for part in block.modules() if part is not block)


def _conv_norms(block: MobileOneBlock) -> list[ConvNorm]:
    return [branch for branch in (*block.branches, block.scale) if isinstance(branch, ConvNorm)]


def _branches_merge(block: MobileOneBlock, x: Tensor) -> bool:
    """Whether the branches of `x` can be added up as norms: in training, with a batch's statistics."""
    convs = _conv_norms(block)
    unfolded = len(convs) == len(block.branches) + (block.scale is not None)
    norms: list[nn.Module] = [conv.norm for conv in convs]
    return block.training and unfolded and merges([*norms, *([] if block.skip is None else [block.skip])], x)


def _norm_branches(block: MobileOneBlock, x: Tensor) -> list[NormBranch]:
    """Return the branches as norms, of the convolutions of `x` and of `x` itself."""
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
    """Whether the 1x1 branch is a factor per channel."""
    if not isinstance(block.scale, ConvNorm) or type(block.scale.conv) not in _PLAIN:
        return False
    return block.groups == block.scale.conv.in_channels == block.scale.conv.out_channels


def _scaled(scale: nn.Module, network: nn.Module, x: Tensor) -> Tensor:
    """Return `scale(network(x))`; in training a layer scale goes into the weights, smaller than the features.

    `gamma * (W h + b) = (gamma W) h + gamma b`: one pass over the features less in each direction, one map less to
    keep.
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
