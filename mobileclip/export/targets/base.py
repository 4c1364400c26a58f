"""The interface of an export target: check, export, open; and what silences the libraries of several targets."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import IO

import attrs
import torch
from torch import Tensor, nn

from mobileclip.export.contract import TowerFile
from mobileclip.export.int8 import Int8Form, graph_in_int8
from mobileclip.export.spec import ExportSpec, TextDtype
from mobileclip.export.towers import TowerExport
from mobileclip.extras import needed
from mobileclip.hardware import Precision, dtype_of
from mobileclip.machine import raise_machine_fault
from mobileclip.registry import Registry
from mobileclip.storage import printable
from mobileclip.terminal.silence import SILENCING

Run = Callable[[Tensor], tuple[Tensor, ...]]
CPU = "cpu"
# What a dynamic batch is tried with: uneven, so that one that only pretends to be dynamic shows.
EXAMPLE_BATCH = 5


@attrs.frozen(kw_only=True)
class Written:
    """The precision of an exported file, and the operations that its backend does not run.

    Args:
        compute: what the encoder computes in.
        outside: operations that a backend leaves to others; none where one runtime computes all.
    """

    compute: Precision
    outside: tuple[str, ...] = ()


@attrs.frozen
class Target(ABC):
    """A format: how a tower is written in it, and run.

    Args:
        suffix: of a tower's file.
        libraries: distributions that write and run it; their versions are in the contract, and older ones do not run
            it.
        modules: what is imported of them.
        extra: of this library, which installs them.
        int8: how operations of int8 are written in it.
        computes: precisions of floats that its graphs are in; those of others are in float32, whatever is stored.
        text_dtype: what token ids come in as.
        precisions: those that it writes.
        resizes: whether its files can take pictures of any size, and resize them as the library does.
        cuts_texts: whether its text files can take rows of several lengths.
        prefers_depthwise: whether its runtime is faster at depthwise convolutions than at those of several outputs per
            channel.
        runtime: what `open` runs a file with on this machine, for the report.
        vouched: whether a stranger's file may be opened, since the runtime validates it; others are opened with trust.
        concurrent: whether several threads may be in what `open` returns at once; else they take turns.
    """

    suffix: str = ""
    libraries: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    extra: str = ""
    int8: Int8Form = Int8Form()
    computes: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
    text_dtype: TextDtype = "int64"
    precisions: tuple[Precision, ...] = ("float32", "float16")
    resizes: bool = False
    cuts_texts: bool = False
    prefers_depthwise: bool = False
    runtime: str = ""
    vouched: bool = False
    concurrent: bool = False

    def check(self) -> None:
        """Make sure that everything is installed.

        Raises:
            ImportError: if something is missing; the message has the command that installs it.
        """
        with needed(f"the target {self.extra!r}", self.extra), quiet():
            for name in self.modules:
                import_module(name)

    def graph(self, tower: TowerExport) -> nn.Module:
        """Return the module to write, in the tower's precision as far as the format computes in it."""
        precision = tower.spec.precision
        if precision == "int8":
            return graph_in_int8(tower, self.int8)
        return tower.graph(dtype_of(precision) if precision in self.computes else torch.float32)

    def written(self, tower: TowerExport, outside: Iterable[str] = ()) -> Written:
        """Return what a contract says of a tower that was written as `graph` gives it."""
        precision = tower.spec.precision
        compute = precision if precision in ("int8", *self.computes) else "float32"
        return Written(compute=compute, outside=tuple(sorted(outside)))

    def elsewhere(self, spec: ExportSpec) -> dict[str, str]:
        """Return the versions of what writes its files in another environment; none where this one does.

        Raises:
            ValueError: if the spec names no such environment, or asks for what that does not write.
        """
        del spec
        return {}

    def versions(self, spec: ExportSpec) -> dict[str, str]:
        """Return the versions of what writes a file, for the contract.

        Raises:
            ValueError: as `elsewhere`.
        """
        return {**versions_of(("torch", *self.libraries)), **self.elsewhere(spec)}

    @abstractmethod
    def export(self, tower: TowerExport, path: Path) -> Written:
        """Write one tower, and return what a contract says of the file.

        Args:
            tower: of a precision, with what that needs: calibration data, and the layers that stay in float32.
            path: of the file to write, or of the folder where the format is one; further files may be put beside it,
                named after the tower.

        Raises:
            ValueError: if the format cannot hold the tower in this precision; the message says why.
        """

    @abstractmethod
    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file in its own runtime, from one batch of inputs to its outputs in order.

        Args:
            path: of the file.
            tower: what the contract says of it.
            device: where the runtime computes.
            num_threads: of the processor that it computes with; None for as many as PyTorch has.

        Raises:
            NotRunHereError: if no runtime of the file's backend is here.
            ValueError: if the runtime cannot read the file, has no such device here, or cannot take so many threads.
        """


def require_able(target: Target, spec: ExportSpec) -> None:
    """Refuse what a target does not write.

    Args:
        target: the one of the spec.
        spec: what is asked for.

    Raises:
        ValueError: if it has other precisions, which the message names, its files do not resize, or what writes them is
            not there.
    """
    for precision in spec.precisions:
        if precision not in target.precisions:
            raise ValueError(
                f"the target {spec.target!r} has no precision {precision}; choose --precision "
                f"{', '.join(target.precisions)}, or another target"
            )
    if spec.preprocess == "picture" and not target.resizes:
        raise ValueError(
            f"files of the target {spec.target!r} do not resize pictures; choose --preprocess uint8, and resize in "
            "the host, or another target"
        )
    target.elsewhere(spec)


def takes_lengths(target: Target, spec: ExportSpec) -> bool:
    """Return whether text files take rows of several lengths, as far as target and spec say."""
    return spec.text_lengths == "own" and target.cuts_texts


class NotRunHereError(ValueError):
    """A file is for a device or a backend that this machine does not have."""


def device_called(device: str, devices: Mapping[str, str], runtime: str) -> str:
    """Return what a runtime calls a device.

    Args:
        device: as a person calls it.
        devices: those that are here, from what a person calls them to what the runtime does.
        runtime: for the message.

    Raises:
        ValueError: if it is not here.
    """
    if device not in devices:
        raise ValueError(
            f"{runtime} has no device {device!r} here; it has {', '.join(devices)}. Others need a build of the runtime "
            "and a driver that know them"
        )
    return devices[device]


def refuse_threads(num_threads: int | None, runtime: str) -> None:
    """Refuse a number of threads where a runtime takes what it likes.

    Raises:
        ValueError: if one was asked for.
    """
    if num_threads is not None:
        raise ValueError(f"{runtime} chooses its number of threads by itself; leave num_threads out")


targets: Registry[Target] = Registry("export_target")
"""Targets by name; third parties add theirs here or by an entry point in `mobileclip.export_target`."""


def versions_of(libraries: tuple[str, ...]) -> dict[str, str]:
    """Return the installed versions of distributions."""
    return {library: metadata.version(library) for library in libraries}


def check_versions(libraries: tuple[str, ...], recorded: Mapping[str, str]) -> None:
    """Refuse libraries that are older than those that wrote an export: they may read it wrongly, or not at all.

    Args:
        libraries: those that the target needs.
        recorded: of the contract.

    Raises:
        ValueError: if one is older, or the contract lacks its version; the message has the command that mends it.
    """
    for library, installed in versions_of(libraries).items():
        if library not in recorded:
            raise ValueError(f"the contract has no version of {library}, so nobody knows what can run the export")
        if _release(installed) < _release(recorded[library]):
            raise ValueError(
                f"{library} {installed} is older than {recorded[library]}, which wrote this export; "
                f"update with: pip install '{library}>={recorded[library].partition('+')[0]}'"
            )


def _release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version: formats change with these."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        raise ValueError(f"the contract names the version {version!r}, which is none; export the model again")
    return int(numbers[1]), int(numbers[2])


@contextmanager
def readable(path: Path, runtime: str, update: str, said: IO[bytes] | None = None) -> Iterator[None]:
    """Make an error of the file of whatever a runtime raises that cannot read it: their errors have no common base.

    Args:
        path: of the file.
        runtime: its name, and its version where it has one.
        update: what to update, or the command that does.
        said: what it has written to standard error, see `kept_stderr`.

    Raises:
        ValueError: in place of what was raised, if that is no fault of the machine.
    """
    try:
        yield
    except Exception as error:
        raise_machine_fault(error)
        words = f"{type(error).__name__}: {printable(error)} {'' if said is None else text_of(said)}".rstrip()
        raise ValueError(
            f"{path} cannot be read by {runtime} ({words}); update it ({update}), or export the model again"
        ) from error


_STANDARD_ERROR = 2


@contextmanager
def kept_stderr() -> Iterator[IO[bytes]]:
    """Yield a file of what is written to standard error meanwhile, by whatever part of the process."""
    with SILENCING, _memory() as file:
        sys.stderr.flush()
        before = os.dup(_STANDARD_ERROR)
        os.dup2(file.fileno(), _STANDARD_ERROR)
        try:
            yield file
        finally:
            os.dup2(before, _STANDARD_ERROR)
            os.close(before)


def text_of(file: IO[bytes]) -> str:
    """Return what was written to the file so far."""
    file.seek(0)
    return file.read().decode(errors="replace").strip()


def _memory() -> IO[bytes]:
    """Return a file in memory, where the system has such: ExecuTorch ends a process that writes to a full disk."""
    return os.fdopen(os.memfd_create("errors"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what libraries log and warn of while they are imported and work.

    torchao tells of its own kernels, for other processors, that it cannot load, and PyTorch of what torchao and
    ExecuTorch do not do as it wants by now. ExecuTorch sets up the root logger, and that is undone.
    """
    with SILENCING:
        root = logging.getLogger()
        level, disabled, handlers = root.level, root.manager.disable, list(root.handlers)
        logging.disable(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(disabled)
            root.setLevel(level)
            root.handlers[:] = handlers
