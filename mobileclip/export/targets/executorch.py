"""ExecuTorch, with XNNPACK: programs for phones and small devices, as `.pte` files."""

from __future__ import annotations

import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from mobileclip.export.contract import TowerFile
from mobileclip.export.int8 import EVERY_OUTPUT, Int8Form, dequantize_for_each_user, graph_in_int8
from mobileclip.export.targets.base import CPU, Run, Target, Written, device_called, kept_stderr, quiet, text_of
from mobileclip.export.towers import TowerExport, set_attention, written_out_attention
from mobileclip.extras import needed
from mobileclip.hardware import Precision, threads_or_default

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager


METHOD = "forward"


@attrs.frozen
class ExecuTorchTarget(Target):
    """ExecuTorch from an exported program, with XNNPACK for what it can do and ExecuTorch's own kernels for the rest.

    Programs in float16 compute in float16. int8 is static, see `lower`. There is no bfloat16: XNNPACK has only linear
    layers of it. The format names no inputs and outputs; the contract has the names.
    """

    suffix: str = ".pte"
    libraries: tuple[str, ...] = ("executorch",)
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8")
    cuts_texts: bool = True
    runtime: str = "executorch"

    def check(self) -> None:
        """Make sure that everything is installed.

        Raises:
            ImportError: if something is missing; the message has the command that installs it.
        """
        with needed("the target 'executorch'", "executorch"), quiet():
            for name in ("torchao", "executorch.exir", "executorch.runtime"):
                import_module(name)

    def export(self, tower: TowerExport, path: Path) -> Written:
        """Write one tower."""
        precision = tower.spec.precision
        program = lowered(tower, torch.float16 if precision == "float16" else torch.float32)
        path.write_bytes(program.buffer)
        (plan,) = program.executorch_program.execution_plan
        names = {".".join(filter(None, (one.name, one.overload))) for one in plan.operators}
        return Written(compute=precision, outside=tuple(sorted(names)))

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with ExecuTorch on the processor.

        Raises:
            ValueError: if it cannot be read, or the process has another number of threads already; and, when it runs,
                if the batch is larger than the file takes.
        """
        device_called(device, {CPU: CPU}, self.runtime)
        take_threads(num_threads)
        program = _load(path)
        largest = LARGEST_BATCH if tower.input_shape[0] is None else 1

        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            if len(inputs) > largest:
                raise ValueError(f"{path} takes up to {largest} inputs at once, and got {len(inputs)}; give fewer")
            # The program has loaded it before. It must not be freed before its method is.
            return tuple(program.load_method(METHOD).execute([inputs.contiguous()]))

        return run


def _load(path: Path) -> Any:
    """Return a program that is ready to run; its file is read whole, so that it may be replaced meanwhile."""
    with quiet():
        from executorch.runtime import Runtime
    with kept_stderr() as said:
        try:
            program = Runtime.get().load_program(path.read_bytes())
            program.load_method(METHOD)
        except RuntimeError as error:
            raise ValueError(
                f"{path} cannot be read by ExecuTorch ({error}: {text_of(said)}); update it with: pip install -U "
                "executorch, or export the model again"
            ) from error
    return program


# The runtime sets memory aside for the largest batch when a program is opened.
LARGEST_BATCH = 16
_LARGEST_WEIGHT = 127


def lowered(tower: TowerExport, dtype: torch.dtype) -> ExecutorchProgramManager:
    """Return a tower as ExecuTorch's program, whose `buffer` is what a `.pte` file holds.

    Args:
        tower: in int8, its calibration data too.
        dtype: what it computes in, or what int8 is made of: float32.
    """
    in_int8 = tower.spec.precision == "int8"
    if in_int8:
        how = Int8Form(signed=True, stores_weights=True)
        graph = graph_in_int8(tower, how, outputs=EVERY_OUTPUT, largest_weight=_LARGEST_WEIGHT)
    else:
        graph = tower.graph(dtype)
    # XNNPACK has no attention of one operation.
    set_attention(graph, written_out_attention)
    if dtype == torch.float16:
        _normalize_in_float32(graph)
    largest = LARGEST_BATCH if tower.spec.dynamic_batch else None
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = tower.program_of(graph, largest_batch=largest)
        if in_int8:
            dequantize_for_each_user(program)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return edge.to_executorch()


def _normalize_in_float32(graph: nn.Module) -> None:
    """Let layer norms compute in float32, and give float16 all the same.

    XNNPACK has none, and ExecuTorch's own gives something else in float16 from 256 channels on (release 1.5.1, x86:
    four times too large for 256 random numbers; the text embeddings of MobileCLIP-S0 then have a cosine of 0.05).
    """
    for module in graph.modules():
        if isinstance(module, nn.LayerNorm) and module.weight.dtype == torch.float16:
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))
            module.register_forward_hook(lambda _module, _inputs, output: output.half())


_taking = threading.Lock()
_taken: list[int] = []


def take_threads(num_threads: int | None) -> None:
    """Let programs compute with so many threads.

    Programs that are open keep the pool that they were opened with, so the first one decides for all.

    Args:
        num_threads: at least 1; None for as many as PyTorch has, or as the first program took.

    Raises:
        ValueError: if the first program took another number.
    """
    count = threads_or_default(num_threads)
    with _taking:
        if not _taken:
            # It tells what it finds out about the processor.
            with quiet(), kept_stderr():
                bindings = import_module("executorch.extension.pybindings.portable_lib")
                if bindings._threadpool_get_thread_count() != count:  # noqa: SLF001  no public one sets it
                    bindings._unsafe_reset_threadpool(count)  # noqa: SLF001
            _taken.append(count)
        elif num_threads is not None and count != _taken[0]:
            raise ValueError(
                f"ExecuTorch computes with {_taken[0]} threads in this process since the first program was opened, and "
                f"num_threads is {count}; load it in another process, or ask for {_taken[0]}"
            )
