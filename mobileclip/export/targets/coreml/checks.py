"""Core ML packages, looked through before anything else reads them: a program of known operations, and its weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from mobileclip.machine import raise_machine_fault
from mobileclip.storage import printable
from mobileclip.strict import parse_json

_MOST_BYTES, _MOST_OPERATIONS = 2**28, 50_000
_DATA = "com.apple.CoreML"
_MODEL, _WEIGHTS = f"{_DATA}/model.mlmodel", f"{_DATA}/weights"
_PARTS = {"Manifest.json", f"Data/{_MODEL}", f"Data/{_WEIGHTS}/weight.bin"}
_BLOB = "@model_path/weights/weight.bin"


def read_specification(path: Path, operations: Collection[str] | None) -> Any:
    """Return the specification in a package.

    Args:
        path: of the package.
        operations: that a program may hold; None where it is believed, and may hold any.

    Raises:
        ValueError: if it holds other files, names files elsewhere, or is no ML program of known operations.
    """
    from coremltools.proto import Model_pb2

    try:
        if operations is not None:
            _check_package(path)
        specification = Model_pb2.Model.FromString((path / "Data" / _MODEL).read_bytes())
        if operations is not None:
            _check(specification, operations)
    except Exception as error:
        raise_machine_fault(error)
        # protobuf's errors, of whichever implementation is installed, among them.
        raise ValueError(
            f"{path} is no Core ML package of known parts, or cannot be read ({printable(error)}); do not use it "
            "unless you made it, and then export the model again"
        ) from error
    return specification


def _check_package(path: Path) -> None:
    found = {one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_symlink() or not one.is_dir()}
    if not found <= _PARTS or any((path / one).is_symlink() for one in found):
        raise ValueError(f"it holds {printable(', '.join(sorted(found - _PARTS)) or 'links')}")
    for name in ("Manifest.json", f"Data/{_MODEL}"):
        if not (path / name).is_file() or (path / name).stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has no {name}, or a very large one")
    manifest = parse_json((path / "Manifest.json").read_bytes())
    items = manifest["itemInfoEntries"]
    if {item["path"] for item in items.values()} - {_MODEL, _WEIGHTS}:
        raise ValueError("its manifest names files elsewhere")
    if items[manifest["rootModelIdentifier"]]["path"] != _MODEL:
        raise ValueError("its manifest names no model")


def _check(specification: Any, operations: Collection[str]) -> None:
    program = specification.mlProgram
    if (
        specification.WhichOneof("Type") != "mlProgram"
        or specification.isUpdatable
        or set(program.functions) != {"main"}
    ):
        raise ValueError("it is no ML program of one function")
    (function,) = program.functions.values()
    (block,) = function.block_specializations.values()
    if len(block.operations) > _MOST_OPERATIONS:
        raise ValueError(f"it holds {len(block.operations):,} operations")
    for operation in block.operations:
        if operation.type not in operations or operation.blocks:
            raise ValueError(f"it holds the operation {printable(operation.type, limit=40)}, or a block in one")
        given = [one.value for several in operation.inputs.values() for one in several.arguments]
        for value in (*operation.attributes.values(), *given):
            if value.WhichOneof("value") == "blobFileValue" and value.blobFileValue.fileName != _BLOB:
                raise ValueError(f"it reads {printable(value.blobFileValue.fileName, limit=80)}")
