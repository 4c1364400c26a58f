"""Silences OpenVINO and NNCF: standard output, loggers and telemetry."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobileclip.terminal.silence import SILENCING

PROCESSOR_OPTIONS = {"SNIPPETS_MODE": "DISABLE"}
"""Of compiling for a processor: without OpenVINO's own fusing, which release 2026.4 ends the process in for some
towers, with one thread or texts of any length; the others take no longer without it, and texts less."""

_TELEMETRY = "openvino_telemetry"


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be sent or printed inside.

    Both libraries report every import and every call, and do without where the package that does so is missing: it is
    hidden, unless somebody has imported it before. NNCF draws bars of its progress on standard output.
    """
    with SILENCING:
        logger_class, hidden = logging.getLoggerClass(), _TELEMETRY not in sys.modules
        if hidden:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails, as of what is not there
        try:
            with redirect_stdout(io.StringIO()):
                yield
        finally:
            if hidden:
                del sys.modules[_TELEMETRY]
            # NNCF makes its own the class of all loggers to come.
            logging.setLoggerClass(logger_class)


def import_quietly(name: str) -> Any:
    """Return the module `openvino` or `nncf`.

    Raises:
        ImportError: if it is not installed.
    """
    with quiet():
        return import_module(name)


def openvino_core() -> Any:
    """Return the runtime, which is one of the process and stays.

    With the last one go the libraries of its devices. If that happens in a thread while a model is replaced, the
    process ends at the next signal (release 2026.4). It reads weights whole: not every system lets files that are
    mapped be replaced or removed.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    with SILENCING:
        return _core()


@cache
def _core() -> Any:
    core = import_quietly("openvino").Core()
    core.set_property({"ENABLE_MMAP": False})
    return core


def converted(program: ExportedProgram) -> Any:
    """Return a program of `torch.export` as OpenVINO's model.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    openvino = import_quietly("openvino")
    with quiet(), warnings.catch_warnings():
        # PyTorch's own deprecations of its trees, which the conversion walks.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return openvino.convert_model(program)


def openvino_model(tower: nn.Module, example: Tensor, *, lengths: bool, any_batch: bool = False) -> Any:
    """Return a tower as OpenVINO's model.

    Args:
        tower: in evaluation mode, in float32.
        example: a batch, as it will come.
        lengths: whether texts may be shorter than the example's.
        any_batch: whether the batch may have any size; then the example has several inputs.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    sides = {0: torch.export.Dim("batch")} if any_batch else {}
    sides |= {1: torch.export.Dim("tokens", min=2, max=example.shape[1])} if lengths else {}
    return converted(torch.export.export(tower, (example,), dynamic_shapes=(sides,) if sides else None, strict=False))
