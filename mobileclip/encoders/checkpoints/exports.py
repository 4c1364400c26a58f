"""What was exported for another runtime, a folder or a repository: it holds tensors as well, but no checkpoint."""

from __future__ import annotations

from pathlib import Path

from mobileclip import storage
from mobileclip.encoders.checkpoints.published import packaged
from mobileclip.strict import parse_json
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.errors import shown

CONTRACT = "mobileclip.json"
"""File by which an export is known."""

RUNTIMES = {
    "coreml": "Core ML",
    "executorch": "ExecuTorch",
    "litert": "LiteRT",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch's `torch.export`",
}
"""What runs the files of the targets that the library has."""

_MOST_BYTES = 1 << 24


def is_export(place: str | Path) -> bool:
    """Return whether a folder on this machine holds an export."""
    return packaged(place) is None and (Path(place) / CONTRACT).is_file()


def require_no_export(folder: Path) -> None:
    """Refuse a folder that holds an export where a checkpoint is needed.

    Raises:
        CheckpointError: if it holds one; the message has its target, its runtime, and what to do.
    """
    if is_export(folder):
        place = storage.printable(folder)
        raise no_checkpoint(place, folder / CONTRACT, f"`mobileclip verify {place}` runs it")


def no_checkpoint(place: str, contract: Path, run: str) -> CheckpointError:
    """Return the refusal of an export where a checkpoint is needed.

    Args:
        place: of the export, as a person names it.
        contract: the export's, on this machine.
        run: how it is run, as a sentence.
    """
    return CheckpointError(
        f"{place} is an export{_target(contract)}, and no checkpoint; {run}. To load the model, give the checkpoint "
        "that it was exported from"
    )


def _target(path: Path) -> str:
    """Return what a contract says of its target; nothing where it is damaged, which `mobileclip verify` tells."""
    try:
        contract = parse_json(storage.read_bytes(path, limit=_MOST_BYTES))
    except (OSError, ValueError):
        return ""
    target = contract.get("target") if isinstance(contract, dict) else None
    if not isinstance(target, str):
        return ""
    runtime = RUNTIMES.get(target)
    return f" for the target {shown(target)}" + ("" if runtime is None else f", which {runtime} runs")
