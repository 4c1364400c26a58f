"""transformers.js, in browsers and in Node: `CLIPVisionModelWithProjection` and `CLIPTextModelWithProjection`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mobileclip.export.contract import TOKENIZER, Contract, ImageContract
from mobileclip.export.layouts.base import TowerNames, require_onnx, tokenizer_config, warn_of_background, write_json
from mobileclip.export.spec import ExportSpec, TextDtype, Tower
from mobileclip.hardware.precision import Precision

# What its dtypes `fp32`, `fp16`, `int8` and `q8` add to a file's name; `q8` is the default in browsers.
_ENDINGS: dict[Precision, str] = {
    "float32": "",
    "float16": "_fp16",
    "int8": "_int8",
    "int8-weights": "_quantized",
}
_TRANSFORMERS_JS: dict[Tower, TowerNames] = {
    "image": TowerNames(stem="onnx/vision_model", input="pixel_values", output="image_embeds"),
    "text": TowerNames(stem="onnx/text_model", input="input_ids", output="text_embeds"),
}
# Pillow's number of Lanczos: the one filter that transformers.js applies antialiased outside of browsers, where it has
# no choice of filters. Its bilinear and bicubic ones take single pixels of a large picture.
_ANTIALIASED = 1


@attrs.frozen(kw_only=True)
class TransformersJsLayout:
    """A folder that `from_pretrained` reads: ONNX files below `onnx/`, named after their dtype, and configurations.

    Batches may have any size, since its examples encode several texts at once.
    """

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _TRANSFORMERS_JS)
    endings: Mapping[Precision, str] = attrs.field(factory=lambda: _ENDINGS)
    tokenizer: str = TOKENIZER
    text_dtype: TextDtype | None = "int64"
    cuts_end: bool = True

    def fitted(self, spec: ExportSpec) -> ExportSpec:
        """Return what was asked for, with batches of any size.

        Raises:
            ValueError: if transformers.js does not run it.
        """
        require_onnx(spec)
        return attrs.evolve(spec, dynamic_batch=True)

    def write(self, folder: Path, contract: Contract) -> None:
        """Write the configurations of the model, of pictures and of texts."""
        config: dict[str, Any] = {
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "projection_dim": contract.embedding_dim,
            "text_config": {"model_type": "clip_text_model"},
            "vision_config": {"model_type": "clip_vision_model"},
        }
        if contract.logit_scale is not None:
            config["logit_scale_init_value"] = math.log(contract.logit_scale)
        if contract.image is not None:
            config["vision_config"] = {"model_type": "clip_vision_model", "image_size": contract.image.input.size}
            warn_of_background(contract.image, "transformers.js")
            write_json(folder / "preprocessor_config.json", _preprocessor_config(contract.image))
        texts = tokenizer_config(folder, contract)
        if texts is not None:
            write_json(folder / "tokenizer_config.json", texts)
        write_json(folder / "config.json", config)


def _preprocessor_config(image: ImageContract) -> dict[str, Any]:
    size = image.input.size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": _ANTIALIASED,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.input.mean),
        "image_std": list(image.input.std),
    }
