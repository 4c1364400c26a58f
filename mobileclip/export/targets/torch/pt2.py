"""Exported programs, as PyTorch writes and reads them: it runs what is in one, so only trusted ones are read."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from mobileclip.export.targets.quiet import quiet
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import printable

_OPERATIONS = "torch.ao.quantization.fx._decomposed"


def register_operations() -> None:
    """Let PyTorch know the operations that round, which are its own, and which files of int8 are made of."""
    with quiet():
        import_module(_OPERATIONS)


def save_pt2(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program to a file.

    Raises:
        OSError: if it cannot be written.
    """
    content = io.BytesIO()  # where PyTorch cannot write to a file, it ends the process
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def load_pt2(path: Path) -> torch.export.ExportedProgram:
    """Return the program in a file, which may run what its author likes.

    Raises:
        ValueError: if PyTorch cannot read it.
    """
    register_operations()
    with readable(path), path.open("rb") as stream:
        return torch.export.load(stream)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say what PyTorch makes of a file that it cannot read as an error of the file.

    Raises:
        ValueError: whatever a damaged file, or a newer format, makes PyTorch raise.
    """
    try:
        with quiet():
            yield
    except Exception as error:
        raise_machine_fault(error)
        raise ValueError(
            f"{path} cannot be read by PyTorch {torch.__version__} ({type(error).__name__}: {printable(error)}); "
            "update PyTorch, or export the model again"
        ) from error
