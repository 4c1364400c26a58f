"""Towers that open_clip or transformers builds, with the interface of this library's towers.

Building a tower imports its package; loading and saving work as for other models.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
from torch import Tensor, nn

from mobileclip.encoders.families import (
    ImageEncoderSpec,
    TextEncoderSpec,
    image_encoder_families,
    text_encoder_families,
)
from mobileclip.extras import needed
from mobileclip.strict import strict


class ForeignTower(nn.Module):
    """A tower of another package: maps images or token ids to embeddings `(batch, embedding_dim)`.

    Args:
        spec: spec that builds this tower, for checkpoints.
        tower: module of the other package; returns embeddings, or an output with `pooler_output`.
        projection: layer after the tower; None for no projection.

    Examples:
        >>> ForeignTower("its spec", nn.Linear(4, 2))(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, spec: Any, tower: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.spec, self.tower, self.projection = spec, tower, projection
        for module in tower.modules():
            # Store positions with the weights, so that a model can be built on the meta device. Do not store masks,
            # which hold infinite values.
            kept = {name for name, one in module.named_buffers(recurse=False) if not one.is_floating_point()}
            module._non_persistent_buffers_set -= kept  # noqa: SLF001

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the unnormalised embeddings."""
        found: Any = self.tower(inputs)
        embedding: Tensor = found if isinstance(found, Tensor) else found.pooler_output
        return embedding if self.projection is None else self.projection(embedding)


@image_encoder_families.register("open_clip")
@attrs.frozen(kw_only=True, field_transformer=strict)
class OpenClipImageSpec(ImageEncoderSpec):
    """An image tower of open_clip.

    Args:
        config: fields of the model's `vision_cfg`, and `quick_gelu`, as one JSON object.

    Examples:
        >>> from mobileclip.inputs import ImageInput
        >>> config = '{"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1}'
        >>> spec = OpenClipImageSpec(config=config, embedding_dim=16, input=ImageInput(size=32))
        >>> spec.build()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 16])
    """

    config: str

    def build(self) -> ForeignTower:
        """Return a new tower."""
        return ForeignTower(self, _open_clip("_build_vision_tower", self))


@text_encoder_families.register("open_clip")
@attrs.frozen(kw_only=True, field_transformer=strict)
class OpenClipTextSpec(TextEncoderSpec):
    """A text tower of open_clip.

    Args:
        config: fields of the model's `text_cfg`, and `quick_gelu`, as one JSON object.

    Examples:
        >>> from mobileclip.inputs import TextInput
        >>> config = '{"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}'
        >>> spec = OpenClipTextSpec(config=config, embedding_dim=16, input=TextInput(context_length=8))
        >>> spec.build()(torch.zeros(1, 8, dtype=torch.long)).shape
        torch.Size([1, 16])
    """

    config: str

    def build(self) -> ForeignTower:
        """Return a new tower."""
        return ForeignTower(self, _open_clip("_build_text_tower", self))


@image_encoder_families.register("transformers")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TransformersImageSpec(ImageEncoderSpec):
    """The image tower of a transformers dual encoder.

    Args:
        config: the model's `model_type`, `projection_dim` and `vision_config`, as one JSON object.

    Examples:
        >>> from mobileclip.inputs import ImageInput
        >>> size = '"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2'
        >>> vision = f'{{"image_size": 32, "patch_size": 16, {size}}}'
        >>> config = f'{{"model_type": "clip", "projection_dim": 16, "vision_config": {vision}}}'
        >>> spec = TransformersImageSpec(config=config, embedding_dim=16, input=ImageInput(size=32))
        >>> spec.build()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 16])
    """

    config: str

    def build(self) -> ForeignTower:
        """Return a new tower."""
        whole = _transformers(self, "text_config")
        return ForeignTower(self, whole.vision_model, getattr(whole, "visual_projection", None))


@text_encoder_families.register("transformers")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TransformersTextSpec(TextEncoderSpec):
    """The text tower of a transformers dual encoder.

    Args:
        config: the model's `model_type`, `projection_dim` and `text_config`, as one JSON object.

    Examples:
        >>> from mobileclip.inputs import TextInput
        >>> size = '"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2'
        >>> config = f'{{"model_type": "clip", "projection_dim": 16, "text_config": {{{size}}}}}'
        >>> spec = TransformersTextSpec(config=config, embedding_dim=16, input=TextInput(context_length=8))
        >>> spec.build()(torch.zeros(1, 8, dtype=torch.long)).shape
        torch.Size([1, 16])
    """

    config: str

    def build(self) -> ForeignTower:
        """Return a new tower."""
        whole = _transformers(self, "vision_config")
        return ForeignTower(self, whole.text_model, getattr(whole, "text_projection", None))


def _open_clip(builder: str, spec: OpenClipImageSpec | OpenClipTextSpec) -> nn.Module:
    with needed("a model of open_clip", "teachers"):
        import open_clip.model  # type: ignore[import-untyped]
    config = json.loads(spec.config)
    quick = config.pop("quick_gelu", False)
    tower: nn.Module = getattr(open_clip.model, builder)(spec.embedding_dim, config, quick)
    return tower


def _transformers(spec: TransformersImageSpec | TransformersTextSpec, other: str) -> Any:
    """Return a dual encoder whose `other` tower is minimal, instead of the large default."""
    with needed("a model of transformers", "transformers"):
        import transformers
    config = json.loads(spec.config)
    kind = config.pop("model_type")
    config[other] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 0, "num_attention_heads": 1}
    return transformers.AutoModel.from_config(  # type: ignore[no-untyped-call]
        transformers.CONFIG_MAPPING[kind](**config)
    )
