"""Errors of the machine, such as a full disk or memory, which would also occur with any other sample or file.

Code that catches every `Exception` of a sample, file or unit first calls `raise_machine_fault`, which raises a
`ResourceExhaustedError` for errors of the machine, so that they end the run.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Literal

import attrs

Kind = Literal["disk", "shared_memory", "memory", "files", "processes"]

_ADVICE: dict[Kind, str] = {
    "disk": "the disk is full; free some space, or write to another disk",
    "shared_memory": "shared memory (/dev/shm) is full; give a container more with `docker run --shm-size=2g` or "
    "`--ipc=host`, or use fewer num_workers or a smaller batch_size",
    "memory": "the memory is full; add memory to the machine or container, or use fewer workers or a smaller "
    "batch_size",
    "files": "too many files are open; allow more with `ulimit -n 65536` (`docker run --ulimit nofile=65536`), or "
    "choose fewer workers",
    "processes": "no more processes or threads can be started; allow more with `ulimit -u` "
    "(`docker run --pids-limit`), or choose fewer workers",
}
# EIO is not in this table: a bad sector affects only the files on it. Only writing raises EFBIG and EROFS.
_KINDS: dict[int, Kind] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), "disk"),
    errno.ENOMEM: "memory",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "files"),
}
# Messages of torch and multiprocessing about system errors, with the error number at the end.
_OF_TORCH = re.compile(r"unable to .* \((\d+)\)\s*$", re.DOTALL)
_TEXTS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"killed by signal: Bus error"), "shared_memory"),
    (re.compile(r"received \d+ items of ancdata"), "files"),
    (re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory"), "memory"),
    (re.compile(r"can't start new thread"), "processes"),
)
# Words of a line that explains how to resume, for example from which step.
_GOES_ON = re.compile(r"\bagain\b|\bsame command\b")
# FFmpeg's error numbers depend on the contents of a file.
_OF_CONTENT = ("av.",)
_MOST_LETTERS = 300
_MOST_CAUSES = 10


@attrs.frozen(kw_only=True)
class MachineFault:
    """An exhausted resource of the machine: disk, memory, open files or processes.

    Args:
        kind: exhausted resource: `disk`, `shared_memory`, `memory`, `files` (open files) or `processes`.
        error_message: message of the original error.
    """

    kind: Kind
    error_message: str

    @property
    def may_pass(self) -> bool:
        """Whether a retry may succeed: other processes may free memory and files, but a disk stays full."""
        return self.kind in ("memory", "files", "processes")

    def __str__(self) -> str:
        return f"{_ADVICE[self.kind]} ({self.error_message})"


class ResourceExhaustedError(OSError):
    """Raised if the machine runs out of memory, disk space, open files or processes; the message suggests a remedy."""

    fault: MachineFault | None = None


def machine_fault(error: BaseException) -> MachineFault | None:
    """Return the exhausted resource that caused an error; None for other causes.

    Args:
        error: any exception; the function also inspects its causes.
    """
    seen: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if seen is None:
            return None
        if isinstance(seen, ResourceExhaustedError):
            return seen.fault
        kind = _kind(seen)
        if kind is not None:
            text = " ".join(str(seen).split())[:_MOST_LETTERS]
            return MachineFault(kind=kind, error_message=text or type(seen).__name__)
        reason = getattr(seen, "reason", None)  # of urllib's errors
        seen = reason if isinstance(reason, BaseException) else seen.__cause__ or seen.__context__
    return None


def raise_machine_fault(error: BaseException, doing: str = "") -> None:
    """Raise if the machine caused an error; otherwise return, so that the caller can handle the error.

    Args:
        error: caught exception.
        doing: description of the failed action, which the function appends to the message; empty for no description.

    Raises:
        ResourceExhaustedError: if the machine caused the error.
    """
    fault = machine_fault(error)
    if fault is None:
        return
    if isinstance(error, ResourceExhaustedError) and not doing:
        raise error
    raised = ResourceExhaustedError(
        f"{error if isinstance(error, ResourceExhaustedError) else fault}{doing and f', {doing}'}"
    )
    raised.fault = fault
    raise raised from error


def machine_line(error: BaseException, kept: str) -> str | None:
    """Return a command's error message if the machine caused an error; None for other errors.

    Args:
        error: any exception; a message that already has a remedy stays unchanged.
        kept: description of the saved state and of the way to resume, appended if the disk is full.
    """
    fault = machine_fault(error)
    if fault is None:
        return None
    is_plain = isinstance(error, OSError) and error.errno is not None and error.strerror == os.strerror(error.errno)
    line = str(error) if isinstance(error, (ValueError, OSError)) and not is_plain else str(fault)
    return line if fault.kind != "disk" or _GOES_ON.search(line) else f"{line}; {kept}"


def _kind(error: BaseException) -> Kind | None:
    if type(error).__module__.startswith(_OF_CONTENT):
        return None
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError):
        return None if error.errno is None else _KINDS.get(error.errno)
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    found = _OF_TORCH.match(text)
    kind = None if found is None else _KINDS.get(int(found[1]))
    if kind == "disk":
        return "shared_memory"  # torch's files in shared memory
    return kind or next((kind for pattern, kind in _TEXTS if pattern.search(text)), None)
