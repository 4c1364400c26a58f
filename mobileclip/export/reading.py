"""An export's folder, read as if a stranger had made it: every file known, unchanged, and in the folder."""

from __future__ import annotations

import re
from pathlib import Path

from mobileclip.encoders.checkpoints.exports import CONTRACT
from mobileclip.export.contract import (
    EVALUATION,
    FORMAT_VERSION,
    GOLDEN,
    REPORT,
    TOKENIZER,
    Contract,
    TowerFile,
)
from mobileclip.export.spec import TEXT_SPACE
from mobileclip.extras import UPDATE
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_value
from mobileclip.storage import printable, read_bytes
from mobileclip.strict import parse_json
from mobileclip.tensor_files import file_sha256

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
