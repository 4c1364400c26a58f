"""The contract of an export: one JSON file with everything that a host needs to run it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs

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
    for one in contract.each:
        _check_towers(one, path)
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


def _check_towers(contract: Contract, path: Path) -> None:
    """Make sure that what a contract says of its towers fits what it says of the model."""
    if len(contract.files) > _MOST_FILES:
        raise ValueError(f"{path} names {len(contract.files):,} files, and up to {_MOST_FILES} are known here")
    if not 0 < contract.embedding_dim <= _MOST_EMBEDDING:
        raise ValueError(f"{path} has embeddings of {contract.embedding_dim} dimensions; export the model again")
    _check_classes(contract, path)
    kinds = [tower.tower for tower in contract.towers]
    if not kinds or len(set(kinds)) != len(kinds):
        raise ValueError(f"{path} names {kinds or 'no towers'}, expected an image tower, a text tower or both")
    for tower in contract.towers:
        given = (tower.input_dtype, tower.input_shape[1:], tower.output_shape)
        batch = next(iter(tower.input_shape), 0)
        if batch not in (None, 1) or given not in _expected(contract, tower):
            raise ValueError(
                f"{path} says that the {tower.tower} tower takes {tower.input_dtype} of shape {tower.input_shape} and "
                f"gives {tower.output_shape}, which is not what it says of the model; export the model again"
            )
        if tower.lengths and tower.tower != "text":
            raise ValueError(f"{path} has lengths of texts of the {tower.tower} tower; export the model again")
        _check_features(tower, path)


def _check_classes(contract: Contract, path: Path) -> None:
    """Make sure that a classifier is an image file that gives as many logits as it has names."""
    if contract.num_classes is None:
        fits = not contract.class_names
    else:
        names, kinds = contract.class_names, [tower.tower for tower in contract.towers]
        fits = 0 < contract.num_classes <= _MOST_EMBEDDING and len(names) in (0, contract.num_classes)
        fits = fits and kinds == ["image"] and not contract.normalize
    if not fits:
        raise ValueError(
            f"{path} says {contract.num_classes} classes with {len(contract.class_names)} names, which no export of a "
            "classifier says so; export the model again"
        )


def _check_features(tower: TowerFile, path: Path) -> None:
    """Make sure that feature maps are those of an image tower, each behind another stage."""
    features = tower.features
    if features and tower.tower != "image":
        raise ValueError(f"{path} has feature maps of the {tower.tower} tower; export the model again")
    for one in features:
        batch, *sides = one.shape
        fits = len(sides) == 3 and (one.stage != TEXT_SPACE or sides[0] == tower.output_shape[1])
        if batch != tower.input_shape[0] or not fits:
            raise ValueError(f"{path} has a map {one.name} of shape {one.shape}; export the model again")
    if len({one.stage for one in features}) != len(features):
        raise ValueError(f"{path} has two maps of one stage; export the model again")


def _expected(contract: Contract, tower: TowerFile) -> list[tuple[str, tuple[int | None, ...], tuple[int | None, ...]]]:
    """Return what a tower may take and give: type, shape without the batch, and shape."""
    gives = (*tower.input_shape[:1], contract.output_dim)
    if tower.tower == "image" and contract.image is not None:
        if contract.image.preprocess == "picture":
            return [("uint8", (3, None, None), gives)]
        kind = "uint8" if contract.image.preprocess == "uint8" else "float32"
        size = contract.image.input.size
        return [(kind, (3, size, size), gives)]
    if tower.tower == "text" and contract.text is not None:
        return [(kind, (contract.text.input.context_length,), gives) for kind in ("int32", "int64")]
    return []


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
