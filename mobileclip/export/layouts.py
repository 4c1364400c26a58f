"""Export layouts: the file, input and output names of an export, and the extra files that its host reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from mobileclip.export.contract import TOKENIZER, Contract
from mobileclip.export.spec import ExportSpec, TextDtype, Tower
from mobileclip.hardware import PRECISIONS, Precision
from mobileclip.inputs import HIDDEN, ImageInput
from mobileclip.interop.transformers_folder import preprocessor_config, tokenizer_config
from mobileclip.registry import Registry
from mobileclip.terminal import get_logger

logger = get_logger(__name__)


@attrs.frozen(kw_only=True)
class TowerNames:
    """The file, input and output names of a tower in an export layout.

    Args:
        stem: path of the file without precision suffix and file extension; `{model}` stands for the model name.
        input: name of the input in the file, such as `pixels`.
        output: name of the first output, the embeddings.
    """

    stem: str
    input: str
    output: str


def _nothing(folder: Path, contract: Contract) -> None:
    del folder, contract


_PLAIN: dict[Tower, TowerNames] = {
    "image": TowerNames(stem="image", input="pixels", output="image_embedding"),
    "text": TowerNames(stem="text", input="tokens", output="text_embedding"),
}


@attrs.frozen(kw_only=True)
class Layout:
    """The names and the extra files of an export; by default, each file has the name of its tower.

    Args:
        names: file, input and output names of each tower.
        endings: file stem suffix of each supported precision.
        tokenizer: path of the tokenizer file in the export folder.
        text_dtype: dtype of the token ids; None for the target's dtype.
        cuts_end: whether the host truncates long texts without keeping the end token; the exported text tower then
            replaces the last token with the end token.
        suffix: file extension that selects another format of the target; None for the target's default.
        needs: allowed values by `ExportSpec` field name, with the recommended value first.
        sets: values that the layout fixes, by `ExportSpec` field name.
        write: function that takes the export folder and the contract, and writes the extra files; called after the
            export of the towers and the tokenizer.
    """

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _PLAIN)
    endings: Mapping[Precision, str] = attrs.field(factory=lambda: dict.fromkeys(PRECISIONS, ""))
    tokenizer: str = TOKENIZER
    text_dtype: TextDtype | None = None
    cuts_end: bool = False
    suffix: str | None = None
    needs: Mapping[str, tuple[Any, ...]] = attrs.field(factory=dict)
    sets: Mapping[str, Any] = attrs.field(factory=dict)
    write: Callable[[Path, Contract], None] = _nothing


layouts: Registry[Layout] = Registry("export_layout")
"""Layouts by name; other packages add layouts here or by an entry point in `mobileclip.export_layout`."""


def fitted(spec: ExportSpec) -> ExportSpec:
    """Return an export spec with the values that its layout fixes.

    Args:
        spec: export options from the user.

    Raises:
        ValueError: if the layout is unknown, or does not support the precisions or another option of the spec.
    """
    layout = layouts.resolve(spec.layout)
    for precision in spec.precisions:
        if precision not in layout.endings:
            raise ValueError(
                f"the layout {spec.layout!r} does not support {precision}; choose --precision from "
                f"{', '.join(layout.endings)}"
            )
    if len({layout.endings[one] for one in spec.precisions}) < len(spec.precisions):
        raise ValueError(
            f"the layout {spec.layout!r} has the same file names for all precisions; leave --also out, or choose "
            "--layout transformers.js"
        )
    for name, values in layout.needs.items():
        if (given := getattr(spec, name)) not in values:
            advice = f"choose --{name} {values[0]}" if isinstance(values[0], str) else f"leave {name} out"
            raise ValueError(f"the layout {spec.layout!r} does not support {name}={given!r}; {advice}")
    return attrs.evolve(spec, **layout.sets)


def _image_input(contract: Contract, host: str) -> ImageInput | None:
    """Return the image preprocessing, if any; warn if the model needs a background that the host does not add."""
    image = None if contract.image is None else contract.image.input
    if image is not None and image.background != HIDDEN:
        logger.warning(
            "%s drops the transparency of images, but this model was trained with transparent images on %s: composite "
            "transparent images over the same background first",
            host,
            image.background,
        )
    return image


def _write(folder: Path, files: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Write JSON files by name, and create their folders; skip files whose content is None."""
    for name, content in files.items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")


def _tokenizer_config(folder: Path, contract: Contract) -> dict[str, Any] | None:
    """Return the content of `tokenizer_config.json`; None if the export has no text tower."""
    text = contract.text
    if text is None:
        return None
    return tokenizer_config((folder / text.tokenizer).read_text(encoding="utf-8"), text.input)


def _write_immich(folder: Path, contract: Contract) -> None:
    """Write Immich's configuration files of the model, the image preprocessing and the tokenizer."""
    image, text = _image_input(contract, "Immich"), None if contract.text is None else contract.text.input
    preprocessor = (
        None
        if image is None
        else {
            "size": [image.size, image.size],
            "mode": "RGB",
            "mean": list(image.mean),
            "std": list(image.std),
            "interpolation": image.interpolation,
            "resize_mode": "shortest",
        }
    )
    config = {
        "embed_dim": contract.embedding_dim,
        "vision_cfg": {"image_size": image.size} if image else {},
        "text_cfg": {"context_length": text.context_length, "vocab_size": text.vocab_size} if text else {},
    }
    texts = _tokenizer_config(folder, contract)
    _write(
        folder,
        {"visual/preprocess_cfg.json": preprocessor, "textual/tokenizer_config.json": texts, "config.json": config},
    )


# Pillow's code for Lanczos, the only filter that transformers.js antialiases outside browsers: the bilinear and bicubic
# filters only sample single pixels of a large image. In browsers, transformers.js cannot choose a filter.
_ANTIALIASED = 1


def _write_transformers_js(folder: Path, contract: Contract) -> None:
    """Write the configuration files of the model, the image preprocessing and the tokenizer for transformers.js."""
    image = _image_input(contract, "transformers.js")
    config: dict[str, Any] = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": contract.embedding_dim,
        "text_config": {"model_type": "clip_text_model"},
        "vision_config": {"model_type": "clip_vision_model", **({"image_size": image.size} if image else {})},
    }
    if contract.logit_scale is not None:
        config["logit_scale_init_value"] = math.log(contract.logit_scale)
    preprocessor, texts = (
        None if image is None else preprocessor_config(image, resample=_ANTIALIASED),
        _tokenizer_config(folder, contract),
    )
    _write(folder, {"preprocessor_config.json": preprocessor, "tokenizer_config.json": texts, "config.json": config})


def _require_clips_ids(folder: Path, contract: Contract) -> None:
    """Raise an error if the text tower has its own tokenizer, because ultralytics always passes CLIP's token ids."""
    del folder
    if contract.text is not None and contract.text.input.tokenizer is not None:
        raise ValueError(
            "ultralytics passes CLIP's token ids to a text tower, but this tower has its own tokenizer; choose another "
            "layout"
        )


TORCHSCRIPT = ".ts"
_ONNX_ON_HOST: Mapping[str, tuple[str, ...]] = {"target": ("onnx",), "preprocess": ("host",)}

layouts.add("plain", Layout())
# `mobileclip_s0_image.mlpackage` and `mobileclip_s0_text.mlpackage`; the output of both files is `final_emb_1`.
layouts.add(
    "apple",
    Layout(
        names={
            "image": TowerNames(stem="{model}_image", input="image", output="final_emb_1"),
            "text": TowerNames(stem="{model}_text", input="text", output="final_emb_1"),
        },
        text_dtype="int32",
        needs={"target": ("coreml",)},
        sets={"preprocess": "uint8"},
    ),
)
# The folders `visual/` and `textual/` each hold a model and its preprocessing. Immich reads only embeddings.
layouts.add(
    "immich",
    Layout(
        names={
            "image": TowerNames(stem="visual/model", input="image", output="image_embedding"),
            "text": TowerNames(stem="textual/model", input="text", output="text_embedding"),
        },
        tokenizer="textual/tokenizer.json",
        text_dtype="int32",
        needs={**_ONNX_ON_HOST, "features": ((),)},
        write=_write_immich,
    ),
)
# A folder for `from_pretrained`: configuration files, and in `onnx/`, ONNX files that are named after their dtype.
# Batches may have any size, since the examples of transformers.js encode several texts per batch.
layouts.add(
    "transformers.js",
    Layout(
        names={
            "image": TowerNames(stem="onnx/vision_model", input="pixel_values", output="image_embeds"),
            "text": TowerNames(stem="onnx/text_model", input="input_ids", output="text_embeds"),
        },
        # File name suffixes of the dtypes `fp32`, `fp16`, `int8` and `q8`; `q8` is the default in browsers.
        endings={"float32": "", "float16": "_fp16", "int8": "_int8", "int8-weights": "_quantized"},
        text_dtype="int64",
        cuts_end=True,
        needs=_ONNX_ON_HOST,
        sets={"dynamic_batch": True},
        write=_write_transformers_js,
    ),
)
# `mobileclip2_b.ts`: YOLOE's text encoder as TorchScript, for rows of 77 ids of CLIP's tokenizer. `MobileCLIPTS` in
# ultralytics' `nn/text_model.py` loads the file with `torch.jit.load`, and calls the module with int32 rows.
layouts.add(
    "ultralytics",
    Layout(
        names={"text": TowerNames(stem="mobileclip2_b", input="texts", output="text_features")},
        endings={"float32": ""},
        text_dtype="int32",
        cuts_end=True,
        suffix=TORCHSCRIPT,
        needs={"target": ("torch",), "tower": ("text", "both"), "features": ((),), "normalize": (True,)},
        sets={"tower": "text", "dynamic_batch": True, "text_lengths": "full"},
        write=_require_clips_ids,
    ),
)
