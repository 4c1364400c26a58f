"""Apple's own packages of MobileCLIP, by the names of files, inputs and outputs that apps for them use."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mobileclip.export.layouts.base import TowerNames
from mobileclip.export.layouts.plain import PlainLayout
from mobileclip.export.spec import ExportSpec, TextDtype, Tower

_APPLE: dict[Tower, TowerNames] = {
    "image": TowerNames(stem="{model}_image", input="image", output="final_emb_1"),
    "text": TowerNames(stem="{model}_text", input="text", output="final_emb_1"),
}


@attrs.frozen(kw_only=True)
class AppleLayout(PlainLayout):
    """`mobileclip_s0_image.mlpackage` and `mobileclip_s0_text.mlpackage`: pictures and ids in, `final_emb_1` out."""

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _APPLE)
    text_dtype: TextDtype | None = "int32"

    def fitted(self, spec: ExportSpec) -> ExportSpec:
        """Return what was asked for, with pictures as pictures.

        Raises:
            ValueError: if it is not for Core ML.
        """
        if spec.target != "coreml":
            raise ValueError(
                f"the layout 'apple' is of Core ML's packages, not of {spec.target!r}; choose --target coreml"
            )
        return attrs.evolve(spec, preprocess="uint8")
