"""ExecuTorch, with XNNPACK: programs for phones and small devices, as `.pte` files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.spec import TextDtype
from mobileclip.export.targets.base import CPU, Run, WrittenHere, device_called, not_finite
from mobileclip.export.targets.executorch.backends import lowering, require_runnable
from mobileclip.export.targets.executorch.lower import LARGEST_BATCH, lowered
from mobileclip.export.targets.executorch.pte import METHOD, read_pte
from mobileclip.export.targets.executorch.threads import take_threads
from mobileclip.export.targets.native_stderr import kept_stderr, text_of
from mobileclip.export.targets.pt2e import quiet
from mobileclip.export.towers.graph import TowerExport
from mobileclip.extras import needed
from mobileclip.hardware.precision import Precision


@attrs.frozen
class ExecuTorchTarget(WrittenHere):
    """ExecuTorch from an exported program, with XNNPACK for what it can do and ExecuTorch's own kernels for the rest.

    Programs for other backends are lowered, and run where the runtime has these (`backends`). float16 is computed in as
    exported. int8 is static, see `lower`. There is no bfloat16: XNNPACK has only linear layers of it. Inputs and
    outputs have no names in the format, so the contract's stand in the contract alone. The runtime takes the places and
    sizes in a file as they are, so nobody can vouch for a stranger's.
    """

    suffix: str = ".pte"
    libraries: tuple[str, ...] = ("executorch",)
    text_dtype: TextDtype = "int64"
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8")
    resizes: bool = False
    prefers_depthwise: bool = False
    runtime: str = "executorch"
    vouched: bool = False
    concurrent: bool = False

    def check(self) -> None:
        """Make sure that everything is installed.

        Raises:
            ImportError: if something is missing; the message has the command that installs it.
        """
        with needed("the target 'executorch'", "executorch"), quiet():
            for name in ("torchao", "executorch.exir", "executorch.runtime"):
                import_module(name)

    def export(self, tower: TowerExport, path: Path) -> Precision:
        """Write one tower."""
        precision = tower.spec.precision
        path.write_bytes(lowered(tower, torch.float16 if precision == "float16" else torch.float32))
        return precision

    def outside(self, path: Path) -> tuple[str, ...]:
        """Return the operations of a file that no backend computes."""
        return read_pte(path).operators

    def inspect(self, path: Path, tower: TowerFile) -> None:
        """Check a file without running it: inputs and outputs but for their names, and that all numbers are finite.

        Raises:
            ValueError: if it is no ExecuTorch program, a damaged one, or not what the contract says.
        """
        program = read_pte(path)
        found = [[(tensor.dtype, tensor.shape) for tensor in tensors] for tensors in (program.inputs, program.outputs)]
        expected = [[(tower.input_dtype, tower.input_shape)], [("float32", shape) for shape in tower.outputs.values()]]
        if found != expected:
            raise ValueError(
                f"{path} has the inputs and outputs {found}, and the contract says {expected}; export the model again"
            )
        delegate = lowering(tower.backend).delegate
        if set(program.delegates) - {delegate}:
            raise ValueError(
                f"{path} needs {', '.join(program.delegates)}, and the contract says {delegate}; export the model again"
            )
        for name, numbers in program.numbers.items():
            if not bool(np.isfinite(numbers).all()):
                raise not_finite(path, name)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with ExecuTorch on the processor.

        Raises:
            NotRunHereError: if its backend is not here.
            ValueError: if it cannot be read, or the process has another number of threads already; and, when it runs,
                if the batch is larger than the file takes.
        """
        device_called(device, {CPU: CPU}, self.runtime)
        require_runnable(tower.backend, path.name)
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
