"""Export layouts: names of files, inputs and outputs, and what lies beside them for a host to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mobileclip.export.contract import TOKENIZER, Contract, ImageContract
from mobileclip.export.spec import ExportSpec, TextDtype, Tower
from mobileclip.hardware import PRECISIONS, Precision
from mobileclip.inputs import HIDDEN
from mobileclip.interop.transformers_folder import preprocessor_config, tokenizer_config
from mobileclip.registry import Registry
from mobileclip.terminal import get_logger

logger = get_logger(__name__)


@attrs.frozen(kw_only=True)
class TowerNames:
    """The file, input and output names of a tower in an export layout.

    Args:
        stem: its file, with folders, and without what the precision and the target add; `{model}` stands for the model.
        input: of the file.
        output: the first of the file.
    """

    stem: str
    input: str
    output: str


_PLAIN: dict[Tower, TowerNames] = {
    "image": TowerNames(stem="image", input="pixels", output="image_embedding"),
    "text": TowerNames(stem="text", input="tokens", output="text_embedding"),
}


@attrs.frozen(kw_only=True)
class Layout:
    """Names of files, inputs and outputs, and what lies beside them; by default, files are called after their tower.

    Args:
        names: of each tower.
        endings: what each precision adds to the stem of a file; others are not run there.
        tokenizer: file of the tokenizer.
        text_dtype: what token ids come in as; None where the target says so.
        cuts_end: whether long texts are cut there without their end token, which the text file then puts behind them.
        suffix: of the files, which chooses another format of the target; None for the target's own.
    """

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _PLAIN)
    endings: Mapping[Precision, str] = attrs.field(factory=lambda: dict.fromkeys(PRECISIONS, ""))
    tokenizer: str = TOKENIZER
    text_dtype: TextDtype | None = None
    cuts_end: bool = False
    suffix: str | None = None

    def fitted(self, spec: ExportSpec) -> ExportSpec:
        """Return how a model is exported for this place.

        Args:
            spec: what was asked for, of a precision that has an ending.

        Raises:
            ValueError: if the place does not run that; the message says what it runs.
        """
        return spec

    def write(self, folder: Path, contract: Contract) -> None:
        """Write what the place reads beside towers and tokenizer; nothing by default.

        Args:
            folder: of the export, with towers and tokenizer.
            contract: of the export, which names its towers.
        """


layouts: Registry[Layout] = Registry("export_layout")
"""Layouts by name; third parties add theirs here or by an entry point in `mobileclip.export_layout`."""


def fitted(spec: ExportSpec) -> ExportSpec:
    """Return how a model is exported for the place that a layout is of.

    Args:
        spec: what was asked for.

    Raises:
        ValueError: if there is no such layout, or its place does not run that; the message says what it runs.
    """
    layout = layouts.resolve(spec.layout)
    for precision in spec.precisions:
        if precision not in layout.endings:
            raise ValueError(
                f"the layout {spec.layout!r} has no precision {precision}; choose --precision "
                f"{', '.join(layout.endings)}"
            )
    if len({layout.endings[one] for one in spec.precisions}) < len(spec.precisions):
        raise ValueError(
            f"the layout {spec.layout!r} calls files of all precisions alike; leave also out, or choose "
            "--layout transformers.js"
        )
    return layout.fitted(spec)


def require_onnx(spec: ExportSpec) -> None:
    """Refuse what a place that runs ONNX files on scaled and normalised pixels does not run.

    Args:
        spec: what was asked for.

    Raises:
        ValueError: if it is for another runtime, or wants other pixels.
    """
    if spec.target != "onnx":
        raise ValueError(f"the layout {spec.layout!r} is of ONNX files, not of {spec.target!r}; choose --target onnx")
    if spec.preprocess != "host":
        raise ValueError(
            f"the layout {spec.layout!r} is for a host that scales and normalises pixels, and "
            f"preprocess={spec.preprocess} is for one that does not; leave it out"
        )


def warn_of_background(image: ImageContract, host: str) -> None:
    """Say what a host does not know of a model's pictures."""
    if image.input.background != HIDDEN:
        logger.warning(
            "%s drops the transparency of pictures, and this model was trained with them on %s: put transparent ones "
            "on it before",
            host,
            image.input.background,
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")


def _tokenizer_config(folder: Path, contract: Contract) -> dict[str, Any] | None:
    """Return what a `tokenizer_config.json` says of an export, None for an image tower alone."""
    text = contract.text
    if text is None:
        return None
    return tokenizer_config((folder / text.tokenizer).read_text(encoding="utf-8"), text.input)


_APPLE: dict[Tower, TowerNames] = {
    "image": TowerNames(stem="{model}_image", input="image", output="final_emb_1"),
    "text": TowerNames(stem="{model}_text", input="text", output="final_emb_1"),
}


@attrs.frozen(kw_only=True)
class AppleLayout(Layout):
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


_IMMICH: dict[Tower, TowerNames] = {
    "image": TowerNames(stem="visual/model", input="image", output="image_embedding"),
    "text": TowerNames(stem="textual/model", input="text", output="text_embedding"),
}


@attrs.frozen(kw_only=True)
class ImmichLayout(Layout):
    """`visual/` and `textual/`, with a model, and what prepares its inputs, in each."""

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _IMMICH)
    tokenizer: str = "textual/tokenizer.json"
    text_dtype: TextDtype | None = "int32"

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
        texts = _tokenizer_config(folder, contract)
        if texts is not None and contract.text is not None:
            text = contract.text.input
            language = {"context_length": text.context_length, "vocab_size": text.vocab_size}
            write_json(folder / "textual" / "tokenizer_config.json", texts)
        config = {"embed_dim": contract.embedding_dim, "vision_cfg": vision, "text_cfg": language}
        write_json(folder / "config.json", config)


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
class TransformersJsLayout(Layout):
    """A folder that `from_pretrained` reads: ONNX files below `onnx/`, named after their dtype, and configurations.

    Batches may have any size, since its examples encode several texts at once.
    """

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _TRANSFORMERS_JS)
    endings: Mapping[Precision, str] = attrs.field(factory=lambda: _ENDINGS)
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
            images = preprocessor_config(contract.image.input, resample=_ANTIALIASED)
            write_json(folder / "preprocessor_config.json", images)
        texts = _tokenizer_config(folder, contract)
        if texts is not None:
            write_json(folder / "tokenizer_config.json", texts)
        write_json(folder / "config.json", config)


TORCHSCRIPT = ".ts"
_ULTRALYTICS: dict[Tower, TowerNames] = {
    "text": TowerNames(stem="mobileclip2_b", input="texts", output="text_features"),
}


@attrs.frozen(kw_only=True)
class UltralyticsLayout(Layout):
    """`mobileclip2_b.ts`: TorchScript from 77 ids of CLIP's tokenizer to embeddings, as YOLOE's text encoder.

    Source: `MobileCLIPTS` in ultralytics' `nn/text_model.py`, which loads the file with `torch.jit.load` and calls it
    with rows of int32.
    """

    names: Mapping[Tower, TowerNames] = attrs.field(factory=lambda: _ULTRALYTICS)
    endings: Mapping[Precision, str] = attrs.field(factory=lambda: {"float32": ""})
    text_dtype: TextDtype | None = "int32"
    cuts_end: bool = True
    suffix: str | None = TORCHSCRIPT

    def fitted(self, spec: ExportSpec) -> ExportSpec:
        """Return what was asked for, of the text tower, with batches of any size.

        Raises:
            ValueError: if it is for another target, of the image tower, or not of unit length.
        """
        if spec.target != "torch" or spec.tower == "image" or spec.features or not spec.normalize:
            raise ValueError(
                "the layout 'ultralytics' is a text tower in TorchScript, with embeddings of unit length; choose "
                "--target torch --tower text, and leave features and normalize out"
            )
        return attrs.evolve(spec, tower="text", dynamic_batch=True, text_lengths="full")

    def write(self, folder: Path, contract: Contract) -> None:
        """Make sure that the model reads CLIP's ids, which is what ultralytics gives it.

        Raises:
            ValueError: if it has a tokenizer of its own.
        """
        del folder
        if contract.text is not None and contract.text.input.tokenizer is not None:
            raise ValueError("ultralytics gives CLIP's ids to a text tower, and this one has a tokenizer of its own")


layouts.add("plain", Layout())
layouts.add("apple", AppleLayout())
layouts.add("immich", ImmichLayout())
layouts.add("transformers.js", TransformersJsLayout())
layouts.add("ultralytics", UltralyticsLayout())
