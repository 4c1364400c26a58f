"""torch.export's own format: an exported program, for PyTorch without this library and for further lowering."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.spec import TextDtype
from mobileclip.export.targets.base import CPU, ComputedWhole, Run, WrittenHere, device_called, not_finite
from mobileclip.export.targets.pt2e import quiet
from mobileclip.export.targets.torch.int8 import quantized_program
from mobileclip.export.targets.torch.pt2 import load_pt2, readable
from mobileclip.export.towers.graph import TowerExport
from mobileclip.hardware.precision import Precision
from mobileclip.hardware.threads import threads_or_default, torch_threads

_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# `aten.relu_.default`; not `aten.__and__.Tensor`.
_IN_PLACE = re.compile(r"aten\.\w*[a-z0-9]_\.\w+")


@attrs.frozen
class TorchTarget(ComputedWhole, WrittenHere):
    """`torch.export.save` and `torch.export.load`; int8 is static, see `torch_int8`.

    torchao writes int8, and is not needed to load and run it. PyTorch runs it as it is, on values that are rounded to
    int8 and multiplied in float32; torch.compile finds its kernels of int8 in it.
    """

    suffix: str = ".pt2"
    libraries: tuple[str, ...] = ("torch",)
    text_dtype: TextDtype = "int64"
    precisions: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8")
    resizes: bool = False
    prefers_depthwise: bool = True
    runtime: str = "torch"
    vouched: bool = False
    concurrent: bool = True

    def check(self) -> None:
        """Make sure that everything is installed: PyTorch is."""

    def export(self, tower: TowerExport, path: Path) -> Precision:
        """Write one tower, computing in its precision.

        Raises:
            ImportError: if int8 is asked for, and what it needs is not installed.
        """
        precision = tower.spec.precision
        program = quantized_program(tower) if precision == "int8" else tower.program(_DTYPES[precision])
        if _writes_in_place(program):
            with quiet():
                program = program.run_decompositions({})
        # An example input would be stored as a pickle, and is of no use to anyone.
        program.example_inputs = None
        torch.export.save(program, path)
        return precision

    def inspect(self, path: Path, tower: TowerFile) -> None:
        """Check a file without running it.

        Raises:
            ValueError: if it is not what the contract says, or its weights are not finite.
        """
        program = load_pt2(path)
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        inputs = [node for node in placeholders if node.name in program.graph_signature.user_inputs]
        if len(inputs) != 1:
            raise ValueError(f"{path} takes {len(inputs)} inputs, expected one; export the model again")
        value = inputs[0].meta["val"]
        shape = tuple(side if isinstance(side, int) else None for side in value.shape)
        dtype = str(value.dtype).removeprefix("torch.")
        if (shape, dtype) != (tower.input_shape, tower.input_dtype):
            raise ValueError(
                f"{path} takes {dtype} of shape {shape}, and the contract says {tower.input_dtype} of shape "
                f"{tower.input_shape}; export the model again"
            )
        for name, tensor in program.state_dict.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise not_finite(path, name)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with PyTorch."""
        del tower
        device_called(device, {CPU: CPU}, self.runtime)
        threads_or_default(num_threads)
        program = load_pt2(path)
        with readable(path):
            module = program.module()

        @torch.no_grad()
        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            with torch_threads(num_threads):
                outputs: Tensor | tuple[Tensor, ...] = module(inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return run


def _writes_in_place(program: torch.export.ExportedProgram) -> bool:
    """Return whether an operation changes what it is given, as `nn.ReLU(inplace=True)` does; a file holds none such."""
    return any(_IN_PLACE.fullmatch(str(node.target)) for node in program.graph.nodes)
