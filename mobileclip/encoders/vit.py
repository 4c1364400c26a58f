"""Vision transformers: MobileCLIP-B's ViT-B/16 with its convolutional stem, and ViT-L/14."""

from __future__ import annotations

from typing import Literal

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.blocks import BlockSequence, ConvPatchStem, PatchStem, TransformerLayer
from mobileclip.encoders.checks import DEPTH, WIDTH, check_heads, check_images
from mobileclip.encoders.families import ImageEncoderSpec, image_encoder_families
from mobileclip.encoders.initialization import initialize_linear
from mobileclip.inputs import MAX_SIZE, ImageInput
from mobileclip.strict import strict


@image_encoder_families.register("vit")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ViTSpec(ImageEncoderSpec):
    """A vision transformer.

    Args:
        input: what the encoder expects as its image; the size is a multiple of `patch_size`.
        width: width of the tokens.
        depth: number of layers.
        num_heads: attention heads per layer; divides `width`.
        patch_size: side of a patch, in pixels; the convolutional stem's is 16.
        stem: `convolutional` (MobileCLIP-B) or `patch`, one convolution (ViT-L/14).
        stem_padding: zeros around the image in front of the convolutional stem. The release pads by 1; timm, in which
            MobileCLIP2-B was trained, by 0. The same weights give other embeddings with the other padding.
        class_position: whether the class token has a position of its own.
        norm_before: whether tokens are normalised before the first layer.
        norm_eps: added to the variance in the layer norms.

    Source: MobileCLIP section 3.1 (ViT-B/16 with a convolutional stem); MobileCLIP2 (ViT-L/14).
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

    def __attrs_post_init__(self) -> None:
        """Check that patches tile the image, that the stem can cut them, and that the heads share the width."""
        check_heads(self.width, self.num_heads)
        if self.input.size % self.patch_size:
            raise ValueError(f"an image of {self.input.size} pixels is no multiple of patch_size={self.patch_size}")
        if self.stem == "convolutional" and self.patch_size != 16:
            raise ValueError(f"the convolutional stem cuts patches of 16 pixels, not of {self.patch_size}")

    @property
    def num_blocks(self) -> int:
        """How many layers it has."""
        return self.depth

    def build(self) -> ViT:
        """Return a new encoder."""
        return ViT(self)


class ViT(nn.Module):
    """A vision transformer pooled at its class token.

    Shape:
        images `(batch, 3, size, size)` to embeddings `(batch, embedding_dim)`.

    Args:
        spec: the encoder; kept as `.spec`.

    Source: MobileCLIP section 3.1; Dosovitskiy et al., "An Image is Worth 16x16 Words".
    """

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        num_patches = (spec.input.size // spec.patch_size) ** 2
        self.stem: nn.Module = (
            ConvPatchStem(width, padding=spec.stem_padding)
            if spec.stem == "convolutional"
            else PatchStem(width, patch_size=spec.patch_size)
        )
        self.class_token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(num_patches + spec.class_position, width))
        self.norm_before: nn.Module = nn.LayerNorm(width, eps=spec.norm_eps) if spec.norm_before else nn.Identity()
        self.layers = BlockSequence(
            *(TransformerLayer(width, num_heads=spec.num_heads, norm_eps=spec.norm_eps) for _ in range(spec.depth))
        )
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        self.project = nn.Linear(width, spec.embedding_dim, bias=spec.projection_bias)
        nn.init.normal_(self.class_token, std=1e-6)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.apply(initialize_linear)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, not normalised, of preprocessed images.

        Raises:
            ValueError: if the images are not of the spec's size.
        """
        check_images(images, self.spec.input)
        patches = self.stem(images)
        class_token = self.class_token.expand(patches.shape[0], 1, -1)
        if self.spec.class_position:
            tokens = torch.cat([class_token, patches], dim=1) + self.position
        else:
            tokens = torch.cat([class_token, patches + self.position], dim=1)
        y: Tensor = self.project(self.norm(self.layers.at(self.norm_before(tokens), 0)))
        return y
