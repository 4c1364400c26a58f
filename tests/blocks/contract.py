"""The table of all blocks that the contract suite runs over: small, one row for each form that computes differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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

CASES: dict[str, Case] = {
    "attention": Case(lambda: blocks.Attention(8, num_heads=2), TOKENS, TOKENS),
    "attention_causal": Case(lambda: blocks.Attention(8, num_heads=2, causal=True), TOKENS, TOKENS),
    "attention_2d": Case(lambda: blocks.Attention2d(8, num_heads=2, qkv_bias=False), MAP, MAP),
    "attention_block": Case(lambda: blocks.AttentionBlock(8, head_dim=4, hidden_dim=12), MAP, MAP),
    "attention_block_layer_norm": Case(
        lambda: blocks.AttentionBlock(8, head_dim=4, hidden_dim=12, norm=blocks.ChannelLayerNorm), MAP, MAP
    ),
    "attention_pooler": Case(
        lambda: blocks.AttentionPooler(4, context_dim=8, num_queries=3, num_heads=2), TOKENS, (2, 3, 4)
    ),
    "block_sequence": Case(
        lambda: blocks.BlockSequence(blocks.RepMixerBlock(8, hidden_dim=12), blocks.ConvFFN(8)), MAP, MAP
    ),
    "channel_layer_norm": Case(lambda: blocks.ChannelLayerNorm(8), MAP, MAP),
    "conv_ffn": Case(lambda: blocks.ConvFFN(8, hidden_dim=12), MAP, MAP),
    "conv_ffn_text": Case(lambda: blocks.ConvFFN(8, kernel_size=(1, 11)), (2, 8, 1, 9), (2, 8, 1, 9)),
    "conv_norm": Case(lambda: blocks.ConvNorm(8, out_dim=4, kernel_size=(3, 5), stride=2, groups=2), MAP, (2, 4, 4, 3)),
    "conv_patch_stem": Case(lambda: blocks.ConvPatchStem(16), IMAGE, (2, 6, 16)),
    "conv_patch_stem_unpadded": Case(lambda: blocks.ConvPatchStem(16, padding=0), IMAGE, (2, 6, 16)),
    "conv_pool_head": Case(lambda: blocks.ConvPoolHead(8, embedding_dim=5), MAP, (2, 5)),
    "conv_pool_head_bias": Case(lambda: blocks.ConvPoolHead(8, embedding_dim=5, expansion=3, bias=True), MAP, (2, 5)),
    "conv_stem": Case(lambda: blocks.ConvStem(8), IMAGE, (2, 8, 8, 12)),
    "conv_stem_without_scale": Case(lambda: blocks.ConvStem(8, scale_branch=False), IMAGE, (2, 8, 8, 12)),
    "cross_attention": Case(lambda: blocks.CrossAttention(8, num_heads=2, context_dim=8), TOKENS, TOKENS, context),
    "cross_attention_layer": Case(lambda: blocks.CrossAttentionLayer(8, num_heads=2), TOKENS, TOKENS, context),
    "downsample": Case(lambda: blocks.Downsample(8, out_dim=16), MAP, (2, 16, 4, 3)),
    "downsample_gated": Case(
        lambda: blocks.Downsample(8, out_dim=16, squeeze_excite=True, activation=None), MAP, (2, 16, 4, 3)
    ),
    "drop_path": Case(blocks.DropPath, MAP, MAP),
    "end_token_pool": Case(blocks.EndTokenPool, TOKENS, (2, 8), ids),
    "feed_forward": Case(lambda: blocks.FeedForward(8), TOKENS, TOKENS),
    "large_kernel_conv": Case(
        lambda: blocks.LargeKernelConv(8, out_dim=16, kernel_size=(7, 5), stride=2), MAP, (2, 16, 4, 3)
    ),
    "large_kernel_conv_gated": Case(lambda: blocks.LargeKernelConv(8, squeeze_excite=True, activation=None), MAP, MAP),
    "mean_token_pool": Case(blocks.MeanTokenPool, TOKENS, (2, 8), ids),
    "mobileone": Case(lambda: blocks.MobileOneBlock(8), MAP, MAP),
    "mobileone_depthwise": Case(
        lambda: blocks.MobileOneBlock(8, groups=8, kernel_size=(3, 5), num_branches=3, activation=None), MAP, MAP
    ),
    "mobileone_gated": Case(
        lambda: blocks.MobileOneBlock(8, out_dim=16, stride=2, squeeze_excite=True), MAP, (2, 16, 4, 3)
    ),
    "mobileone_skip_alone": Case(lambda: blocks.MobileOneBlock(8, num_branches=0, scale_branch=False), MAP, MAP),
    "patch_stem": Case(lambda: blocks.PatchStem(8, patch_size=8), IMAGE, (2, 24, 8)),
    "rep_cpe": Case(lambda: blocks.RepCPE(8), MAP, MAP),
    "repmixer": Case(lambda: blocks.RepMixer(8), MAP, MAP),
    "repmixer_text": Case(lambda: blocks.RepMixer(8, kernel_size=(1, 11)), (2, 8, 1, 9), (2, 8, 1, 9)),
    "repmixer_block": Case(lambda: blocks.RepMixerBlock(8, hidden_dim=12), MAP, MAP),
    "squeeze_excite": Case(lambda: blocks.SqueezeExcite(32, reduction=4), (2, 32, 3, 4), (2, 32, 3, 4)),
    "text_repmixer": Case(lambda: blocks.TextRepMixer(8, kernel_size=5), TOKENS, TOKENS),
    "text_repmixer_block": Case(lambda: blocks.TextRepMixerBlock(8, hidden_dim=12), TOKENS, TOKENS),
    "transformer_layer": Case(lambda: blocks.TransformerLayer(8, num_heads=2), TOKENS, TOKENS),
    "transformer_layer_causal": Case(
        lambda: blocks.TransformerLayer(8, num_heads=4, hidden_dim=12, causal=True), TOKENS, TOKENS
    ),
}

# Those that take a map of any sides, and give one.
CONVOLUTIONAL = [
    name for name, case in CASES.items() if len(case.input) == 4 and not ("text" in name or "stem" in name)
]
