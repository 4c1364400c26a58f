"""The contract of an export: one JSON file with everything that a host needs to run it."""

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
"""State of an export whose runtime is not here."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageContract:
    """The input of an exported image file, as its host must prepare it.

    Args:
        input: resize the shorter side to `size` (antialiased, `interpolation`), crop the centre, then
            `(pixel / 255 - mean) / std` unless `preprocess` says that this is inside.
        preprocess: `host`: the host scales and normalises. `uint8`, `float32`: pixels in [0, 255] come in. `picture`:
            the file resizes and crops too, and pixels of a picture of any size come in.
        channel_order: of the colours.
        layout: of the axes.
    """

    input: ImageInput
    preprocess: Preprocess
    channel_order: Literal["RGB"] = "RGB"
    layout: Literal["NCHW"] = "NCHW"


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextContract:
    """The input of an exported text file, as its host must prepare it.

    Args:
        input: context length, vocabulary, padding. Texts that are too long are cut in front of the end token.
        start_id: first of every text; None for a tokenizer that has no such token.
        end_id: behind every text.
        tokenizer: the file of Hugging Face `tokenizers` that makes whole padded rows of ids.
    """

    input: TextInput
    start_id: int | None
    end_id: int
    tokenizer: str = TOKENIZER


def _is_shape(_: object, attribute: attrs.Attribute[tuple[int | None, ...]], sides: tuple[int | None, ...]) -> None:
    if not sides or any(side is None for side in sides[1:]) or any(side is not None and side < 1 for side in sides):
        raise ValueError(
            f"{attribute.name} is {printable(sides)}, expected sides of at least 1; None may stand for the first"
        )


def _is_input_shape(
    instance: object, attribute: attrs.Attribute[tuple[int | None, ...]], sides: tuple[int | None, ...]
) -> None:
    # Height and width of pictures of any size.
    _is_shape(instance, attribute, sides[:2] if sides[2:] == (None, None) else sides)


def feature_name(stage: Stage) -> str:
    """Return what the feature map behind a stage is called, as an output and in a report."""
    return "text_space" if stage == TEXT_SPACE else f"stage_{stage}"


def _is_stage(_: object, attribute: attrs.Attribute[Stage], stage: Stage) -> None:
    if isinstance(stage, int) and stage < 0:
        raise ValueError(f"{attribute.name} is {stage}, expected the number of a stage, from 0, or {TEXT_SPACE}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class FeatureMap:
    """A feature map that an image file gives beside the embedding.

    Args:
        stage: behind which it comes, from 0; of a ViT, the layer; `text-space` behind all of the tower.
        shape: of the output, float32: batch, channels, rows, columns; None where the batch may have any size.
    """

    stage: Stage = attrs.field(validator=_is_stage)
    shape: tuple[int | None, ...] = attrs.field(validator=_is_shape)

    @property
    def name(self) -> str:
        """Name of the output."""
        return feature_name(self.stage)


def _are_lengths(instance: TowerFile, attribute: attrs.Attribute[tuple[int, ...]], lengths: tuple[int, ...]) -> None:
    is_rising = all(one < next_one for one, next_one in zip((0, *lengths), lengths, strict=False))
    if lengths and not (is_rising and lengths[-1:] == instance.input_shape[1:]):
        raise ValueError(
            f"{attribute.name} are {printable(lengths)}, expected rising numbers of ids, the last of them that of the "
            "input's shape"
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class TowerFile:
    """One exported tower, or a classifier, which is a file of the image tower's kind that gives logits.

    Args:
        tower: which it is.
        file: its name in the folder; the name of a folder where the format is one.
        input_name: of the one input.
        input_dtype: of the input: float32, uint8, int32 or int64.
        input_shape: of the input; None where the batch, or a picture, may have any size.
        output_name: of the embeddings or the logits, the first output.
        output_shape: of the embeddings or the logits, float32; None where the batch may have any size.
        compute: what the encoder computes in where it runs as exported; a runtime may choose more exact kernels.
        float32: the layers that compute in float32 all the same, since the export would fail a check otherwise.
            In int8, they compute in what all that is not quantised computes in: float16 in Core ML. Of `int8-weights`,
            those whose weights are stored in float32.
        lengths: numbers of ids that a row of the text file may have, rising, that of the input's shape last; none where
            that alone is taken. A host cuts the padding off its rows, down to the shortest that holds their texts.
            Each has a signature in LiteRT: `length_8` and the like, and `serving_default` for the last.
        features: outputs behind the embeddings, in this order.
        outside: operations that ExecuTorch computes itself, outside XNNPACK.
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
        """Whether pictures come in as they were decoded."""
        return None in self.input_shape[1:]

    @property
    def outputs(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of all outputs by name, in order."""
        return {self.output_name: self.output_shape, **{one.name: one.shape for one in self.features}}


def as_taken(pixels: Tensor, contract: ImageInput, preprocess: str) -> Tensor:
    """Return uint8 pixels as an exported image tower takes them.

    Shape:
        `(images, 3, size, size)` in and out.

    Args:
        pixels: resized and cropped.
        contract: of the model.
        preprocess: of the export.
    """
    if preprocess == "host":
        return ImageTransform(contract).normalize(pixels.movedim(1, -1))
    return pixels.to(torch.float32) if preprocess == "float32" else pixels


@attrs.frozen(kw_only=True, field_transformer=strict)
class Variant:
    """The same towers in another precision.

    Args:
        precision: of the stored weights.
        towers: their files.
    """

    precision: Precision
    towers: tuple[TowerFile, ...]


@attrs.frozen(kw_only=True, field_transformer=strict)
class Contract:
    """The whole of an export.

    Args:
        format_version: of this file.
        target: the runtime's format.
        precision: of the stored weights.
        normalize: whether embeddings come out with unit length.
        embedding_dim: width of the embeddings; of a classifier, of those that its linear layer takes.
        logit_scale: factor of the cosine similarities in front of the softmax, after the cap of the model; None for a
            tower alone.
        towers: the exported files.
        image: what the image file takes, where there is one.
        text: what the text file takes, where there is one.
        files: names of all other files to their SHA-256.
        versions: of the libraries that wrote the export.
        weights_sha256: of the folded float32 weights that were exported, as `tensor_files.weights` counts them.
        spec: the model's spec, as in our checkpoints.
        licence: of the code and of published weights.
        layout: what files, inputs and outputs are called.
        name: what the model is called, or its file; None where nobody has said.
        state: whether its runtime has run it where it was exported, or nobody has: then no gate was asked.
        num_classes: logits that a classifier gives; None where embeddings come out.
        class_names: what the classes are called, in the order of the logits; none where nobody has said.
        others: the same towers in other precisions.
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
    def each(self) -> tuple[Contract, ...]:
        """Contracts of one precision each, the own one first."""
        variants = (Variant(precision=self.precision, towers=self.towers), *self.others)
        return tuple(attrs.evolve(self, precision=one.precision, towers=one.towers, others=()) for one in variants)

    @property
    def of_classes(self) -> bool:
        """Whether it is of a classifier."""
        return self.num_classes is not None

    def taken(self, tower: TowerFile, inputs: Tensor) -> Tensor:
        """Return inputs as a file takes them.

        Args:
            tower: the file.
            inputs: pixels, resized and cropped, `(images, 3, size, size)`, uint8; or ids `(texts, context_length)`.
        """
        if self.image is not None and tower.tower == "image":
            return as_taken(inputs, self.image.input, self.image.preprocess)
        return inputs.to(getattr(torch, tower.input_dtype))

    @property
    def output_dim(self) -> int:
        """Width of the first output."""
        return self.embedding_dim if self.num_classes is None else self.num_classes

    def write(self, folder: Path) -> None:
        """Write the contract into the export's folder."""
        (folder / CONTRACT).write_text(f"{to_json(self, indent=2)}\n", encoding="utf-8")


MOST_BYTES = 2**24
"""Of a contract, or a report."""

_MOST_FILES, _MOST_EMBEDDING = 1000, 2**16
# Of every system: no drive, no folder above, no name that hides.
_NAME = re.compile(r"\w[\w.-]{0,199}(/\w[\w.-]{0,199}){0,6}", re.ASCII)
_OTHERS = (TOKENIZER, REPORT, GOLDEN, EVALUATION)


def read_contract(folder: str | Path) -> Contract:
    """Return the contract of an export whose files are all there and as they were written.

    Raises:
        ValueError: if the folder is no whole export, another version of this library wrote it, or a file of it is
            missing, has changed, lies elsewhere or is not named; the message names the file.
    """
    folder = Path(folder)
    path = folder / CONTRACT
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {CONTRACT}, so it is no export, or not a whole one; export the model again"
        )
    contract = _read(path)
    if (fault := next((fault for one in contract.each for fault in _faults(one)), None)) is not None:
        raise ValueError(f"{path} {fault}; export the model again")
    for name, expected in contract.files.items():
        check_file(folder, name, expected)
    for tower in (tower for one in contract.each for tower in one.towers):
        _check_complete(folder, tower, contract)
    if contract.text is not None and contract.text.tokenizer not in contract.files:
        raise ValueError(
            f"{path} has no SHA-256 of its tokenizer, {printable(contract.text.tokenizer)}; export the model again"
        )
    return contract


def _read(path: Path) -> Contract:
    try:
        contract = from_value(parse_json(read_bytes(path, limit=MOST_BYTES)), Contract)
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        raise ValueError(
            f"{path} cannot be read: {error}; it is damaged, or another version of mobileclip wrote it"
        ) from error
    if contract.format_version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has the format version {contract.format_version}, and this version of mobileclip reads "
            f"{FORMAT_VERSION}; update with: {UPDATE}, or export the model again"
        )
    return contract


def _faults(contract: Contract) -> Iterator[str]:
    """Yield what a contract says of its towers that does not fit what it says of the model."""
    num_classes, names, kinds = contract.num_classes, contract.class_names, [one.tower for one in contract.towers]
    if len(contract.files) > _MOST_FILES:
        yield f"names {len(contract.files):,} files, and up to {_MOST_FILES} are known here"
    if not 0 < contract.embedding_dim <= _MOST_EMBEDDING:
        yield f"has embeddings of {contract.embedding_dim} dimensions"
    # A classifier is an image file that gives as many logits as it has names.
    is_classifier = kinds == ["image"] and not contract.normalize and len(names) in (0, num_classes)
    if bool(names) if num_classes is None else not (is_classifier and 0 < num_classes <= _MOST_EMBEDDING):
        yield f"says {num_classes} classes with {len(names)} names, which no export of a classifier says so"
    if not kinds or len(set(kinds)) != len(kinds):
        yield f"names {kinds or 'no towers'}, expected an image tower, a text tower or both"
    for tower in contract.towers:
        yield from _tower_faults(contract, tower)


def _tower_faults(contract: Contract, tower: TowerFile) -> Iterator[str]:
    batch, *sides = tower.input_shape
    dtypes, expected = _taken(contract, tower)
    fits = tower.input_dtype in dtypes and sides == expected and tower.output_shape == (batch, contract.output_dim)
    if batch not in (None, 1) or not fits:
        yield (
            f"says that the {tower.tower} tower takes {tower.input_dtype} of shape {tower.input_shape} and gives "
            f"{tower.output_shape}, which is not what it says of the model"
        )
    for part, kind, has in (("lengths of texts", "text", tower.lengths), ("feature maps", "image", tower.features)):
        if has and tower.tower != kind:
            yield f"has {part} of the {tower.tower} tower"
    for one in tower.features:
        places = one.shape[1:]
        fits = len(places) == 3 and (one.stage != TEXT_SPACE or places[:1] == tower.output_shape[1:])
        if one.shape[0] != batch or not fits:
            yield f"has a map {one.name} of shape {one.shape}"
    if len({one.stage for one in tower.features}) != len(tower.features):
        yield "has two maps of one stage"


def _taken(contract: Contract, tower: TowerFile) -> tuple[tuple[str, ...], list[int | None]]:
    """Return what a tower may take: types, none where nothing is said of it, and the shape without the batch."""
    if tower.tower == "text" and contract.text is not None:
        return ("int32", "int64"), [contract.text.input.context_length]
    if tower.tower == "image" and contract.image is not None:
        preprocess, size = contract.image.preprocess, contract.image.input.size
        dtype = "uint8" if preprocess in ("uint8", "picture") else "float32"
        return (dtype,), [3, None, None] if preprocess == "picture" else [3, size, size]
    return (), []


def check_file(folder: Path, name: str, expected: str) -> None:
    """Make sure that a file of an export is in its folder and as it was written.

    Args:
        folder: of the export.
        name: of the file, in it.
        expected: its SHA-256.

    Raises:
        ValueError: if it is not.
    """
    path = folder / name
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{folder / CONTRACT} names the file {printable(repr(name))}, which is not in the export's folder; do not "
            "use it"
        )
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}, which its {CONTRACT} names; export the model again")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path} is a link to {path.resolve()}, which is not in the export's folder; copy the folder with its "
            "files, and not with links to them"
        )
    if file_sha256(path) != expected:
        raise ValueError(
            f"{path} is not the file that was exported: its SHA-256 differs from the one in {CONTRACT}; copy the "
            "folder again, or export the model again"
        )


def _check_complete(folder: Path, tower: TowerFile, contract: Contract) -> None:
    """Make sure that a tower's file, and whatever lies beside it under its name, is one of the contract's."""
    names = [name for name in contract.files if name == tower.file or name.startswith(f"{tower.file}/")]
    if not names or tower.file in (CONTRACT, *_OTHERS):
        raise ValueError(
            f"{folder / CONTRACT} has no SHA-256 of {printable(tower.file)}, its {tower.tower} tower; export the model "
            "again"
        )
    stem = tower.file.partition(".")[0]
    beside = [path for top in folder.glob(f"{stem}.*") for path in (top, *top.rglob("*")) if not path.is_dir()]
    for path in beside:
        if path.relative_to(folder).as_posix() not in contract.files:
            raise ValueError(
                f"{path} lies beside the {tower.tower} tower, and {CONTRACT} does not name it; remove it, or "
                "export the model again"
            )
