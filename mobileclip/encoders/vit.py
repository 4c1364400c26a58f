"""Vision transformers: MobileCLIP-B's ViT-B/16 with its convolutional stem, and ViT-L/14."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import attrs
import torch
import torch.fx
from attrs import validators
from einops import rearrange
from torch import Tensor, nn

from mobileclip.blocks import Attention, BlockSequence, ConvPatchStem, PatchStem, TransformerLayer
from mobileclip.blocks.sequence import ActivationCheckpointing
from mobileclip.encoders.families import TRAINING_ONLY, ImageEncoderSpec, check_unprojected, image_encoder_families
from mobileclip.encoders.towers import (
    DEPTH,
    WIDTH,
    check_heads,
    chosen_stages,
    depth_of,
    initialize_as_open_clip,
    initialize_linear,
    outputs_of,
    resampled_positions,
)
from mobileclip.inputs import MAX_SIZE, ImageInput
from mobileclip.reparam import with_children
from mobileclip.strict import strict

torch.fx.wrap("rearrange")  # torch.fx would trace into `rearrange` and fail


@image_encoder_families.register("vit")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ViTSpec(ImageEncoderSpec):
    """A vision transformer.

    Args:
        input: preprocessing of the images; the size is a multiple of `patch_size`.
        width: width of the tokens.
        depth: number of layers.
        num_heads: attention heads per layer; divides `width`.
        patch_size: side of a patch, in pixels; 16 for the convolutional stem.
        stem: `convolutional` (MobileCLIP-B) or `patch`, one convolution (ViT-L/14).
        stem_padding: padding of the convolutional stem: 1 in Apple's code, 0 in timm (MobileCLIP2-B). Weights need the
            padding that they were trained with.
        class_position: whether the class token has a position embedding.
        norm_before: whether there is a norm before the first layer.
        norm_eps: epsilon of the layer norms.
        projection: whether to project the class token's features; otherwise these features are the embedding, and
            `embedding_dim` equals `width`.
        drop_path: drop probability of the last layer's residual branches in training; the probability increases
            linearly over the layers, from 0. ViT-L/14 trains with 0.1, MobileCLIP-B without drop path.
        initialization: weight initialisation, `timm` (MobileCLIP-B and ViT-L/14) or `open_clip` (plain ViT-B/16).

    Source: MobileCLIP section 3.1 (ViT-B/16 with a convolutional stem); MobileCLIP2 (ViT-L/14).

    Examples:
        >>> ViTSpec(width=16, depth=1, num_heads=2, patch_size=32, stem="patch").build().position.shape
        torch.Size([49, 16])
        >>> ViTSpec(patch_size=30, stem="patch")
        Traceback (most recent call last):
        ValueError: the image size 224 is not a multiple of patch_size=30
    """

    input: ImageInput = ImageInput(size=224)
    width: int = attrs.field(default=768, validator=WIDTH)
    depth: int = attrs.field(default=12, validator=DEPTH)
    num_heads: int = attrs.field(default=12, validator=WIDTH)
    patch_size: int = attrs.field(default=16, validator=[validators.gt(0), validators.le(MAX_SIZE)])
    stem: Literal["convolutional", "patch"] = attrs.field(
        default="convolutional", validator=validators.in_(("convolutional", "patch"))
    )
    stem_padding: int = attrs.field(default=1, validator=validators.in_((0, 1)))
    class_position: bool = False
    norm_before: bool = False
    norm_eps: float = attrs.field(default=1e-5, validator=[validators.gt(0), validators.le(1)])
    projection: bool = True
    drop_path: float = attrs.field(default=0.0, validator=[validators.ge(0), validators.lt(1)], metadata=TRAINING_ONLY)
    initialization: Literal["timm", "open_clip"] = attrs.field(
        default="timm",
        validator=validators.in_(("timm", "open_clip")),
        metadata=TRAINING_ONLY,
    )

    def __attrs_post_init__(self) -> None:
        """Check that patches tile the image, the stem supports the patch size, and the heads divide the width."""
        check_heads(self.width, self.num_heads)
        if self.input.size % self.patch_size:
            raise ValueError(f"the image size {self.input.size} is not a multiple of patch_size={self.patch_size}")
        if self.stem == "convolutional" and self.patch_size != 16:
            raise ValueError(f"the convolutional stem needs patch_size=16, not {self.patch_size}")
        if not self.projection:
            check_unprojected(self, self.width)

    @property
    def num_blocks(self) -> int:
        """Number of layers."""
        return self.depth

    def build(self) -> ViT:
        """Return a new encoder."""
        stem: nn.Module = (
            ConvPatchStem(self.width, padding=self.stem_padding, in_dim=self.input.channels)
            if self.stem == "convolutional"
            else PatchStem(self.width, patch_size=self.patch_size, in_dim=self.input.channels)
        )
        norm = partial(nn.LayerNorm, eps=self.norm_eps)
        rates = (self.drop_path * layer / max(1, self.depth - 1) for layer in range(self.depth))
        layers = [TransformerLayer(self.width, num_heads=self.num_heads, norm=norm, drop_path=rate) for rate in rates]
        encoder = ViT(
            stem,
            layers,
            nn.Linear(self.width, self.embedding_dim, bias=self.projection_bias) if self.projection else nn.Identity(),
            width=self.width,
            patch_size=self.patch_size,
            num_patches=(self.input.size // self.patch_size) ** 2,
            class_position=self.class_position,
            norm_before=norm(self.width) if self.norm_before else nn.Identity(),
            norm=norm(self.width),
            spec=self,
        )
        if self.initialization == "timm":
            return encoder.apply(initialize_linear)
        attentions = (module for module in encoder.modules() if isinstance(module, Attention))
        parameters: list[Tensor] = [encoder.class_token, encoder.position]
        if isinstance(encoder.project, nn.Linear):
            parameters.append(encoder.project.weight)
        initialize_as_open_clip(attentions, parameters, width=self.width)
        return encoder

    def without_projection(self) -> ViTSpec:
        """Return the spec without projection, so that embeddings are the class token's features."""
        return attrs.evolve(self, projection=False, projection_bias=False, embedding_dim=self.width)

    def with_channels(self, channels: int) -> ViTSpec:
        """Return the spec for a different number of image channels."""
        return attrs.evolve(self, input=self.input.of_channels(channels))

    def weights_for_size(self, weights: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """Return the weights with position embeddings interpolated for a different image size."""
        side = size // self.patch_size
        position = weights["position"].float()
        return {**weights, "position": resampled_positions(position, (side, side), class_position=self.class_position)}


class ViT(ActivationCheckpointing, nn.Module):
    """A vision transformer pooled at its class token: `y = project(norm(layers(norm_before(tokens(images)))[0]))`.

    Shape:
        images `(batch, channels, height, width)` to embeddings `(batch, embedding_dim)`.

    Args:
        stem: maps images to patch tokens, `(batch, num_patches, width)`.
        layers: modules that map tokens to tokens of the same shape.
        project: maps the class token's features to embeddings, or an identity.
        width: width of the tokens.
        patch_size: side of a patch, in pixels.
        num_patches: number of patches with position embeddings.
        class_position: whether the class token has a position embedding.
        norm_before: norm before the first layer, or an identity.
        norm: norm after the last layer.
        spec: spec of the encoder, for checkpoints; None for an encoder that no spec describes.

    Source: MobileCLIP section 3.1; Dosovitskiy et al., "An Image is Worth 16x16 Words".

    Examples:
        >>> encoder: ViT = ViTSpec(width=16, depth=1, num_heads=2).build()
        >>> encoder.tokens(torch.rand(2, 3, 224, 224)).shape  # the class token and 14 x 14 patches
        torch.Size([2, 197, 16])
        >>> [each.shape for each in encoder.features(torch.rand(2, 3, 320, 192))]
        [torch.Size([2, 16, 20, 12])]
    """

    def __init__(
        self,
        stem: nn.Module,
        layers: Iterable[nn.Module],
        project: nn.Module,
        *,
        width: int,
        patch_size: int,
        num_patches: int,
        class_position: bool,
        norm_before: nn.Module,
        norm: nn.Module,
        spec: ViTSpec | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.patch_size = patch_size
        self.class_position = class_position
        self.stem = stem
        self.class_token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(num_patches + class_position, width))
        self.norm_before = norm_before
        self.layers = BlockSequence(*layers)
        self.norm = norm
        self.project = project
        self.dims, self.strides = (width,) * len(self.layers), (patch_size,) * len(self.layers)
        nn.init.normal_(self.class_token, std=1e-6)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return the unnormalised embeddings of preprocessed images."""
        y: Tensor = self.project(self.norm(self.layers(self.tokens(images))[:, 0]))
        return y

    def tokens(self, images: Tensor) -> Tensor:
        """Return the input of the first layer: class token and patch tokens, with position embeddings.

        Shape:
            `(batch, channels, height, width)` to `(batch, 1 + num_patches, width)`.
        """
        return self._with_class_token(self.stem(images), self.position)

    def _with_class_token(self, patches: Tensor, position: Tensor) -> Tensor:
        class_token = self.class_token.expand(patches.shape[0], 1, -1)
        if self.class_position:
            tokens = torch.cat([class_token, patches], dim=1) + position
        else:
            tokens = torch.cat([class_token, patches + position], dim=1)
        y: Tensor = self.norm_before(tokens)
        return y

    def features(self, images: Tensor, stages: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Return the patch tokens after each requested layer, before the final norm, as feature maps.

        Shape:
            images `(batch, channels, height, width)` to `(batch, width, height / patch_size, width / patch_size)`.

        Arguments and errors are the same as for `layer_tokens`.
        """
        return tuple(self._map_of(tokens, images) for tokens in self.layer_tokens(images, stages))

    def backbone(self, stages: Sequence[int] | None = None) -> ViT:
        """Return the encoder without projection and without the layers after the last requested layer.

        The result shares its parameters with this encoder, and its `forward` returns the class token of the last layer,
        before the final norm.

        Args:
            stages: indices of layers; None for all layers.

        Raises:
            ValueError: if a layer does not exist.
        """
        depth = depth_of(stages, len(self.layers))
        layers = BlockSequence(*list(self.layers)[:depth])
        part = with_children(self, {"layers": layers, "norm": nn.Identity(), "project": nn.Identity()})
        part.dims, part.strides, part.spec = self.dims[:depth], self.strides[:depth], None
        return part

    def embedding_and_features(
        self, images: Tensor, stages: Sequence[int] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the embeddings of images, and the feature maps after the requested layers, in one pass.

        Shapes, arguments and errors are the same as for `forward` and `features`.
        """
        chosen = chosen_stages(images, stages, strides=self.strides)
        *layers, last = self.layer_tokens(images, (*chosen, len(self.layers) - 1))
        return self.project(self.norm(last[:, 0])), tuple(self._map_of(tokens, images) for tokens in layers)

    def _map_of(self, tokens: Tensor, images: Tensor) -> Tensor:
        return rearrange(tokens[:, 1:], "b (h w) c -> b c h w", h=images.shape[2] // self.patch_size)

    def layer_tokens(self, images: Tensor, stages: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Return the tokens after each requested layer, before the final norm: class token, then patches row by row.

        `tokens[s] = layers[s](... layers[0](tokens(images)))`, with interpolated position embeddings for images of a
        different size. The encoder stops after the last requested layer.

        Shape:
            images `(batch, channels, height, width)` to `(batch, 1 + num_patches, width)` for each layer.

        Args:
            images: preprocessed images; the sides are multiples of `patch_size`.
            stages: indices of layers, in the order of the result; None for all layers.

        Raises:
            ValueError: if a layer does not exist, or a side is not a multiple of `patch_size`.
        """
        chosen = chosen_stages(images, stages, strides=self.strides)
        grid = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        position = resampled_positions(self.position, grid, class_position=self.class_position)
        x = self._with_class_token(self.stem(images), position)
        return outputs_of(self.layers.functions(), x, chosen)
