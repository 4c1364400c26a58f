"""Metrics of a run: one JSON object a line, one line a logged step, and TensorBoard's files beside it where asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mobileclip import storage
from mobileclip.extras import needed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter


class MetricLog:
    """Appends to a JSONL file; a resumed run first drops what was logged after its checkpoint.

    Args:
        path: the file; created, with its folder, if it is not there.
        resume_step: lines of this step and later ones are dropped, since they are about to be written again.
        tensorboard: folder that TensorBoard reads; none writes no such files.

    Raises:
        ModuleNotFoundError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, *, resume_step: int = 0, tensorboard: Path | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] < resume_step] if path.exists() else []
        storage.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._evaluated = {line["step"] for line in kept if "loss" not in line}
        self._writer = None if tensorboard is None else _summary_writer(tensorboard, resume_step)

    def was_evaluated(self, step: int) -> bool:
        """Return whether an earlier run wrote more about the step than its loss."""
        return step in self._evaluated

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; it is on its way to the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics file; a last line cut short by a kill is left out.

    Raises:
        ValueError: if another line is no JSON.
    """
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON: {error.doc[:80]!r}") from None


def _summary_writer(folder: Path, resume_step: int) -> SummaryWriter:
    with needed("training with TensorBoard's log", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder), purge_step=resume_step)
