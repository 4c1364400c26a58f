"""The contract of an export: one JSON file with all information that a host needs to run the export."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor

from mobileclip.data.images.transform import ImageTransform
from mobileclip.encoders.checkpoints.published import CONTRACT
from mobileclip.export.spec import TEXT_SPACE, InputDtype, Preprocess, Stage, Tower
from mobileclip.extras import UPDATE
from mobileclip.hardware import Precision
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_value, to_json
from mobileclip.storage import printable, read_bytes
from mobileclip.strict import parse_json, strict
from mobileclip.tensor_files import file_sha256

TOKENIZER, REPORT = "tokenizer.json", "report.json"
GOLDEN, EVALUATION = "golden.safetensors", "evaluation.safetensors"
FORMAT_VERSION = 1
NOT_RUN: Final = "written, not run"
"""State of an export whose runtime is not available on the exporting machine."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageContract:
    """The preprocessing that a host must apply to images for an exported image tower.

    Args:
        input: the complete preprocessing. Resize the shorter side to `size` (antialiased, with `interpolation`), crop
            the centre, and apply `(pixel / 255 - mean) / std`. The host skips the steps that the file itself does (see
            `preprocess`).
        preprocess: input format of the file. `host`: pixels after all preprocessing. `uint8`, `float32`: resized and
            cropped pixels in [0, 255]. `picture`: pixels of an image of any size, in [0, 255].
        channel_order: order of the colour channels, always `RGB`.
        layout: order of the axes, always `NCHW`.
    """

    input: ImageInput
    preprocess: Preprocess
    channel_order: Literal["RGB"] = "RGB"
    layout: Literal["NCHW"] = "NCHW"


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextContract:
    """The tokenization that a host must apply to texts for an exported text tower.

    Args:
        input: context length, vocabulary and padding. The tokenizer truncates long texts so that the end token fits.
        start_id: id of the first token of every text; None for a tokenizer without a start token.
        end_id: id of the end token, which follows every text.
        tokenizer: path of the Hugging Face `tokenizers` file, whose tokenizer returns complete, padded rows of ids.
    """

    input: TextInput
    start_id: int | None
    end_id: int
    tokenizer: str = TOKENIZER


def _is_shape(_: object, attribute: attrs.Attribute[tuple[int | None, ...]], sides: tuple[int | None, ...]) -> None:
    if not sides or any(side is None for side in sides[1:]) or any(side is not None and side < 1 for side in sides):
        raise ValueError(
            f"{attribute.name} is {printable(sides)}, expected sizes of at least 1; only the first size may be None"
        )


def _is_input_shape(
    instance: object, attribute: attrs.Attribute[tuple[int | None, ...]], sides: tuple[int | None, ...]
) -> None:
    # Height and width of images of any size.
    _is_shape(instance, attribute, sides[:2] if sides[2:] == (None, None) else sides)


def feature_name(stage: Stage) -> str:
    """Return the name of a stage's feature map, for the output of the file and for the report."""
    return "text_space" if stage == TEXT_SPACE else f"stage_{stage}"


def _is_stage(_: object, attribute: attrs.Attribute[Stage], stage: Stage) -> None:
    if isinstance(stage, int) and stage < 0:
        raise ValueError(f"{attribute.name} is {stage}, expected a stage number of at least 0, or {TEXT_SPACE}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class FeatureMap:
    """A feature map that an exported image tower returns in addition to the embedding.

    Args:
        stage: number of the stage, from 0 (for a ViT, of the layer); `text-space` for the map after the whole tower.
        shape: shape of the float32 output: batch (None for any size), channels, rows, columns.
    """

    stage: Stage = attrs.field(validator=_is_stage)
    shape: tuple[int | None, ...] = attrs.field(validator=_is_shape)

    @property
    def name(self) -> str:
        """Name of the output that returns the map."""
        return feature_name(self.stage)


def _are_lengths(instance: TowerFile, attribute: attrs.Attribute[tuple[int, ...]], lengths: tuple[int, ...]) -> None:
    is_rising = all(one < next_one for one, next_one in zip((0, *lengths), lengths, strict=False))
    if lengths and not (is_rising and lengths[-1:] == instance.input_shape[1:]):
        raise ValueError(
            f"{attribute.name} are {printable(lengths)}, expected ascending row lengths, of which the last equals "
            "the row length in the input shape"
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class TowerFile:
    """The contract's entry of one exported file: a tower, or a classifier, which is an image tower with logits.

    Args:
        tower: `image` or `text`; `image` for a classifier.
        file: path of the file (for Core ML, of the `.mlpackage` folder) in the export folder.
        input_name: name of the file's only input.
        input_dtype: dtype of the input: float32, uint8, int32 or int64.
        input_shape: shape of the input; None where the batch size, image height or image width may have any value.
        output_name: name of the first output, the embeddings or logits.
        output_shape: shape of the float32 embeddings or logits, with None for a batch of any size.
        compute: precision in which the encoder computes as exported; a runtime may choose more exact kernels.
        float32: names of layers kept in float32, because the export would otherwise fail an acceptance check. In int8
            files, the named layers are not quantised, and compute like all other unquantised operations (in Core ML, in
            float16). In `int8-weights` files, the named layers have float32 weights.
        lengths: row lengths that the text tower's file accepts, in ascending order; the last is the row length in
            `input_shape`. Empty if the file accepts only that length. A host cuts the padding off its rows, down to the
            shortest of these lengths that holds the texts. In LiteRT, each length has a signature: `length_8` and so
            on, and `serving_default` for the last.
        features: feature maps that the file returns after the embeddings, in the order of the outputs.
        outside: operations that ExecuTorch runs with its own kernels rather than in XNNPACK.
    """

    tower: Tower
    file: str
    input_name: str
    input_dtype: InputDtype
    input_shape: tuple[int | None, ...] = attrs.field(validator=_is_input_shape)
    output_name: str
    output_shape: tuple[int | None, ...] = attrs.field(validator=_is_shape)
    compute: Precision
    float32: tuple[str, ...] = ()
    lengths: tuple[int, ...] = attrs.field(default=(), validator=_are_lengths)
    features: tuple[FeatureMap, ...] = ()
    outside: tuple[str, ...] = ()

    @property
    def takes_any_size(self) -> bool:
        """Whether the file accepts decoded images of any size."""
        return None in self.input_shape[1:]

    @property
    def outputs(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of all outputs by name, in the order of the file's outputs."""
        return {self.output_name: self.output_shape, **{one.name: one.shape for one in self.features}}


def prepare_pixels(pixels: Tensor, contract: ImageInput, preprocess: str) -> Tensor:
    """Convert uint8 pixels to the input of an exported image tower.

    Shape:
        `(images, 3, size, size)` for input and output.

    Args:
        pixels: resized and cropped pixels.
        contract: image preprocessing of the model.
        preprocess: input format of the file, such as `host`.
    """
    if preprocess == "host":
        return ImageTransform(contract).normalize(pixels.movedim(1, -1))
    return pixels.to(torch.float32) if preprocess == "float32" else pixels


@attrs.frozen(kw_only=True, field_transformer=strict)
class Variant:
    """The towers of an export in an additional precision.

    Args:
        precision: precision of the stored weights.
        towers: entries of the exported files in this precision.
    """

    precision: Precision
    towers: tuple[TowerFile, ...]


@attrs.frozen(kw_only=True, field_transformer=strict)
class Contract:
    """Description of an export: its files, their inputs and outputs, and the origin of the weights.

    Args:
        format_version: version of the contract's file format; `read_contract` accepts only the current version.
        target: name of the target, such as `onnx`.
        precision: precision of the stored weights.
        normalize: whether the exported embeddings have unit length.
        embedding_dim: width of the embeddings; for a classifier, width of the embeddings before the linear layer.
        logit_scale: factor by which the cosine similarities are multiplied before the softmax, limited to the model's
            maximum; None for a model with a single tower.
        towers: entries of the exported files.
        image: image preprocessing; None without an exported image tower.
        text: tokenization; None without an exported text tower.
        files: SHA-256 hashes of all files except the contract, by path in the folder.
        versions: versions of the packages that wrote the export, by name.
        weights_sha256: SHA-256 of the folded float32 weights, as computed by `tensor_files.weights`.
        spec: spec of the model, as this library's checkpoints store the spec.
        licence: licence of the code and of published weights.
        layout: name of the export layout, such as `plain`.
        name: name of the model, of its hub repository or of its weights file; None for an unnamed model object.
        state: `run` if the runtime ran the files on the exporting machine; otherwise `written, not run`, without
            acceptance checks.
        num_classes: number of logits of a classifier; None for embeddings.
        class_names: class names in the order of the logits; empty if unknown.
        others: the exported towers in additional precisions.
    """

    format_version: int
    target: str
    precision: Precision
    normalize: bool
    embedding_dim: int
    logit_scale: float | None
    towers: tuple[TowerFile, ...]
    image: ImageContract | None
    text: TextContract | None
    files: Mapping[str, str]
    versions: Mapping[str, str]
    weights_sha256: str
    spec: Mapping[str, Any]
    licence: str
    layout: str = "plain"
    name: str | None = None
    state: Literal["run", "written, not run"] = "run"
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    others: tuple[Variant, ...] = ()

    @property
    def per_precision(self) -> tuple[Contract, ...]:
        """One contract per precision, with the contract's own precision first."""
        variants = (Variant(precision=self.precision, towers=self.towers), *self.others)
        return tuple(attrs.evolve(self, precision=one.precision, towers=one.towers, others=()) for one in variants)

    @property
    def of_classes(self) -> bool:
        """Whether the exported model is a classifier."""
        return self.num_classes is not None

    def prepare_inputs(self, tower: TowerFile, inputs: Tensor) -> Tensor:
        """Convert inputs to the format and dtype of an exported file.

        Args:
            tower: entry of the file.
            inputs: resized and cropped pixels `(images, 3, size, size)`, uint8; or token ids `(texts, context_length)`.
        """
        if self.image is not None and tower.tower == "image":
            return prepare_pixels(inputs, self.image.input, self.image.preprocess)
        return inputs.to(getattr(torch, tower.input_dtype))

    @property
    def output_dim(self) -> int:
        """Width of the first output: embedding dimension, or number of classes."""
        return self.embedding_dim if self.num_classes is None else self.num_classes

    def write(self, folder: Path) -> None:
        """Write the contract to the folder of the export."""
        (folder / CONTRACT).write_text(f"{to_json(self, indent=2)}\n", encoding="utf-8")


MOST_BYTES = 2**24
"""Maximum size of a contract or report, in bytes."""

_MOST_FILES, _MOST_EMBEDDING = 1000, 2**16
# Valid on every system: without a drive, a parent folder or a hidden name.
_NAME = re.compile(r"\w[\w.-]{0,199}(/\w[\w.-]{0,199}){0,6}", re.ASCII)
_OTHERS = (TOKENIZER, REPORT, GOLDEN, EVALUATION)


def read_contract(folder: str | Path) -> Contract:
    """Return the contract of an export, after a check that all files exist and are unchanged.

    Raises:
        ValueError: if the folder is not a complete export, if the contract has a different format version, or if a file
            is missing, changed, outside the folder or absent from the contract; the message names the file.
    """
    folder = Path(folder)
    path = folder / CONTRACT
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONTRACT}, so the folder is not a complete export; export the model again")
    contract = _read(path)
    if (fault := next((fault for one in contract.per_precision for fault in _faults(one)), None)) is not None:
        raise ValueError(f"{path} {fault}; export the model again")
    for name, expected in contract.files.items():
        check_file(folder, name, expected)
    for tower in (tower for one in contract.per_precision for tower in one.towers):
        _check_complete(folder, tower, contract)
    if contract.text is not None and contract.text.tokenizer not in contract.files:
        raise ValueError(
            f"{path} has no SHA-256 of the tokenizer {printable(contract.text.tokenizer)}; export the model again"
        )
    return contract


def _read(path: Path) -> Contract:
    try:
        contract = from_value(parse_json(read_bytes(path, limit=MOST_BYTES)), Contract)
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        raise ValueError(
            f"{path} cannot be read: {error}; the file is damaged, or a different version of mobileclip wrote it"
        ) from error
    if contract.format_version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has the format version {contract.format_version}, but this version of mobileclip reads only "
            f"{FORMAT_VERSION}; update with: {UPDATE}, or export the model again"
        )
    return contract


def _faults(contract: Contract) -> Iterator[str]:
    """Yield each contradiction between the towers and the model description of a contract."""
    num_classes, names, kinds = contract.num_classes, contract.class_names, [one.tower for one in contract.towers]
    if len(contract.files) > _MOST_FILES:
        yield f"lists {len(contract.files):,} files, expected at most {_MOST_FILES}"
    if not 0 < contract.embedding_dim <= _MOST_EMBEDDING:
        yield f"has embeddings of {contract.embedding_dim} dimensions, expected 1 to {_MOST_EMBEDDING:,}"
    # A classifier is an image file that returns as many logits as it has names.
    is_classifier = kinds == ["image"] and not contract.normalize and len(names) in (0, num_classes)
    if bool(names) if num_classes is None else not (is_classifier and 0 < num_classes <= _MOST_EMBEDDING):
        yield (
            f"states {num_classes} classes with {len(names)} names, expected an image tower with raw logits, and one "
            "name per logit or no names"
        )
    if not kinds or len(set(kinds)) != len(kinds):
        yield f"lists {kinds or 'no towers'}, expected an image tower, a text tower or both"
    for tower in contract.towers:
        yield from _tower_faults(contract, tower)


def _tower_faults(contract: Contract, tower: TowerFile) -> Iterator[str]:
    batch, *sides = tower.input_shape
    dtypes, expected = _taken(contract, tower)
    fits = tower.input_dtype in dtypes and sides == expected and tower.output_shape == (batch, contract.output_dim)
    if batch not in (None, 1) or not fits:
        yield (
            f"states that the {tower.tower} tower takes {tower.input_dtype} of shape {tower.input_shape} and returns "
            f"{tower.output_shape}, which does not match the model"
        )
    for part, kind, has in (("lengths of texts", "text", tower.lengths), ("feature maps", "image", tower.features)):
        if has and tower.tower != kind:
            yield f"has {part} for the {tower.tower} tower, which cannot have any"
    for one in tower.features:
        places = one.shape[1:]
        fits = len(places) == 3 and (one.stage != TEXT_SPACE or places[:1] == tower.output_shape[1:])
        if one.shape[0] != batch or not fits:
            yield f"has a feature map {one.name} of shape {one.shape}, expected (batch, channels, rows, columns)"
    if len({one.stage for one in tower.features}) != len(tower.features):
        yield "has two feature maps of the same stage"


def _taken(contract: Contract, tower: TowerFile) -> tuple[tuple[str, ...], list[int | None]]:
    """Return the valid input dtypes and the input shape (without the batch) of a tower, both empty if undefined."""
    if tower.tower == "text" and contract.text is not None:
        return ("int32", "int64"), [contract.text.input.context_length]
    if tower.tower == "image" and contract.image is not None:
        preprocess, size = contract.image.preprocess, contract.image.input.size
        dtype = "uint8" if preprocess in ("uint8", "picture") else "float32"
        return (dtype,), [3, None, None] if preprocess == "picture" else [3, size, size]
    return (), []


def check_file(folder: Path, name: str, expected: str) -> None:
    """Raise an error unless a file is in the folder of its export and has the expected SHA-256.

    Args:
        folder: folder of the export.
        name: path of the file in the folder.
        expected: SHA-256 from the contract, in hexadecimal.

    Raises:
        ValueError: if the file is missing, changed or outside the folder.
    """
    path = folder / name
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{folder / CONTRACT} lists the file {printable(repr(name))}, which is not in the export's folder; do not "
            "use this export"
        )
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}, which its {CONTRACT} lists; export the model again")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path} is a link to {path.resolve()}, which is not in the export's folder; copy the folder with its "
            "files instead of links"
        )
    if file_sha256(path) != expected:
        raise ValueError(
            f"{path} is not the exported file: its SHA-256 differs from the one in {CONTRACT}; copy the "
            "folder again, or export the model again"
        )


def _check_complete(folder: Path, tower: TowerFile, contract: Contract) -> None:
    """Raise an error unless the contract lists a tower's file, and every file beside it that has the same stem."""
    names = [name for name in contract.files if name == tower.file or name.startswith(f"{tower.file}/")]
    if not names or tower.file in (CONTRACT, *_OTHERS):
        raise ValueError(
            f"{folder / CONTRACT} has no SHA-256 of {printable(tower.file)}, the file of the {tower.tower} tower; "
            "export the model again"
        )
    stem = tower.file.partition(".")[0]
    beside = [path for top in folder.glob(f"{stem}.*") for path in (top, *top.rglob("*")) if not path.is_dir()]
    for path in beside:
        if path.relative_to(folder).as_posix() not in contract.files:
            raise ValueError(
                f"{path} is next to the {tower.tower} tower, but {CONTRACT} does not list this file; remove the file, "
                "or export the model again"
            )
