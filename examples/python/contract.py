"""Reads an export for any runtime: contract, preprocessing, tokens, golden vectors and scores.

This module needs NumPy, Pillow, tokenizers and safetensors, but neither PyTorch nor the mobileclip package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = npt.NDArray[Any]
Encode = Callable[[Array], Array]

FORMAT_VERSION = 1
# Minimum cosines with the model's own embeddings for exports in each precision.
LEAST_COSINE = {
    "float32": 0.99999,
    "float16": 0.9995,
    "bfloat16": 0.9995,
    "int8": 0.98,
    "int8-weights": 0.99,
}
# Pillow knows many more; one of them starts Ghostscript, whatever the file is called. HEIF is read where pillow-heif is
# registered as its plug-in.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Export:
    """An export in a folder of `mobileclip export`.

    Args:
        folder: folder of the export.
        contract: content of `mobileclip.json` in the folder.
    """

    folder: Path
    contract: dict[str, Any]

    def tower(self, name: str) -> dict[str, Any]:
        """Return the contract's entry of the image or text tower: file, names, dtypes and shapes.

        Raises:
            ValueError: if the export lacks the tower, or the tower's file is missing.
        """
        found = [tower for tower in self.contract["towers"] if tower["tower"] == name]
        if not found:
            raise ValueError(f"{self.folder} has no {name} tower; export the model with --tower both")
        tower: dict[str, Any] = found[0]
        if not (self.folder / tower["file"]).exists():
            raise ValueError(f"{self.folder / tower['file']} is missing; copy the export again")
        return tower


def read_export(folder: Path, *, target: str) -> Export:
    """Return an export for a runtime.

    Raises:
        ValueError: if the folder is not an export, is for a different runtime, or has a different format version.
    """
    path = folder / "mobileclip.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no mobileclip.json; make an export: mobileclip export MODEL --target {target}")
    contract = json.loads(path.read_text(encoding="utf-8"))
    if contract["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {contract['format_version']}, expected {FORMAT_VERSION}; export again"
        )
    if contract["target"] != target:
        raise ValueError(
            f"{folder} is for {contract['target']}, expected {target}; export again with --target {target}"
        )
    return Export(folder, contract)


def read_image(export: Export, path: Path) -> Image.Image:
    """Return an upright RGB image, with 16 bits per channel scaled to 8.

    The function composites transparent images on the contract's background. Without a background, the function
    drops the transparency, so that transparent pixels show the stored colour, as in the training of published models.

    Untrusted images can take much time and memory: limit the input before you call this function.

    Raises:
        OSError: if the file is not an image in one of `IMAGE_FORMATS`, or is damaged.
    """
    Image.init()
    with Image.open(path, formats=[name for name in IMAGE_FORMATS if name in Image.OPEN]) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):
            values = np.asarray(picture).astype(np.uint32)
            return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
        background = export.contract["image"]["input"].get("background", "hidden")
        if background != "hidden" and picture.has_transparency_data:
            below = Image.new("RGBA", picture.size, background)
            below.alpha_composite(picture.convert("RGBA"))
            return below.convert("RGB")
        return (picture.convert("RGBA") if picture.mode == "P" else picture).convert("RGB")


def preprocess(export: Export, picture: Image.Image) -> Array:
    """Return one image as input of the image tower's file.

    The function resizes the shorter side (antialiased), crops the centre, and, if the tower's file does not, scales
    and normalises pixels. If the file accepts images of any size, the function leaves the image unchanged.

    Shape:
        `(1, 3, size, size)`, uint8 or float32 according to the contract.

    Args:
        export: export with an image tower.
        picture: RGB image.
    """
    image = export.contract["image"]
    size = image["input"]["size"]
    short, long = sorted(picture.size)
    longer = int(size * long / short)
    width, height = (size, longer) if picture.width <= picture.height else (longer, size)
    resized = picture.resize((width, height), _FILTERS[image["input"]["interpolation"]])
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1)[None]
    if image["preprocess"] in ("uint8", "picture"):
        return np.ascontiguousarray(pixels)
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    if image["preprocess"] == "float32":
        return pixels
    mean, std = (np.array(image["input"][name], dtype=np.float32)[:, None, None] for name in ("mean", "std"))
    normalized: Array = (pixels / np.float32(255) - mean) / std
    return normalized


def tokenize(export: Export, texts: Sequence[str]) -> Array:
    """Return texts as input of the text tower's file: padded rows of ids.

    Shape:
        `(texts, context_length)`, int32 or int64 according to the contract.

    Args:
        export: with a text tower.
        texts: texts of any length; long texts are truncated.
    """
    tokenizer = Tokenizer.from_file(str(export.folder / export.contract["text"]["tokenizer"]))
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    return np.array(rows, dtype=export.tower("text")["input_dtype"])


def shortest(export: Export, ids: Array) -> Array:
    """Return rows of ids without the padding that the text tower's file does not need.

    Shape:
        `(texts, context_length)` to `(texts, length)`, `length` being the smallest of the file's `lengths` that fits.

    Args:
        export: with a text tower.
        ids: result of `tokenize`.
    """
    lengths = export.tower("text").get("lengths") or [ids.shape[1]]
    needed = int((ids == export.contract["text"]["end_id"]).argmax(axis=1).max()) + 1
    return np.ascontiguousarray(ids[:, : next(length for length in lengths if length >= needed)])


def unit_length(embeddings: Array) -> Array:
    """Return embeddings scaled to unit norm, since exports with --no-normalize do not normalise."""
    scaled: Array = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return scaled


def encode_each(encode: Encode, inputs: Array) -> Array:
    """Return the embeddings of inputs, encoded one at a time, since every export accepts a batch of one.

    Shape:
        `(inputs, ...)` to `(inputs, embedding_dim)`, float32, with unit norm.
    """
    return unit_length(np.concatenate([encode(one[None]) for one in inputs]))


def check_golden(export: Export, tower: str, encode: Encode) -> float:
    """Return the smallest cosine between a tower's embeddings of the golden inputs and the model's own embeddings.

    Args:
        export: export with the tower.
        tower: `image` or `text`.
        encode: function that runs the tower's file.

    Raises:
        ValueError: if the smallest cosine does not exceed the bound of the export's precision.
    """
    golden = load_file(export.folder / "golden.safetensors")
    described = export.tower(tower)
    computed = encode_each(encode, golden[described["input_name"]])
    least = float((computed * unit_length(golden[described["output_name"]])).sum(axis=-1).min())
    bound = LEAST_COSINE[export.contract["precision"]]
    # With `not`, NaN fails too.
    if not least > bound:
        raise ValueError(
            f"the {tower} tower's embeddings of the golden inputs differ from the model's: the smallest cosine is "
            f"{least:.6f}, expected more than {bound}; copy the export again, or measure it with: mobileclip verify"
        )
    return least


def probabilities(export: Export, cosines: Array) -> Array:
    """Return the probability of each text for each image, among the given texts: softmax of `logit_scale * cosine`.

    Shape:
        `(images, texts)` in and out; rows sum to one.
    """
    logits = export.contract["logit_scale"] * cosines
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    likely: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return likely
