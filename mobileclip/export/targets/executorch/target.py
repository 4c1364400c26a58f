"""ExecuTorch, with XNNPACK: programs for phones and small devices, as `.pte` files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.targets.base import CPU, Format, Run, Written, device_called
from mobileclip.export.targets.executorch.lower import LARGEST_BATCH, lowered
from mobileclip.export.targets.executorch.threads import take_threads
from mobileclip.export.targets.native_stderr import kept_stderr, text_of
from mobileclip.export.targets.quiet import quiet
from mobileclip.export.towers.graph import TowerExport
from mobileclip.extras import needed
from mobileclip.hardware.precision import Precision

METHOD = "forward"


@attrs.frozen
class ExecuTorchTarget(Format):
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
