"""The building blocks: plain modules that compose into the MobileCLIP encoders, and `build_model` by name.

Each computes its formula and nothing else; whole towers belong in `encoders`, what makes a block faster in
`inference.forms` and `training.cpu`.
"""

from mobileclip.blocks.arguments import KernelSize, MakeActivation, MakeNorm
from mobileclip.blocks.attention import Attention, Attention2d, set_attention_backend
from mobileclip.blocks.attention_backends import AttentionBackend, attention_backends
from mobileclip.blocks.building import Buildable, build_model, image_encoders, models, named_spec, text_encoders
from mobileclip.blocks.channel_norm import ChannelLayerNorm
from mobileclip.blocks.conv_ffn import ConvFFN
from mobileclip.blocks.conv_norm import ConvNorm
from mobileclip.blocks.cross_attention import AttentionPooler, CrossAttention, CrossAttentionLayer
from mobileclip.blocks.downsample import Downsample
from mobileclip.blocks.drop_path import DropPath
from mobileclip.blocks.heads import ConvPoolHead, EndTokenPool, MeanTokenPool
from mobileclip.blocks.large_kernel import LargeKernelConv
from mobileclip.blocks.mobileone import MobileOneBlock
from mobileclip.blocks.rep_cpe import RepCPE
from mobileclip.blocks.repmixer import RepMixer, TextRepMixer
from mobileclip.blocks.sequence import BlockSequence, recompute as recompute, recomputed as recomputed
from mobileclip.blocks.squeeze_excite import SqueezeExcite
from mobileclip.blocks.stages import AttentionBlock, RepMixerBlock, TextRepMixerBlock
from mobileclip.blocks.stem import ConvPatchStem, ConvStem, PatchStem
from mobileclip.blocks.transformer import FeedForward, TransformerLayer

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
