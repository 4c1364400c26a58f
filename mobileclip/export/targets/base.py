"""The interface of an export target (check, export, open), and helpers that silence third-party libraries."""

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
# Batch size for testing a dynamic batch: odd, so that a wrongly fixed batch size fails.
EXAMPLE_BATCH = 5


@attrs.frozen(kw_only=True)
class WrittenFile:
    """The precision of an exported file, and the operations that its backend does not run.

    Args:
        compute: precision in which the encoder computes.
        outside: operations that run outside the backend; empty if one runtime runs all operations.
    """

    compute: Precision
    outside: tuple[str, ...] = ()


@attrs.frozen
class Target(ABC):
    """An export format: writes towers as files and runs the files.

    Args:
        suffix: file name suffix.
        libraries: pip packages that write and run the format. The contract records the package versions; `load_export`
            refuses an export if an installed package is older.
        modules: Python modules that `check` imports.
        extra: pip extra of this library that installs the packages.
        int8: representation of int8 in the format.
        computes: float precisions in which the graphs can compute. In other float precisions, a graph only stores the
            weights, and computes in float32.
        text_dtype: dtype of the token ids, unless the layout sets another.
        precisions: precisions that the target writes.
        resizes: whether the files can resize images of any size in the same way as the library.
        cuts_texts: whether the files of text towers can accept rows of several lengths.
        prefers_depthwise: whether the runtime is faster with depthwise convolutions than with grouped convolutions of
            several outputs per channel.
        runtime: name of the runtime that `open` uses on this machine, for the report.
        validates_files: whether the runtime validates files, so that `load_export` opens exports from other machines
            without `trust`.
        concurrent: whether several threads may call the function from `open` at the same time; otherwise a lock
            serialises the calls.
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
    validates_files: bool = False
    concurrent: bool = False

    def check(self) -> None:
        """Raise an error unless all required packages are installed.

        Raises:
            ImportError: if a package is missing; the message gives the install command.
        """
        with needed(f"the target {self.extra!r}", self.extra), quiet():
            for name in self.modules:
                import_module(name)

    def graph(self, tower: TowerExport) -> nn.Module:
        """Return the module to write, in the tower's precision if the format supports it, or else in float32."""
        precision = tower.spec.precision
        if precision == "int8":
            return graph_in_int8(tower, self.int8)
        return tower.graph(dtype_of(precision) if precision in self.computes else torch.float32)

    def written(self, tower: TowerExport, outside: Iterable[str] = ()) -> WrittenFile:
        """Return the contract's description of a file that a target exported from `graph`."""
        precision = tower.spec.precision
        compute = precision if precision in ("int8", *self.computes) else "float32"
        return WrittenFile(compute=compute, outside=tuple(sorted(outside)))

    def elsewhere(self, spec: ExportSpec) -> dict[str, str]:
        """Return the package versions of the separate converter environment; empty if the target needs none.

        Raises:
            ValueError: if the spec does not name the environment, or the converter does not support the spec.
        """
        del spec
        return {}

    def versions(self, spec: ExportSpec) -> dict[str, str]:
        """Return the versions of the packages that write a file, for the contract.

        Raises:
            ValueError: if the converter environment is missing or does not support the spec, see `elsewhere`.
        """
        return {**versions_of(("torch", *self.libraries)), **self.elsewhere(spec)}

    @abstractmethod
    def export(self, tower: TowerExport, path: Path) -> WrittenFile:
        """Write one tower, and return the description of the file for the contract.

        Args:
            tower: tower and its precision; if the precision needs them, also calibration data and the names of the
                layers that stay in float32.
            path: path of the file, or of the folder for formats that write a folder; the target may write further files
                with the same stem to the parent folder.

        Raises:
            ValueError: if the format cannot represent the tower in this precision; the message gives the reason.
        """

    @abstractmethod
    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file on a batch of inputs, and returns all outputs that the contract lists.

        Args:
            path: path of the file.
            tower: entry of the file in the contract.
            device: device of the runtime, such as `cpu` or `cuda`.
            num_threads: number of CPU threads of the runtime; None for the number that PyTorch uses.

        Raises:
            NotRunHereError: if this machine has no runtime for the file's backend.
            ValueError: if the runtime cannot read the file, lacks the device, or does not support the number of
                threads.
        """


def require_able(target: Target, spec: ExportSpec) -> None:
    """Raise an error if a target does not support a spec.

    Args:
        target: target named in the spec.
        spec: options of the export.

    Raises:
        ValueError: if the target does not support a precision (the message lists the supported precisions), cannot
            resize images as requested, or needs a missing converter.
    """
    for precision in spec.precisions:
        if precision not in target.precisions:
            raise ValueError(
                f"the target {spec.target!r} does not support {precision}; choose --precision from "
                f"{', '.join(target.precisions)}, or another target"
            )
    if spec.preprocess == "picture" and not target.resizes:
        raise ValueError(
            f"files of the target {spec.target!r} cannot resize images; choose --preprocess uint8 and resize in the "
            "host, or choose another target"
        )
    target.elsewhere(spec)


def takes_lengths(target: Target, spec: ExportSpec) -> bool:
    """Return whether the spec requests that text towers accept several row lengths, and the target supports this."""
    return spec.text_lengths == "own" and target.cuts_texts


class NotRunHereError(ValueError):
    """Raised if a file needs a device or a backend that this machine does not have."""


def device_of_runtime(device: str, devices: Mapping[str, str], runtime: str) -> str:
    """Return a runtime's name for a device.

    Args:
        device: name of the device in this library.
        devices: the runtime's device names by this library's device names, for all devices of this machine.
        runtime: name of the runtime, for the message.

    Raises:
        ValueError: if the device is not available.
    """
    if device not in devices:
        raise ValueError(
            f"{runtime} has no device {device!r} on this machine, expected one of {', '.join(devices)}. Other devices "
            "need a build of the runtime and a driver that support them"
        )
    return devices[device]


def refuse_threads(num_threads: int | None, runtime: str) -> None:
    """Raise an error if the caller sets a number of threads, for a runtime that does not accept one.

    Raises:
        ValueError: if `num_threads` is not None.
    """
    if num_threads is not None:
        raise ValueError(f"{runtime} chooses the number of threads itself; leave num_threads out")


targets: Registry[Target] = Registry("export_target")
"""Targets by name; other packages add targets here or by an entry point in `mobileclip.export_target`."""


def versions_of(libraries: tuple[str, ...]) -> dict[str, str]:
    """Return the installed versions of pip packages by name."""
    return {library: metadata.version(library) for library in libraries}


def check_versions(libraries: tuple[str, ...], recorded: Mapping[str, str]) -> None:
    """Raise an error if a library is older than the version that wrote an export.

    Args:
        libraries: pip packages that the target needs.
        recorded: package versions in the contract, by name.

    Raises:
        ValueError: if a library is older, or the contract lacks its version; the message gives the update command.
    """
    for library, installed in versions_of(libraries).items():
        if library not in recorded:
            raise ValueError(
                f"the contract has no version of {library}, so it is unknown whether this machine can run the export; "
                "export the model again"
            )
        if _release(installed) < _release(recorded[library]):
            raise ValueError(
                f"{library} {installed} is older than {recorded[library]}, which wrote this export; "
                f"update with: pip install '{library}>={recorded[library].partition('+')[0]}'"
            )


def _release(version: str) -> tuple[int, int]:
    """Return the major and the minor number of a version; a new file format changes one of the two numbers."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        raise ValueError(f"{version!r} is not a package version, expected numbers such as 1.2; export the model again")
    return int(numbers[1]), int(numbers[2])


@contextmanager
def readable(path: Path, runtime: str, update: str, said: IO[bytes] | None = None) -> Iterator[None]:
    """Convert the error of a runtime that cannot read a file into a ValueError with the file's path.

    Args:
        path: path of the file.
        runtime: name of the runtime, with its version if known.
        update: package or system to update, or the update command.
        said: file with the runtime's output on standard error, from `kept_stderr`; None if not captured.

    Raises:
        ValueError: in place of the runtime's error, unless the error is a fault of the machine.
    """
    try:
        yield
    except Exception as error:
        raise_machine_fault(error)
        words = f"{type(error).__name__}: {printable(error)} {'' if said is None else text_of(said)}".rstrip()
        raise ValueError(
            f"{path} cannot be read by {runtime} ({words}); update the runtime ({update}), or export the model again"
        ) from error


_STANDARD_ERROR = 2


@contextmanager
def kept_stderr() -> Iterator[IO[bytes]]:
    """Redirect the standard error of the whole process to a temporary file, and yield the file."""
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
    """Return the text in a file from `kept_stderr`."""
    file.seek(0)
    return file.read().decode(errors="replace").strip()


def _memory() -> IO[bytes]:
    """Return a file in memory on Linux, because ExecuTorch aborts on a full disk; elsewhere, a temporary file."""
    return os.fdopen(os.memfd_create("errors"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs and warnings of libraries during import and use.

    torchao reports missing kernels for other processors, and PyTorch warns of outdated code in torchao and ExecuTorch.
    ExecuTorch changes the root logger; `quiet` restores the logger.
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
