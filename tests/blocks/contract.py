"""The table of all blocks that the contract suite runs over: small, one row for each form that computes differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mobileclip import blocks
from tests.blocks.filling import noise


@dataclass(frozen=True)
class Case:
    """One block: how to make it, the shapes that go in and come out (batch included), and what else goes in."""

    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    output: tuple[int, ...]
    more: Callable[[int, int, torch.dtype], Tensor] | None = None
    is_exported: bool = True

    def inputs(self, *, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        more = () if self.more is None else (self.more(batch, seed, dtype),)
        return (noise(batch, *self.input[1:], seed=seed, dtype=dtype), *more)


def ids(batch: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Token ids, which a pooling needs too."""
    return torch.randint(99, (batch, 9), generator=torch.Generator().manual_seed(seed))


def context(batch: int, seed: int, dtype: torch.dtype) -> Tensor:
    """What a block attends to."""
    return noise(batch, 5, 8, seed=seed + 1, dtype=dtype)


MAP = (2, 8, 7, 6)
TOKENS = (2, 9, 8)
IMAGE = (2, 3, 32, 48)
ROW = (2, 8, 1, 9)


def taking(shape: tuple[int, ...], output: tuple[int, ...] | None = None, **others: Any) -> Callable[..., Case]:
    """Return what makes a case of a class and its arguments, by default with an output of the input's shape."""
    return lambda cls, *args, **kwargs: Case(partial(cls, *args, **kwargs), shape, output or shape, **others)


on_map, on_tokens = taking(MAP), taking(TOKENS)
halving = taking(MAP, (2, 16, 4, 3))
# Of a layer that is exported within another, and of a second form of one that is, the graph is known.
within, within_row = taking(TOKENS, is_exported=False), taking(ROW, is_exported=False)

CASES: dict[str, Case] = {
    "attention": within(blocks.Attention, 8, num_heads=2),
    "attention_causal": within(blocks.Attention, 8, num_heads=2, causal=True),
    "attention_2d": on_map(blocks.Attention2d, 8, num_heads=2, qkv_bias=False),
    "attention_block": on_map(blocks.AttentionBlock, 8, head_dim=4, hidden_dim=12),
    "attention_block_layer_norm": on_map(
        blocks.AttentionBlock, 8, head_dim=4, hidden_dim=12, norm=blocks.ChannelLayerNorm
    ),
    "attention_pooler": taking(TOKENS, (2, 3, 4))(blocks.AttentionPooler, 4, context_dim=8, num_queries=3, num_heads=2),
    "block_sequence": Case(
        lambda: blocks.BlockSequence(blocks.RepMixerBlock(8, hidden_dim=12), blocks.ConvFFN(8)), MAP, MAP
    ),
    "channel_layer_norm": on_map(blocks.ChannelLayerNorm, 8),
    "conv_ffn": on_map(blocks.ConvFFN, 8, hidden_dim=12),
    "conv_ffn_text": within_row(blocks.ConvFFN, 8, kernel_size=(1, 11)),
    "conv_norm": taking(MAP, (2, 4, 4, 3))(blocks.ConvNorm, 8, out_dim=4, kernel_size=(3, 5), stride=2, groups=2),
    "conv_patch_stem": taking(IMAGE, (2, 6, 16))(blocks.ConvPatchStem, 16),
    "conv_patch_stem_unpadded": taking(IMAGE, (2, 6, 16), is_exported=False)(blocks.ConvPatchStem, 16, padding=0),
    "conv_pool_head": taking(MAP, (2, 5))(blocks.ConvPoolHead, 8, embedding_dim=5),
    "conv_pool_head_bias": taking(MAP, (2, 5))(blocks.ConvPoolHead, 8, embedding_dim=5, expansion=3, bias=True),
    "conv_stem": taking(IMAGE, (2, 8, 8, 12))(blocks.ConvStem, 8),
    "conv_stem_without_scale": taking(IMAGE, (2, 8, 8, 12), is_exported=False)(blocks.ConvStem, 8, scale_branch=False),
    "cross_attention": taking(TOKENS, more=context, is_exported=False)(
        blocks.CrossAttention, 8, num_heads=2, context_dim=8
    ),
    "cross_attention_layer": taking(TOKENS, more=context)(blocks.CrossAttentionLayer, 8, num_heads=2),
    "downsample": halving(blocks.Downsample, 8, out_dim=16),
    "downsample_gated": halving(blocks.Downsample, 8, out_dim=16, squeeze_excite=True, activation=None),
    "drop_path": on_map(blocks.DropPath),
    "end_token_pool": taking(TOKENS, (2, 8), more=ids)(blocks.EndTokenPool),
    "feed_forward": within(blocks.FeedForward, 8),
    "large_kernel_conv": halving(blocks.LargeKernelConv, 8, out_dim=16, kernel_size=(7, 5), stride=2),
    "large_kernel_conv_gated": on_map(blocks.LargeKernelConv, 8, squeeze_excite=True, activation=None),
    "mean_token_pool": taking(TOKENS, (2, 8), more=ids)(blocks.MeanTokenPool),
    "mobileone": on_map(blocks.MobileOneBlock, 8),
    "mobileone_depthwise": on_map(
        blocks.MobileOneBlock, 8, groups=8, kernel_size=(3, 5), num_branches=3, activation=None
    ),
    "mobileone_gated": halving(blocks.MobileOneBlock, 8, out_dim=16, stride=2, squeeze_excite=True),
    "mobileone_skip_alone": on_map(blocks.MobileOneBlock, 8, num_branches=0, scale_branch=False),
    "patch_stem": taking(IMAGE, (2, 24, 8))(blocks.PatchStem, 8, patch_size=8),
    "rep_cpe": on_map(blocks.RepCPE, 8),
    "repmixer": on_map(blocks.RepMixer, 8),
    "repmixer_text": within_row(blocks.RepMixer, 8, kernel_size=(1, 11)),
    "repmixer_block": on_map(blocks.RepMixerBlock, 8, hidden_dim=12),
    "squeeze_excite": taking((2, 32, 3, 4))(blocks.SqueezeExcite, 32, reduction=4),
    "text_repmixer": within(blocks.TextRepMixer, 8, kernel_size=5),
    "text_repmixer_block": on_tokens(blocks.TextRepMixerBlock, 8, hidden_dim=12),
    "transformer_layer": on_tokens(blocks.TransformerLayer, 8, num_heads=2),
    "transformer_layer_causal": on_tokens(blocks.TransformerLayer, 8, num_heads=4, hidden_dim=12, causal=True),
}

# Those that take a map of any sides, and give one.
CONVOLUTIONAL = [
    name for name, case in CASES.items() if len(case.input) == 4 and not ("text" in name or "stem" in name)
]
