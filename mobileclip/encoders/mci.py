"""MCi: MobileCLIP's convolutional image encoders."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Literal

import attrs
from attrs import validators
from torch import Tensor, nn

from mobileclip.blocks import AttentionBlock, BlockSequence, ConvPoolHead, ConvStem, Downsample, RepCPE, RepMixerBlock
from mobileclip.encoders.checks import DEPTH, WIDTH, check_images, odd
from mobileclip.encoders.families import (
    ImageEncoderSpec,
    TokenMixerSpec,
    image_encoder_families,
    token_mixers,
)
from mobileclip.encoders.initialization import initialize_linear
from mobileclip.strict import strict


@token_mixers.register("repmixer")
@attrs.frozen(kw_only=True, field_transformer=strict)
class RepMixerSpec(TokenMixerSpec):
    """A stage of RepMixer blocks.

    Args:
        kernel_size: side of the mixer's kernel, odd.
    """

    kernel_size: int = attrs.field(default=3, validator=odd)

    def build_block(self, dim: int, *, hidden_dim: int, layer_scale: float) -> RepMixerBlock:
        """Return one RepMixer block."""
        kernel = (self.kernel_size, self.kernel_size)
        return RepMixerBlock(dim, kernel_size=kernel, hidden_dim=hidden_dim, layer_scale=layer_scale)


@token_mixers.register("attention")
@attrs.frozen(kw_only=True, field_transformer=strict)
class AttentionSpec(TokenMixerSpec):
    """A stage of attention blocks behind a conditional positional encoding.

    Args:
        head_dim: channels per head.
        norm: the norm in front of the attention, `batch` (MCi0-2) or `layer` over channels (MCi3-4).
        position_kernel_size: side of the positional encoding's kernel, odd.
    """

    head_dim: int = attrs.field(default=32, validator=WIDTH)
    norm: Literal["batch", "layer"] = attrs.field(default="batch", validator=validators.in_(("batch", "layer")))
    position_kernel_size: int = attrs.field(default=7, validator=odd)

    def build_block(self, dim: int, *, hidden_dim: int, layer_scale: float) -> AttentionBlock:
        """Return one attention block."""
        return AttentionBlock(
            dim, head_dim=self.head_dim, hidden_dim=hidden_dim, norm=self.norm, layer_scale=layer_scale
        )

    @property
    def has_position(self) -> bool:
        """Whether a positional encoding stands in front: it does."""
        return True

    def build_position(self, dim: int) -> RepCPE:
        """Return the conditional positional encoding."""
        return RepCPE(dim, kernel_size=(self.position_kernel_size, self.position_kernel_size))


@attrs.frozen(kw_only=True, field_transformer=strict)
class StageSpec:
    """One resolution of an MCi encoder.

    Args:
        dim: number of channels; a multiple of the previous stage's.
        depth: number of blocks.
        mixer: how the blocks mix positions.
        squeeze_excite: whether the downsampling in front of the stage gates its channels.
    """

    dim: int = attrs.field(validator=WIDTH)
    depth: int = attrs.field(validator=DEPTH)
    mixer: TokenMixerSpec = RepMixerSpec()
    squeeze_excite: bool = False


@image_encoder_families.register("mci")
@attrs.frozen(kw_only=True, field_transformer=strict)
class MCiSpec(ImageEncoderSpec):
    """An MCi image encoder: a convolutional stem, stages with a downsampling between each two, a pooling head.

    Args:
        stages: from the finest to the coarsest resolution, the first at a quarter of the image's side.
        ffn_ratio: width of the feed-forward networks, in units of the stage's.
        stem_scale_branch: whether the stem's blocks have a scale branch.
        downsample_activation: whether a GELU follows the large kernels of the downsampling.
        layer_scale: initial value of the layer scales.

    Source: MobileCLIP section 3.1 and Table 9; MobileCLIP2 for five stages.
    """

    stages: tuple[StageSpec, ...] = attrs.field(validator=[validators.min_len(1), validators.max_len(16)])
    ffn_ratio: float = attrs.field(default=3.0, validator=[validators.gt(0), validators.le(64)])
    stem_scale_branch: bool = True
    downsample_activation: bool = True
    layer_scale: float = 1e-5

    def __attrs_post_init__(self) -> None:
        """Check that every stage's width is a multiple of the one before, as its grouped convolutions need."""
        dims = [stage.dim for stage in self.stages]
        for dim, next_dim in itertools.pairwise(dims):
            if next_dim % dim:
                raise ValueError(f"each stage's dim is a multiple of the one before; {next_dim} is none of {dim}")
        for stage in self.stages:
            if int(stage.dim * self.ffn_ratio) < 1:
                raise ValueError(f"ffn_ratio={self.ffn_ratio} leaves no channel of a stage of {stage.dim}")

    @property
    def num_blocks(self) -> int:
        """How many blocks all stages have."""
        return sum(stage.depth for stage in self.stages)

    def build(self) -> MCi:
        """Return a new encoder."""
        return MCi(self)


class Stage(nn.Sequential):
    """Downsampling and positional encoding where there are any, then the blocks.

    Shape:
        `(batch, in_dim, height, width)` to `(batch, dim, height', width')`.

    Args:
        spec: the stage.
        in_dim: channels of the stage before, or None for the first, which does not downsample.
        encoder: the encoder that the stage belongs to.
    """

    def __init__(self, spec: StageSpec, *, in_dim: int | None, encoder: MCiSpec) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if in_dim is not None:
            layers["downsample"] = Downsample(
                in_dim,
                out_dim=spec.dim,
                squeeze_excite=spec.squeeze_excite,
                activation=encoder.downsample_activation,
            )
        position = spec.mixer.build_position(spec.dim)
        if position is not None:
            layers["position"] = position
        hidden_dim = int(spec.dim * encoder.ffn_ratio)
        layers["blocks"] = BlockSequence(
            *(
                spec.mixer.build_block(spec.dim, hidden_dim=hidden_dim, layer_scale=encoder.layer_scale)
                for _ in range(spec.depth)
            )
        )
        super().__init__(layers)


class MCi(nn.Module):
    """MobileCLIP's convolutional image encoder.

    Shape:
        images `(batch, 3, size, size)` to embeddings `(batch, embedding_dim)`.

    Args:
        spec: the encoder; kept as `.spec`.

    Source: MobileCLIP section 3.1 and Table 9.
    """

    def __init__(self, spec: MCiSpec) -> None:
        super().__init__()
        self.spec = spec
        dims = [stage.dim for stage in spec.stages]
        self.stem = ConvStem(dims[0], scale_branch=spec.stem_scale_branch)
        self.stages = nn.Sequential(
            *(
                Stage(stage, in_dim=in_dim, encoder=spec)
                for stage, in_dim in zip(spec.stages, [None, *dims[:-1]], strict=True)
            )
        )
        self.head = ConvPoolHead(dims[-1], embedding_dim=spec.embedding_dim, bias=spec.projection_bias)
        self.apply(initialize_linear)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, not normalised, of preprocessed images.

        Raises:
            ValueError: if the images are not of the spec's size.
        """
        check_images(images, self.spec.input)
        y: Tensor = self.head(self.stages(self.stem(images)))
        return y
