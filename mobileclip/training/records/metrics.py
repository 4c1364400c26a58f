"""Metrics of a run: one JSON object a line, one line a logged step, and TensorBoard's files beside it where asked."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from mobileclip import storage
from mobileclip.extras import needed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

    from mobileclip.storage import AnyPath

_MAX_BYTES = 1 << 32
# Of two lines and more.
_TAIL_BYTES = 1 << 16


class MetricLog:
    """Appends to a JSONL file; a resumed run first drops what was logged after its checkpoint.

    A file at a URL cannot be appended to. Its lines are kept in memory, and it is written whole by `written`, at
    every checkpoint: a resumed run makes later lines again anyway.

    Args:
        path: the file, or a URL; a file is created, with its folder, if it is not there.
        resume_step: lines of this step and later ones are dropped, since they are about to be written again.
        tensorboard: folder that TensorBoard reads; none writes no such files.

    Raises:
        ModuleNotFoundError: if TensorBoard is asked for and not installed.
        ValueError: if TensorBoard's folder is a URL.
    """

    def __init__(self, path: AnyPath, *, resume_step: int = 0, tensorboard: AnyPath | None = None) -> None:
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] < resume_step] if storage.exists(path) else []
        lines = [json.dumps(line) + "\n" for line in kept]
        self._lines = lines if storage.is_remote(path) else None
        storage.make_directory_of(path)
        storage.write_text(path, "".join(lines))  # a place that cannot be written to shows now
        self._evaluated = {line["step"] for line in kept if "loss" not in line}
        self._writer = None if tensorboard is None else _summary_writer(tensorboard, resume_step)

    def was_evaluated(self, step: int) -> bool:
        """Return whether an earlier run wrote more about the step than its loss."""
        return step in self._evaluated

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; it is on its way to the disk when this returns, or waits for `written`."""
        line = json.dumps({"step": step, **values}) + "\n"
        if self._lines is not None:
            self._lines.append(line)
        else:
            with storage.local_path(self.path).open("a", encoding="utf-8") as file:
                file.write(line)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def written(self) -> Callable[[], None]:
        """Return what brings the lines of now to the URL, from any thread; a file of this machine has them."""
        if self._lines is None:
            return lambda: None
        return partial(storage.write_text, self.path, "".join(self._lines))


def read_metrics(path: AnyPath) -> list[dict[str, float]]:
    """Return the lines of a metrics file; a last line cut short by a kill is left out.

    Raises:
        ValueError: if another line is no JSON.
        OSError: if the file cannot be read.
    """
    *whole, _ = storage.read_bytes(path, limit=_MAX_BYTES).decode().split("\n")
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON: {error.doc[:80]!r}") from None


def last_metrics(path: Path) -> dict[str, float] | None:
    """Return the last whole line of a metrics file of this machine, or None if there is none yet.

    It reads the end alone, so that a long training can be looked at every second.

    Args:
        path: the file, which may not be there yet.

    Raises:
        ValueError: if the line is no JSON.
        OSError: if the file cannot be read.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        *lines, _ = file.read().split(b"\n")
    try:
        return dict(json.loads(lines[-1])) if lines else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON: {error.doc[:80]!r}") from None


def _summary_writer(folder: AnyPath, resume_step: int) -> SummaryWriter:
    if storage.is_remote(folder):
        raise ValueError(
            f"TensorBoard's files cannot be written to {folder}; leave tensorboard out, or train into a folder"
        )
    with needed("training with TensorBoard's log", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder), purge_step=resume_step)
