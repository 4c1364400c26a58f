"""The classifier: an image encoder and a linear layer from its embeddings to one logit per class."""

from __future__ import annotations

import attrs
from attrs import validators
from torch import Tensor, nn

from mobileclip.encoders.families import ImageEncoderSpec, image_spec
from mobileclip.encoders.towers import WIDTH, check_images, initialize_linear
from mobileclip.strict import repeated, strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class ClassifierSpec:
    """An image classifier.

    With `image=specs.mci0().without_projection()`, the linear layer classifies pooled features, like timm's
    `fastvit_mci0`. With a projection, the linear layer classifies image embeddings, so the rank of the logits is at
    most `embedding_dim`.

    Args:
        image: spec of the image encoder.
        num_classes: number of classes, and of logits.
        class_names: names of the classes, in the order of the logits; empty if unknown.

    Raises:
        ValueError: if the number of names differs from the number of classes, or two names are equal.

    Source: FastViT (arXiv 2303.14189) for the head; MobileCLIP Table 11 for MCi as classifiers.

    Examples:
        >>> from mobileclip.serialization import from_json, to_json
        >>> spec = ClassifierSpec(image=mobileclip.specs.mci0().without_projection(), num_classes=1000)
        >>> from_json(to_json(spec), ClassifierSpec) == spec
        True
        >>> spec.build().head
        Linear(in_features=1024, out_features=1000, bias=True)
    """

    image: ImageEncoderSpec
    num_classes: int = attrs.field(default=1000, validator=WIDTH)
    class_names: tuple[str, ...] = attrs.field(default=(), validator=validators.max_len(1 << 16))

    def __attrs_post_init__(self) -> None:
        """Check that class names are unique, and that there is one name per class."""
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"there are {self.num_classes} classes but {len(self.class_names)} class_names; pass one per class"
            )
        if twice := repeated(self.class_names):
            raise ValueError(f"two classes have the name {twice[0][:80]!r}; class names must be unique")

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the image encoder."""
        return self.image.num_blocks

    def with_channels(self, channels: int) -> ClassifierSpec:
        """Return the spec for a different number of image channels; see `ImageEncoderSpec.with_channels`."""
        return attrs.evolve(self, image=self.image.with_channels(channels))

    def build(self) -> Classifier:
        """Return a new classifier."""
        head = nn.Linear(self.image.embedding_dim, self.num_classes)
        initialize_linear(head)
        return Classifier(self.image.build(), head, class_names=self.class_names)


class Classifier(nn.Module):
    """An image encoder and a head on its embeddings: `logits = head(image_encoder(images))`.

    Shape:
        images `(batch, channels, size, size)` to logits `(batch, num_classes)`.

    Args:
        image_encoder: maps preprocessed images to embeddings, with an `ImageEncoderSpec` in the attribute `spec`.
        head: maps embeddings to logits.
        class_names: names of the classes, in the order of the logits; empty if unknown.

    Source: FastViT (arXiv 2303.14189); MobileCLIP Table 11.

    Differs: FastViT's classifier contains the head's convolution and mean; in this library, the image encoder contains
        the convolution and mean, so that a classifier can use any image encoder.

    Examples:
        >>> encoder = ViTSpec(width=16, depth=1, num_heads=2, embedding_dim=16).build()
        >>> model = Classifier(encoder, nn.Linear(16, 2), class_names=("cat", "dog"))
        >>> model(torch.rand(3, 3, 224, 224)).shape, model.spec.num_classes
        (torch.Size([3, 2]), 2)
    """

    def __init__(self, image_encoder: nn.Module, head: nn.Linear, *, class_names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.head = head
        self.class_names = class_names

    @property
    def spec(self) -> ClassifierSpec:
        """The spec for checkpoints.

        Raises:
            ValueError: if the image encoder has no spec.
        """
        return ClassifierSpec(
            image=image_spec(self.image_encoder), num_classes=self.head.out_features, class_names=self.class_names
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of preprocessed images.

        Raises:
            ValueError: if the number of channels or the size of the images differs from the spec.
        """
        check_images(images, image_spec(self.image_encoder).input)
        logits: Tensor = self.head(self.image_encoder(images))
        return logits
