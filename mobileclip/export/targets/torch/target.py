"""torch.export's own format: an exported program, for PyTorch without this library and for further lowering."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.targets.base import CPU, Format, Run, Written, device_called
from mobileclip.export.targets.pt2e import layers_alone, quiet, rounded_program
from mobileclip.export.targets.torch.pt2 import load_pt2, readable
from mobileclip.export.towers.graph import TowerExport
from mobileclip.extras import needed
from mobileclip.hardware.precision import Precision, dtype_of
from mobileclip.hardware.threads import threads_or_default, torch_threads

# `aten.relu_.default`; not `aten.__and__.Tensor`.
_IN_PLACE = re.compile(r"aten\.\w*[a-z0-9]_\.\w+")
_LARGEST_WEIGHT = 64


@attrs.frozen
class TorchTarget(Format):
    """`torch.export.save` and `torch.export.load`; int8 is static.

    torchao writes int8, and is not needed to load and run it. PyTorch runs it as it is, on values that are rounded to
    int8 and multiplied in float32; torch.compile finds its kernels of int8 in it.
    """

    suffix: str = ".pt2"
    libraries: tuple[str, ...] = ("torch",)
    precisions: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8")
    cuts_texts: bool = True
    prefers_depthwise: bool = True
    runtime: str = "torch"
    concurrent: bool = True

    def check(self) -> None:
        """Make sure that everything is installed: PyTorch is."""

    def export(self, tower: TowerExport, path: Path) -> Written:
        """Write one tower, computing in its precision.

        Raises:
            ImportError: if int8 is asked for, and what it needs is not installed.
        """
        precision = tower.spec.precision
        program = _in_int8(tower) if precision == "int8" else tower.program(dtype_of(precision))
        if _writes_in_place(program):
            with quiet():
                program = program.run_decompositions({})
        # An example input would be stored as a pickle, and is of no use to anyone.
        program.example_inputs = None
        torch.export.save(program, path)
        return Written(compute=precision)

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


def _in_int8(tower: TowerExport) -> torch.export.ExportedProgram:
    with needed("int8 in the target 'torch'", "int8"), quiet():
        import_module("torchao.quantization.pt2e")
    quantizer = layers_alone(tower.fallback.layers, largest_weight=_LARGEST_WEIGHT)
    return rounded_program(tower, tower.graph(torch.float32), quantizer)


def _writes_in_place(program: torch.export.ExportedProgram) -> bool:
    """Return whether an operation changes what it is given, as `nn.ReLU(inplace=True)` does; a file holds none such."""
    return any(_IN_PLACE.fullmatch(str(node.target)) for node in program.graph.nodes)
