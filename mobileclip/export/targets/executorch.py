"""ExecuTorch with XNNPACK: programs for phones and small devices, as `.pte` files."""

from __future__ import annotations

import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from mobileclip.export.contract import TowerFile
from mobileclip.export.int8 import EVERY_OUTPUT, Int8Form, dequantize_for_each_user
from mobileclip.export.targets.base import (
    CPU,
    Run,
    Target,
    WrittenFile,
    device_of_runtime,
    kept_stderr,
    quiet,
    readable,
)
from mobileclip.export.towers import TowerExport, set_attention, written_out_attention
from mobileclip.hardware import Precision, threads_or_default

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager


METHOD = "forward"


@attrs.frozen
class ExecuTorchTarget(Target):
    """ExecuTorch programs: XNNPACK runs the operations that it supports, and ExecuTorch's kernels run all others.

    float16 programs compute in float16. int8 quantisation is static. The target does not support bfloat16, because
    XNNPACK has only linear layers in bfloat16. The format stores no names of inputs and outputs; the contract has the
    names.
    """

    suffix: str = ".pte"
    libraries: tuple[str, ...] = ("executorch",)
    modules: tuple[str, ...] = ("torchao", "executorch.exir", "executorch.runtime")
    extra: str = "executorch"
    int8: Int8Form = Int8Form(signed=True, stores_weights=True, outputs=EVERY_OUTPUT, largest_weight=127)
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8")
    cuts_texts: bool = True
    runtime: str = "executorch"

    def export(self, tower: TowerExport, path: Path) -> WrittenFile:
        """Write one tower."""
        program = lowered(tower, self.graph(tower))
        path.write_bytes(program.buffer)
        (plan,) = program.executorch_program.execution_plan
        return self.written(tower, {".".join(filter(None, (one.name, one.overload))) for one in plan.operators})

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with ExecuTorch on the CPU.

        Raises:
            ValueError: if the file cannot be read, or the process already uses a different number of threads. The
                returned function raises ValueError for a batch that is larger than the file accepts.
        """
        device_of_runtime(device, {CPU: CPU}, self.runtime)
        take_threads(num_threads)
        program = _load(path)
        largest = LARGEST_BATCH if tower.input_shape[0] is None else 1

        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            if len(inputs) > largest:
                raise ValueError(
                    f"{path} accepts batches of at most {largest} inputs, got {len(inputs)}; pass smaller batches"
                )
            # The method is already loaded. The program must outlive its method.
            return tuple(program.load_method(METHOD).execute([inputs.contiguous()]))

        return run


def _load(path: Path) -> Any:
    """Load a program into memory, so that other processes may replace the file later."""
    with quiet():
        from executorch.runtime import Runtime
    with kept_stderr() as said, readable(path, "ExecuTorch", "pip install -U executorch", said):
        program = Runtime.get().load_program(path.read_bytes())
        program.load_method(METHOD)
    return program


# The runtime allocates memory for the largest batch when a program is opened.
LARGEST_BATCH = 16


def lowered(tower: TowerExport, graph: nn.Module) -> ExecutorchProgramManager:
    """Lower a tower to an ExecuTorch program, whose `buffer` is the content of a `.pte` file.

    Args:
        tower: tower to export.
        graph: graph of the tower from the target; the function changes the graph in place.
    """
    # XNNPACK has no fused attention operation.
    set_attention(graph, written_out_attention)
    if tower.spec.precision == "float16":
        _normalize_in_float32(graph)
    largest = LARGEST_BATCH if tower.spec.dynamic_batch else None
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = tower.program_of(graph, largest_batch=largest)
        if tower.spec.precision == "int8":
            dequantize_for_each_user(program)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return edge.to_executorch()


def _normalize_in_float32(graph: nn.Module) -> None:
    """Make float16 layer norms compute in float32 and return float16.

    XNNPACK has no layer norm, and ExecuTorch's layer norm is wrong in float16 from 256 channels on (release 1.5.1, x86:
    outputs for 256 random numbers are four times too large, and text embeddings of MobileCLIP-S0 have a cosine of 0.05
    with the float32 embeddings).
    """
    for module in graph.modules():
        if isinstance(module, nn.LayerNorm) and module.weight.dtype == torch.float16:
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))
            module.register_forward_hook(lambda _module, _inputs, output: output.half())


_taking = threading.Lock()
_taken: list[int] = []


def take_threads(num_threads: int | None) -> None:
    """Set the number of threads for all programs in the process.

    Open programs keep the thread pool that they were opened with, so the first program determines the number.

    Args:
        num_threads: number of threads, at least 1; None for the number that the first program set, or for PyTorch's
            number if no program has been opened.

    Raises:
        ValueError: if the first program uses a different number.
    """
    count = threads_or_default(num_threads)
    with _taking:
        if not _taken:
            # The import prints messages about the CPU.
            with quiet(), kept_stderr():
                bindings = import_module("executorch.extension.pybindings.portable_lib")
                if bindings._threadpool_get_thread_count() != count:  # noqa: SLF001  there is no public function
                    bindings._unsafe_reset_threadpool(count)  # noqa: SLF001
            _taken.append(count)
        elif num_threads is not None and count != _taken[0]:
            raise ValueError(
                f"ExecuTorch has used {_taken[0]} threads in this process since the first program was opened, but "
                f"num_threads is {count}; load the export in another process, or pass {_taken[0]}"
            )
