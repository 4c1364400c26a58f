"""A part in a process of its own: one that fails, dies or takes too long does not keep the others from running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from benchmarks.gpu.results import Outcome
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import printable
from mobileclip.terminal.interruption import leave_to_parent


def run_apart(measure: Callable[[], Outcome], *, limit_seconds: float, log: Path) -> Outcome:
    """Return what a part measured, or why it did not.

    Args:
        measure: can be pickled; runs in a process, with a session of its own that ends with all it started.
        limit_seconds: after so long it is ended.
        log: the file that gets what the process prints.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        path = Path(folder) / "outcome.json"
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(measure, path, log))
        process.start()
        try:
            process.join(limit_seconds)
            late = process.is_alive()
        finally:
            _end(process)
        outcome = from_json(path.read_text(encoding="utf-8"), Outcome) if path.exists() else None
    if late:
        outcome = Outcome(error=f"took longer than {limit_seconds:.0f} seconds; see {log}")
    elif outcome is None:
        outcome = Outcome(error=f"the process ended with status {process.exitcode}; see {log}")
    return attrs.evolve(outcome, seconds=round(time.monotonic() - started, 1))


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process and all that it started."""
    assert process.pid is not None
    # A process that has only just begun has no session of its own yet.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _work(measure: Callable[[], Outcome], path: Path, log: Path) -> None:
    os.setsid()
    leave_to_parent(lambda: os.killpg(0, signal.SIGKILL))
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        outcome = measure()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the report has it
        import traceback

        traceback.print_exc()
        outcome = Outcome(error=printable(f"{type(error).__name__}: {error}"))
    path.write_text(to_json(outcome), encoding="utf-8")
