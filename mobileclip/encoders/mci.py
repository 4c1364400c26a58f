"""MCi: MobileCLIP's convolutional image encoders."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs
from attrs import validators
from torch import Tensor, nn

from mobileclip.blocks import (
    AttentionBlock,
    BlockSequence,
    ChannelLayerNorm,
    ConvPoolHead,
    ConvStem,
    Downsample,
    RepCPE,
    RepMixerBlock,
)
from mobileclip.blocks.sequence import ActivationCheckpointing
from mobileclip.encoders.families import (
    TRAINING_ONLY,
    ImageEncoderSpec,
    TokenMixerSpec,
    check_unprojected,
    image_encoder_families,
    token_mixers,
)
from mobileclip.encoders.towers import DEPTH, WIDTH, chosen_stages, depth_of, initialize_linear, odd, outputs_of
from mobileclip.reparam import with_children
from mobileclip.strict import strict

_STEM_STRIDE = 4
_HEAD_EXPANSION = 2


@token_mixers.register("repmixer")
@attrs.frozen(kw_only=True, field_transformer=strict)
class RepMixerSpec(TokenMixerSpec):
    """A stage of RepMixer blocks.

    Args:
        kernel_size: side of the mixer's square kernel, an odd number.

    Examples:
        >>> block = RepMixerSpec(kernel_size=5).build_block(8, hidden_dim=24, layer_scale=1e-5, drop_path=0.0)
        >>> mobileclip.reparameterize(block.eval()).token_mixer
        Conv2d(8, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=8)
    """

    kernel_size: int = attrs.field(default=3, validator=odd)

    def build_block(self, dim: int, *, hidden_dim: int, layer_scale: float, drop_path: float) -> RepMixerBlock:
        """Return one RepMixer block."""
        return RepMixerBlock(
            dim, kernel_size=self.kernel_size, hidden_dim=hidden_dim, layer_scale=layer_scale, drop_path=drop_path
        )


@token_mixers.register("attention")
@attrs.frozen(kw_only=True, field_transformer=strict)
class AttentionSpec(TokenMixerSpec):
    """A stage with a conditional positional encoding, followed by attention blocks.

    Args:
        head_dim: channels per head.
        norm: type of the norm before the attention, `batch` (MCi0-2) or `layer` over channels (MCi3-4).
        position_kernel_size: side of the positional encoding's square kernel, an odd number.

    Examples:
        >>> block = AttentionSpec(head_dim=8).build_block(32, hidden_dim=96, layer_scale=1e-5, drop_path=0.0)
        >>> block.attention.num_heads
        4
    """

    head_dim: int = attrs.field(default=32, validator=WIDTH)
    norm: Literal["batch", "layer"] = attrs.field(default="batch", validator=validators.in_(("batch", "layer")))
    position_kernel_size: int = attrs.field(default=7, validator=odd)

    def build_block(self, dim: int, *, hidden_dim: int, layer_scale: float, drop_path: float) -> AttentionBlock:
        """Return one attention block."""
        return AttentionBlock(
            dim,
            head_dim=self.head_dim,
            hidden_dim=hidden_dim,
            norm=nn.BatchNorm2d if self.norm == "batch" else ChannelLayerNorm,
            layer_scale=layer_scale,
            drop_path=drop_path,
        )

    @property
    def has_position(self) -> bool:
        """Always true: the stage begins with a positional encoding."""
        return True

    def build_position(self, dim: int) -> RepCPE:
        """Return the conditional positional encoding."""
        return RepCPE(dim, kernel_size=self.position_kernel_size)


@attrs.frozen(kw_only=True, field_transformer=strict)
class StageSpec:
    """One stage of an MCi encoder: blocks at one resolution.

    Args:
        dim: number of channels; a multiple of the previous stage's `dim`.
        depth: number of blocks.
        mixer: spec of the blocks' token mixer.
        squeeze_excite: whether the downsampling before the stage has squeeze-and-excitation.

    Examples:
        >>> StageSpec(dim=64, depth=2)
        StageSpec(dim=64, depth=2, mixer=RepMixerSpec(kernel_size=3), squeeze_excite=False)
    """

    dim: int = attrs.field(validator=WIDTH)
    depth: int = attrs.field(validator=DEPTH)
    mixer: TokenMixerSpec = RepMixerSpec()
    squeeze_excite: bool = False


@image_encoder_families.register("mci")
@attrs.frozen(kw_only=True, field_transformer=strict)
class MCiSpec(ImageEncoderSpec):
    """An MCi image encoder: a convolutional stem, stages with downsampling between them, and a pooling head.

    Args:
        stages: stages from the finest to the coarsest resolution; the first is at a quarter of the image's resolution.
        ffn_ratio: width of the feed-forward networks, as a multiple of the stage's width.
        stem_scale_branch: whether the stem's blocks have a scale branch.
        downsample_activation: whether a GELU follows the large-kernel convolution of each downsampling.
        layer_scale: initial value of the layer scales.
        drop_path: drop probability of the last block's branches in training; the probability increases linearly over
            the blocks, from 0. MobileCLIP trains without drop path, FastViT's classifiers with drop path.
        projection: whether the head has a projection; without it, the embedding is the pooled features, and
            `embedding_dim` is twice the channels of the last stage.

    Source: MobileCLIP section 3.1 and Table 9; MobileCLIP2 for five stages.

    Examples:
        >>> stages = (StageSpec(dim=8, depth=1), StageSpec(dim=16, depth=1, mixer=AttentionSpec(head_dim=8)))
        >>> spec = MCiSpec(stages=stages, embedding_dim=32)
        >>> spec.build()(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 32])
    """

    stages: tuple[StageSpec, ...] = attrs.field(validator=[validators.min_len(1), validators.max_len(16)])
    ffn_ratio: float = attrs.field(default=3.0, validator=[validators.gt(0), validators.le(64)])
    stem_scale_branch: bool = True
    downsample_activation: bool = True
    layer_scale: float = attrs.field(default=1e-5, metadata=TRAINING_ONLY)
    drop_path: float = attrs.field(default=0.0, validator=[validators.ge(0), validators.lt(1)], metadata=TRAINING_ONLY)
    projection: bool = True

    def __attrs_post_init__(self) -> None:
        """Check that every stage's width is a multiple of the previous width, as grouped convolutions require."""
        dims = [stage.dim for stage in self.stages]
        for dim, next_dim in itertools.pairwise(dims):
            if next_dim % dim:
                raise ValueError(f"each stage's dim must divide the next dim, but {dim} does not divide {next_dim}")
        for stage in self.stages:
            if int(stage.dim * self.ffn_ratio) < 1:
                raise ValueError(
                    f"ffn_ratio={self.ffn_ratio} leaves a stage of width {stage.dim} without hidden channels"
                )
        if not self.projection:
            check_unprojected(self, _HEAD_EXPANSION * dims[-1])

    @property
    def num_blocks(self) -> int:
        """Number of blocks of all stages."""
        return sum(stage.depth for stage in self.stages)

    def build(self) -> MCi:
        """Return a new encoder."""
        dims = [stage.dim for stage in self.stages]
        stem = ConvStem(dims[0], in_dim=self.input.channels, scale_branch=self.stem_scale_branch)
        rates = (self.drop_path * block / max(1, self.num_blocks - 1) for block in range(self.num_blocks))
        stages = [
            self._stage(stage, in_dim, list(itertools.islice(rates, stage.depth)))
            for stage, in_dim in zip(self.stages, [None, *dims[:-1]], strict=True)
        ]
        head = ConvPoolHead(
            dims[-1],
            embedding_dim=self.embedding_dim if self.projection else None,
            expansion=_HEAD_EXPANSION,
            bias=self.projection_bias,
        )
        strides = [_STEM_STRIDE * 2**stage for stage in range(len(dims))]
        encoder = MCi(stem, stages, head, dims=dims, strides=strides, spec=self)
        return encoder.apply(initialize_linear)

    def without_projection(self) -> MCiSpec:
        """Return the spec without the projection: embeddings are pooled features, as in FastViT's classifiers."""
        return attrs.evolve(
            self, projection=False, projection_bias=False, embedding_dim=_HEAD_EXPANSION * self.stages[-1].dim
        )

    def with_channels(self, channels: int) -> MCiSpec:
        """Return the spec for a different number of image channels."""
        return attrs.evolve(self, input=self.input.of_channels(channels))

    def weights_for_size(self, weights: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Return the weights unchanged: convolutions and attention support any size."""
        return weights

    def _stage(self, stage: StageSpec, in_dim: int | None, drop_path: list[float]) -> Stage:
        activation = nn.GELU if self.downsample_activation else None
        downsample = None
        if in_dim is not None:
            downsample = Downsample(
                in_dim, out_dim=stage.dim, squeeze_excite=stage.squeeze_excite, activation=activation
            )
        position = stage.mixer.build_position(stage.dim)
        hidden_dim = int(stage.dim * self.ffn_ratio)
        blocks = [
            stage.mixer.build_block(stage.dim, hidden_dim=hidden_dim, layer_scale=self.layer_scale, drop_path=rate)
            for rate in drop_path
        ]
        return Stage(blocks, downsample=downsample, position=position)


class Stage(nn.Sequential):
    """One stage: optional downsampling and positional encoding, then the blocks.

    Shape:
        `(batch, in_dim, height, width)` to `(batch, dim, height', width')`.

    Args:
        blocks: modules that keep the shape of the feature map.
        downsample: downsampling from the previous stage; None for no downsampling.
        position: positional encoding of the feature map; None for no encoding.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], *, downsample: nn.Module | None = None, position: nn.Module | None = None
    ) -> None:
        layers = {"downsample": downsample, "position": position, "blocks": BlockSequence(*blocks)}
        super().__init__(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


class MCi(ActivationCheckpointing, nn.Module):
    """MobileCLIP's convolutional image encoder: `y = head(stages(stem(images)))`.

    Shape:
        images `(batch, channels, height, width)` to embeddings `(batch, embedding_dim)`.

    Args:
        stem: maps images to the first feature map.
        stages: one module per resolution; the modules run in sequence on the stem's feature map.
        head: maps the last feature map to embeddings.
        dims: output channels of each stage.
        strides: stride of each stage's feature map in pixels of the image.
        spec: spec of the encoder, for checkpoints; None for an encoder that no spec describes.

    Raises:
        ValueError: if `stages`, `dims` and `strides` differ in length.

    Source: MobileCLIP section 3.1 and Table 9.

    Examples:
        >>> stem, head = mobileclip.blocks.ConvStem(8), mobileclip.blocks.ConvPoolHead(8, embedding_dim=16)
        >>> encoder = MCi(stem, [mobileclip.blocks.RepMixerBlock(8)], head, dims=(8,), strides=(4,))
        >>> encoder(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 16])
        >>> encoder.features(torch.rand(2, 3, 64, 96))[0].shape
        torch.Size([2, 8, 16, 24])
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        head: nn.Module,
        *,
        dims: Sequence[int],
        strides: Sequence[int],
        spec: MCiSpec | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.dims, self.strides = tuple(dims), tuple(strides)
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.head = head
        if not len(self.stages) == len(self.dims) == len(self.strides):
            raise ValueError(
                f"each stage needs a width and a stride, but there are {len(self.stages)} stages, {len(self.dims)} "
                f"dims and {len(self.strides)} strides"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the unnormalised embeddings of preprocessed images."""
        y: Tensor = self.head(self.stages(self.stem(images)))
        return y

    def features(self, images: Tensor, stages: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Return the feature map after each requested stage: `maps[s] = stages[s](... stages[0](stem(images)))`.

        The encoder stops after the last requested stage.
        Shape:
            images `(batch, channels, height, width)` to `(batch, dims[s], height / strides[s], width / strides[s])`.

        Args:
            images: preprocessed images; the sides are multiples of the stages' strides.
            stages: indices of stages, in the order of the returned maps; None for all stages.

        Raises:
            ValueError: if a stage does not exist, or a side is not a multiple of a requested stage's stride.
        """
        chosen = chosen_stages(images, stages, strides=self.strides)
        return outputs_of(self.stages, self.stem(images), chosen)

    def local_embeddings(self, images: Tensor) -> Tensor:
        """Return the embedding of each location, `head.local(stages(stem(images)))`; the mean is the image embedding.

        A local embedding depends on the location's whole receptive field, so it differs from the embedding of a crop.

        Shape:
            images `(batch, channels, height, width)` to `(batch, embedding_dim, height / strides[-1], width /
            strides[-1])`.

        Raises:
            ValueError: if the head has no method `local`.
        """
        local = getattr(self.head, "local", None)
        if local is None:
            raise ValueError(
                f"the head {type(self.head).__name__} has no method local(x) that returns an embedding per location; "
                "use mobileclip.blocks.ConvPoolHead"
            )
        y: Tensor = local(self.stages(self.stem(images)))
        return y

    def backbone(self, stages: Sequence[int] | None = None) -> MCi:
        """Return the encoder without its head and without the stages after the last requested stage.

        The result shares its parameters with this encoder, and its `forward` returns the last feature map.

        Args:
            stages: indices of stages; None for all stages.

        Raises:
            ValueError: if a stage does not exist.
        """
        depth = depth_of(stages, len(self.stages))
        part = with_children(self, {"stages": self.stages[:depth], "head": nn.Identity()})
        part.dims, part.strides, part.spec = self.dims[:depth], self.strides[:depth], None
        return part

    def embedding_and_features(
        self, images: Tensor, stages: Sequence[int] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the embeddings of images, and the feature maps after the requested stages, in one pass.

        Shapes, arguments and errors are the same as for `forward` and `features`.
        """
        chosen = chosen_stages(images, stages, strides=self.strides)
        *maps, last = outputs_of(self.stages, self.stem(images), (*chosen, len(self.stages) - 1))
        return self.head(last), tuple(maps)
