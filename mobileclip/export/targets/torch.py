"""Exported programs of `torch.export`, for PyTorch without this library and for further lowering.

For layouts with files that end in `.ts`, the target writes TorchScript instead.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.int8 import Int8Form
from mobileclip.export.layouts import TORCHSCRIPT
from mobileclip.export.targets.base import (
    CPU,
    EXAMPLE_BATCH,
    Run,
    Target,
    WrittenFile,
    device_of_runtime,
    quiet,
    readable,
)
from mobileclip.export.towers import TowerExport
from mobileclip.hardware import Precision, dtype_of, threads_or_default, torch_threads

# Matches in-place operations, which files cannot contain, such as `aten.relu_.default` of `nn.ReLU(inplace=True)`. Does
# not match `aten.__and__.Tensor`.
_IN_PLACE = re.compile(r"aten\.\w*[a-z0-9]_\.\w+")


@attrs.frozen
class TorchTarget(Target):
    """Files of `torch.export.save`, opened with `torch.export.load`; int8 quantisation is static.

    In eager mode, PyTorch rounds the values of int8 programs to int8 but multiplies in float32; torch.compile replaces
    both operations with int8 kernels.
    """

    suffix: str = ".pt2"
    libraries: tuple[str, ...] = ("torch",)
    int8: Int8Form = Int8Form(stores_weights=True)
    precisions: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8")
    cuts_texts: bool = True
    prefers_depthwise: bool = True
    runtime: str = "torch"
    concurrent: bool = True

    def export(self, tower: TowerExport, path: Path) -> WrittenFile:
        """Write one tower, which computes in the precision of the spec."""
        if path.suffix == TORCHSCRIPT:
            _save_torchscript(tower, path)
            return self.written(tower)
        program = tower.program_of(self.graph(tower))
        if any(_IN_PLACE.fullmatch(str(node.target)) for node in program.graph.nodes):
            with quiet():
                program = program.run_decompositions({})
        # Drop the example input, which would be stored as a pickle and is not needed.
        program.example_inputs = None
        save_pt2(program, path)
        return self.written(tower)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with PyTorch."""
        del tower
        device_of_runtime(device, {CPU: CPU}, self.runtime)
        threads_or_default(num_threads)
        is_script = path.suffix == TORCHSCRIPT
        load: Callable[[], torch.nn.Module] = partial(torch.jit.load, path, CPU) if is_script else load_pt2(path).module
        with _readable(path):
            module = load()

        @torch.no_grad()
        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            with torch_threads(num_threads):
                outputs: Tensor | tuple[Tensor, ...] = module(inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return run


class _Cut(torch.nn.Module):
    """Truncates token ids to the context length before the graph, for hosts that pass longer rows."""

    def __init__(self, graph: torch.nn.Module, context_length: int) -> None:
        super().__init__()
        self.graph, self.context_length = graph, context_length

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings."""
        embeddings: Tensor = self.graph(tokens[:, : self.context_length])
        return embeddings


def _save_torchscript(tower: TowerExport, path: Path) -> None:
    example = torch.zeros(EXAMPLE_BATCH, *tower.input_shape, dtype=getattr(torch, tower.input_dtype))
    graph = _Cut(tower.graph(dtype_of(tower.spec.precision)), tower.input_shape[-1])
    content = io.BytesIO()
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, content)
    path.write_bytes(content.getbuffer())


_OPERATIONS = "torch.ao.quantization.fx._decomposed"


def register_operations() -> None:
    """Register PyTorch's quantisation operations, which int8 files use."""
    with quiet():
        import_module(_OPERATIONS)


def save_pt2(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program to a file.

    Raises:
        OSError: if the file cannot be written.
    """
    content = io.BytesIO()  # PyTorch aborts the process if it cannot write to a file
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def load_pt2(path: Path) -> torch.export.ExportedProgram:
    """Load an exported program from a file; loading can run arbitrary code from the file.

    Raises:
        ValueError: if PyTorch cannot read the file.
    """
    register_operations()
    with _readable(path), path.open("rb") as stream:
        return torch.export.load(stream)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    with readable(path, f"PyTorch {torch.__version__}", "pip install -U torch"), quiet():
        yield
