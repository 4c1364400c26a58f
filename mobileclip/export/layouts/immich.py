"""Immich's machine learning: the folder of a model of open_clip, as its cache holds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mobileclip.export.contract import Contract
from mobileclip.export.layouts.base import TowerNames, require_onnx, tokenizer_config, warn_of_background, write_json
from mobileclip.export.spec import ExportSpec, TextDtype, Tower
from mobileclip.hardware.precision import PRECISIONS, Precision

_IMMICH: dict[Tower, TowerNames] = {
    "image": TowerNames(stem="visual/model", input="image", output="image_embedding"),
    "text": TowerNames(stem="textual/model", input="text", output="text_embedding"),
}


@attrs.frozen(kw_only=True)
class ImmichLayout:
    """`visual/` and `textual/`, with a model, and what prepares its inputs, in each."""

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _IMMICH)
    endings: Mapping[Precision, str] = attrs.field(factory=lambda: dict.fromkeys(PRECISIONS, ""))
    tokenizer: str = "textual/tokenizer.json"
    text_dtype: TextDtype | None = "int32"
    cuts_end: bool = False

    def fitted(self, spec: ExportSpec) -> ExportSpec:
        """Return what was asked for.

        Raises:
            ValueError: if Immich does not run it.
        """
        require_onnx(spec)
        if spec.features:
            raise ValueError("Immich reads embeddings alone; leave features out")
        return spec

    def write(self, folder: Path, contract: Contract) -> None:
        """Write the configurations of the model, of pictures and of texts, as open_clip names what is in them."""
        vision: dict[str, Any] = {}
        language: dict[str, Any] = {}
        if contract.image is not None:
            image = contract.image.input
            warn_of_background(contract.image, "Immich")
            vision = {"image_size": image.size}
            content = {
                "size": [image.size, image.size],
                "mode": contract.image.channel_order,
                "mean": list(image.mean),
                "std": list(image.std),
                "interpolation": image.interpolation,
                "resize_mode": "shortest",
            }
            write_json(folder / "visual" / "preprocess_cfg.json", content)
        texts = tokenizer_config(folder, contract)
        if texts is not None and contract.text is not None:
            text = contract.text.input
            language = {"context_length": text.context_length, "vocab_size": text.vocab_size}
            write_json(folder / "textual" / "tokenizer_config.json", texts)
        config = {"embed_dim": contract.embedding_dim, "vision_cfg": vision, "text_cfg": language}
        write_json(folder / "config.json", config)
