"""What a host needs of an export, whatever runs its files: contract, preprocessing, tokens, golden vectors, scores.

NumPy, Pillow, tokenizers and safetensors are enough; neither PyTorch nor the mobileclip package is needed.
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
# What an export in each precision must keep of the model's own embeddings.
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
    """A folder that `mobileclip export` wrote.

    Args:
        folder: where it is.
        contract: what its `mobileclip.json` says.
    """

    folder: Path
    contract: dict[str, Any]

    def tower(self, name: str) -> dict[str, Any]:
        """Return what the contract says of the image or the text tower: file, names, types and shapes.

        Raises:
            ValueError: if it was not exported, or its file is not there.
        """
        found = [tower for tower in self.contract["towers"] if tower["tower"] == name]
        if not found:
            raise ValueError(f"{self.folder} has no {name} tower; export the model with --tower both")
        tower: dict[str, Any] = found[0]
        if not (self.folder / tower["file"]).exists():
            raise ValueError(f"there is no {self.folder / tower['file']}; copy the export again")
        return tower


def read_export(folder: Path, *, target: str) -> Export:
    """Return an export that was made for a runtime.

    Raises:
        ValueError: if it is none, was made for another runtime, or by a version whose contract is another.
    """
    path = folder / "mobileclip.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no mobileclip.json; make an export: mobileclip export MODEL --target {target}"
        )
    contract = json.loads(path.read_text(encoding="utf-8"))
    if contract["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has the format version {contract['format_version']}, expected {FORMAT_VERSION}; export again"
        )
    if contract["target"] != target:
        raise ValueError(
            f"{folder} was made for {contract['target']}, expected {target}; export again with --target {target}"
        )
    return Export(folder, contract)


def read_picture(export: Export, path: Path) -> Image.Image:
    """Return a picture in RGB, upright, and 16 bits a channel scaled to 8.

    What is transparent is put on the background that the contract names. Without one its transparency is dropped, so
    that the stored colour below it shows, as the published models were trained.

    Pictures from strangers may cost a lot of time and memory: limit what you take before you call this.

    Raises:
        OSError: if it is no picture in one of `IMAGE_FORMATS`, or a broken one.
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
    """Return one picture as the image tower's file takes it.

    Resize the shorter side (antialiased), crop the centre; scale and normalise where the file does not. A file that
    takes pictures of any size leaves this one as it is.

    Shape:
        `(1, 3, size, size)`, uint8 or float32 as the contract says.

    Args:
        export: with an image tower.
        picture: in RGB.
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
    """Return texts as the text tower's file takes them: whole padded rows of ids.

    Shape:
        `(texts, context_length)`, int32 or int64 as the contract says.

    Args:
        export: with a text tower.
        texts: of any length; what is too long is cut.
    """
    tokenizer = Tokenizer.from_file(str(export.folder / export.contract["text"]["tokenizer"]))
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    return np.array(rows, dtype=export.tower("text")["input_dtype"])


def shortest(export: Export, ids: Array) -> Array:
    """Return rows of ids without the padding that the text tower's file need not see.

    Shape:
        `(texts, context_length)` to `(texts, length)`, the least of the file's `lengths` that holds the texts.

    Args:
        export: with a text tower.
        ids: what `tokenize` gives.
    """
    lengths = export.tower("text").get("lengths") or [ids.shape[1]]
    needed = int((ids == export.contract["text"]["end_id"]).argmax(axis=1).max()) + 1
    return np.ascontiguousarray(ids[:, : next(length for length in lengths if length >= needed)])


def unit_length(embeddings: Array) -> Array:
    """Return embeddings of length one: exports with --no-normalize give them as the model does."""
    scaled: Array = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return scaled


def encode_each(encode: Encode, inputs: Array) -> Array:
    """Return the embeddings of inputs, one after another: any export takes a batch of one.

    Shape:
        `(inputs, ...)` to `(inputs, embedding_dim)`, float32, of unit length.
    """
    return unit_length(np.concatenate([encode(one[None]) for one in inputs]))


def check_golden(export: Export, tower: str, encode: Encode) -> float:
    """Return the least cosine of what a tower gives of the golden inputs with the model's own embeddings.

    Args:
        export: with the tower.
        tower: `image` or `text`.
        encode: runs its file.

    Raises:
        ValueError: if the file is another or the runtime computes something else.
    """
    golden = load_file(export.folder / "golden.safetensors")
    described = export.tower(tower)
    computed = encode_each(encode, golden[described["input_name"]])
    least = float((computed * unit_length(golden[described["output_name"]])).sum(axis=-1).min())
    bound = LEAST_COSINE[export.contract["precision"]]
    # Written so that NaN fails too.
    if not least > bound:
        raise ValueError(
            f"the {tower} tower gives other embeddings of the golden inputs than the model did: the least cosine is "
            f"{least:.6f}, expected more than {bound}; copy the export again, or measure it with: mobileclip verify"
        )
    return least


def probabilities(export: Export, cosines: Array) -> Array:
    """Return how likely each text is to fit each picture, among these texts: softmax of `logit_scale * cosine`.

    Shape:
        `(pictures, texts)` in and out; rows sum to one.
    """
    logits = export.contract["logit_scale"] * cosines
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    likely: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return likely
