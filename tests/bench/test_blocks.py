"""Speed of every block at the sizes it has in MobileCLIP-S0 and B: as trained (in evaluation mode) and folded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import (
    Attention,
    Attention2d,
    AttentionBlock,
    ChannelLayerNorm,
    ConvFFN,
    ConvNorm,
    ConvPatchStem,
    ConvPoolHead,
    ConvStem,
    Downsample,
    EndTokenPool,
    FeedForward,
    LargeKernelConv,
    MobileOneBlock,
    PatchStem,
    RepCPE,
    RepMixer,
    RepMixerBlock,
    SqueezeExcite,
    TextRepMixerBlock,
    TransformerLayer,
)
from mobileclip.reparam import is_folded

IMAGE = (3, 256, 256)
STAGE_1, STAGE_3, STAGE_4 = (64, 64, 64), (256, 16, 16), (512, 8, 8)
TEXT, ROW = (77, 512), (512, 1, 77)
FEED_FORWARD = {"hidden_dim": 768}

BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Attention": (lambda: Attention(512, num_heads=8), TEXT),
    "Attention causal": (lambda: Attention(512, num_heads=8, causal=True), TEXT),
    "Attention2d": (lambda: Attention2d(512, num_heads=16, qkv_bias=False), STAGE_4),
    "AttentionBlock": (lambda: AttentionBlock(512, hidden_dim=1536), STAGE_4),
    "AttentionBlock layer norm": (lambda: AttentionBlock(512, hidden_dim=2048, norm=ChannelLayerNorm), STAGE_4),
    "ChannelLayerNorm": (lambda: ChannelLayerNorm(512), STAGE_4),
    "ConvFFN": (lambda: ConvFFN(256, **FEED_FORWARD), STAGE_3),
    "ConvFFN text": (lambda: ConvFFN(512, kernel_size=(1, 11)), ROW),
    "ConvNorm": (lambda: ConvNorm(256, kernel_size=7, groups=256), STAGE_3),
    "ConvPatchStem": (lambda: ConvPatchStem(768), (3, 224, 224)),
    "ConvPoolHead": (lambda: ConvPoolHead(512, embedding_dim=512), STAGE_4),
    "ConvStem": (lambda: ConvStem(64), IMAGE),
    "Downsample": (lambda: Downsample(64, out_dim=128), STAGE_1),
    "EndTokenPool": (EndTokenPool, TEXT),
    "FeedForward": (lambda: FeedForward(512), TEXT),
    "LargeKernelConv": (lambda: LargeKernelConv(128, out_dim=256, stride=2, squeeze_excite=True), (128, 32, 32)),
    "MobileOneBlock": (lambda: MobileOneBlock(64, stride=2, groups=64), (64, 128, 128)),
    "PatchStem": (lambda: PatchStem(1024, patch_size=14), (3, 224, 224)),
    "RepCPE": (lambda: RepCPE(512), STAGE_4),
    "RepMixer": (lambda: RepMixer(256), STAGE_3),
    "RepMixer text": (lambda: RepMixer(512, kernel_size=(1, 11)), ROW),
    "RepMixerBlock": (lambda: RepMixerBlock(256, **FEED_FORWARD), STAGE_3),
    "SqueezeExcite": (lambda: SqueezeExcite(1024), (1024, 8, 8)),
    "TextRepMixerBlock": (lambda: TextRepMixerBlock(512), TEXT),
    "TransformerLayer": (lambda: TransformerLayer(512, num_heads=8), TEXT),
}


@pytest.mark.parametrize("batch", [1, 32], ids=lambda batch: f"batch{batch}")
@pytest.mark.parametrize("form", ["training", "folded"])
@pytest.mark.parametrize("name", BLOCKS)
@torch.inference_mode()
def test_block(benchmark, name, form, batch):
    make, shape = BLOCKS[name]
    torch.manual_seed(0)
    block = make().eval()
    if form == "folded":
        if is_folded(block):
            pytest.skip("nothing to fold")
        block = reparameterize(block)
    inputs = [torch.randn(batch, *shape)]
    if isinstance(block, EndTokenPool):
        inputs.append(torch.randint(49408, (batch, shape[0])))
    benchmark.group = f"{name} {'x'.join(map(str, shape))}, batch {batch}"
    benchmark.pedantic(block, args=inputs, rounds=20 if batch == 1 else 5, warmup_rounds=2)
