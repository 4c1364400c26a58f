"""Run what was exported in its own runtime, and measure it against the model that it was exported from."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import REPORT, Contract, TowerFile, read_contract
from mobileclip.export.measured import Measured, as_taken, read_measured
from mobileclip.export.parity import Report, compare_rankings, compare_tower, gates_of
from mobileclip.export.spec import Tower
from mobileclip.export.targets import Target, targets
from mobileclip.export.targets.base import check_versions

# Uneven, so that a batch that only pretends to be dynamic shows.
_DYNAMIC_BATCH = 5


def verify_export(folder: str | Path) -> Report:
    """Return how near an export is to its model, measured anew on the inputs that lie beside it.

    Every file is checked against the contract first, then the structure of each tower's file, then it is run.

    Args:
        folder: that `export_model` wrote; nothing in it is changed.

    Raises:
        ImportError: if the runtime is not installed; the message has the command that installs it.
        ValueError: if a file is missing or has changed, a library is older than the one that wrote the export, or a
            file is not what the contract says. What does not pass a gate is in the report instead.
    """
    folder = Path(folder)
    contract = read_contract(folder)
    target = targets.resolve(contract.target)
    target.check()
    check_versions(target.libraries, contract.versions)
    try:
        written = Report.from_json((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / REPORT} cannot be read: {error}; export the model again") from error
    measured = attrs.evolve(
        read_measured(folder, contract),
        image_names=written.image_names,
        captions=written.captions,
        skipped=written.skipped,
    )
    return measure_export(folder, contract, target, measured, data=written.data)


def measure_export(folder: Path, contract: Contract, target: Target, measured: Measured, *, data: str) -> Report:
    """Return the report of exported files.

    Args:
        folder: where they are.
        contract: of the export; the hashes in it are not looked at.
        target: the runtime.
        measured: inputs and reference.
        data: name of the data set.

    Raises:
        ValueError: if a file is not what the contract says, or cannot be read.
    """
    exported: dict[Tower, Tensor] = {}
    for tower in contract.towers:
        target.inspect(folder / tower.file, tower)
        exported[tower.tower] = _run(folder, contract, target, tower, measured)
    parities = tuple(compare_tower(tower, exported[tower], measured.reference[tower]) for tower in exported)
    ranking = compare_rankings(exported, measured.reference)
    return Report(
        data=data,
        image_names=measured.image_names,
        captions=measured.captions,
        skipped=measured.skipped,
        towers=parities,
        ranking=ranking,
        gates=gates_of(parities, ranking, contract.precision),
    )


def _run(folder: Path, contract: Contract, target: Target, tower: TowerFile, measured: Measured) -> Tensor:
    """Return the embeddings that a file gives for all inputs."""
    inputs = measured.inputs[tower.tower]
    if tower.tower == "image":
        assert contract.image is not None
        inputs = as_taken(inputs, contract.image.input, contract.image.preprocess)
    run = target.open(folder / tower.file, tower)
    batch = tower.input_shape[0] or _DYNAMIC_BATCH
    embeddings = [run(part.contiguous()) for part in torch.split(inputs, batch)]
    wrong = next((tuple(rows.shape) for rows in embeddings if rows.shape[1:] != (contract.embedding_dim,)), None)
    if wrong is not None:
        raise ValueError(
            f"{folder / tower.file} gives embeddings of shape {wrong}, and the contract says that they have "
            f"{contract.embedding_dim} dimensions; export the model again"
        )
    return torch.cat(embeddings)
