"""The layout of timm's files of image towers and classifiers: open_clip's, without the names of what is around them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mobileclip.encoders.checkpoints.forms import Form
from mobileclip.encoders.checkpoints.layouts import As, ModelSpec, TowerSpec, layouts
from mobileclip.encoders.checkpoints.open_clip import OpenClipLayout
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.families import ImageEncoderSpec
from mobileclip.encoders.mci import MCiSpec

_FIRST = ("stem.", "patch_embed.")
"""How the names begin of what comes first in timm's FastViT and ViT."""


class TimmLayout(OpenClipLayout):
    """The layout of an image tower, or a classifier, that `timm.create_model` builds.

    Source: the public project huggingface/pytorch-image-models.
    """

    name = "timm"
    image_prefix = ""
    text_prefix = ""
    has_bare_towers = True

    def check(self, tower: TowerSpec) -> None:
        """Raise for text towers, and for image towers that timm cannot build."""
        if not isinstance(tower, ImageEncoderSpec):
            raise ValueError(
                "timm has image towers alone, so its layout has no place for a text tower; save the image tower "
                "(model.image_encoder, or --tower image), or use the open_clip layout or our own"
            )
        super().check(tower)

    def entries(self, spec: ModelSpec, form: Form) -> dict[str, As]:
        """Return their name and shape for each tensor; a classifier's last layer is where the projection would be."""
        entries = super().entries(spec, form)
        if isinstance(spec, ClassifierSpec) and isinstance(spec.image, MCiSpec):
            entries |= {f"head.{part}": As(f"head.fc.{part}") for part in ("weight", "bias")}
        return entries

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether a file with these names is of this layout."""
        return any(name.startswith(_FIRST) for name in state)


layouts.add(TimmLayout.name, TimmLayout())
