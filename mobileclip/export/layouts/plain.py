"""The library's own layout: `image` and `text` files, and what the contract says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from mobileclip.export.contract import TOKENIZER, Contract
from mobileclip.export.layouts.base import TowerNames
from mobileclip.export.spec import ExportSpec, TextDtype, Tower
from mobileclip.hardware.precision import PRECISIONS, Precision

_PLAIN: dict[Tower, TowerNames] = {
    "image": TowerNames(stem="image", input="pixels", output="image_embedding"),
    "text": TowerNames(stem="text", input="tokens", output="text_embedding"),
}


@attrs.frozen(kw_only=True)
class PlainLayout:
    """Files are called after their tower, for every target and precision."""

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _PLAIN)
    endings: Mapping[Precision, str] = attrs.field(factory=lambda: dict.fromkeys(PRECISIONS, ""))
    tokenizer: str = TOKENIZER
    text_dtype: TextDtype | None = None
    cuts_end: bool = False

    def fitted(self, spec: ExportSpec) -> ExportSpec:
        """Return what was asked for."""
        return spec

    def write(self, folder: Path, contract: Contract) -> None:
        """Write nothing: the contract says everything."""
