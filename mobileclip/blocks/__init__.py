"""Building blocks: plain modules that compose into the MobileCLIP encoders, and `build_model`.

A block only computes its formula. Towers belong in `encoders`, faster versions of blocks in `inference.forms` and
`training.cpu`.
"""

from mobileclip.blocks.attention import (
    Attention,
    Attention2d,
    AttentionBackend,
    AttentionPooler,
    CrossAttention,
    CrossAttentionLayer,
    FeedForward,
    TransformerLayer,
    attention_backends,
    set_attention_backend,
)
from mobileclip.blocks.building import Buildable, build_model, image_encoders, models, named_spec, text_encoders
from mobileclip.blocks.conv import (
    ChannelLayerNorm,
    ConvNorm,
    ConvPatchStem,
    ConvStem,
    Downsample,
    KernelSize,
    LargeKernelConv,
    MakeActivation,
    MakeNorm,
    MobileOneBlock,
    PatchStem,
    SqueezeExcite,
)
from mobileclip.blocks.mixing import ConvFFN, DropPath, RepCPE, RepMixer, TextRepMixer
from mobileclip.blocks.sequence import BlockSequence, recompute as recompute, recomputed as recomputed
from mobileclip.blocks.stages import (
    AttentionBlock,
    ConvPoolHead,
    EndTokenPool,
    MeanTokenPool,
    RepMixerBlock,
    TextRepMixerBlock,
)

__all__ = [
    "Attention",
    "Attention2d",
    "AttentionBackend",
    "AttentionBlock",
    "AttentionPooler",
    "BlockSequence",
    "Buildable",
    "ChannelLayerNorm",
    "ConvFFN",
    "ConvNorm",
    "ConvPatchStem",
    "ConvPoolHead",
    "ConvStem",
    "CrossAttention",
    "CrossAttentionLayer",
    "Downsample",
    "DropPath",
    "EndTokenPool",
    "FeedForward",
    "KernelSize",
    "LargeKernelConv",
    "MakeActivation",
    "MakeNorm",
    "MeanTokenPool",
    "MobileOneBlock",
    "PatchStem",
    "RepCPE",
    "RepMixer",
    "RepMixerBlock",
    "SqueezeExcite",
    "TextRepMixer",
    "TextRepMixerBlock",
    "TransformerLayer",
    "attention_backends",
    "build_model",
    "image_encoders",
    "models",
    "named_spec",
    "set_attention_backend",
    "text_encoders",
]
