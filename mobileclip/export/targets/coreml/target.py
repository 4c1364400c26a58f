"""Core ML: ML programs for iPhones, iPads and Macs, as `.mlpackage` folders."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.spec import TextDtype
from mobileclip.export.targets.base import CPU, Format, NotRunHereError, Run, Written, device_called, refuse_threads
from mobileclip.export.targets.coreml.convert import convert, import_coremltools
from mobileclip.export.towers.graph import TowerExport
from mobileclip.export.towers.int8 import graph_in_int8
from mobileclip.extras import needed
from mobileclip.hardware.precision import Precision
from mobileclip.inference.quantization import Int8Form
from mobileclip.machine import raise_machine_fault

_IS_MAC = sys.platform == "darwin"
_LARGEST_WEIGHT = 127


@attrs.frozen
class CoreMLTarget(Format):
    """Core ML through coremltools: files are written anywhere, and run by Core ML on a Mac; elsewhere they are not run.

    float16 is computed in as exported. In int8, what is not quantised is float16, which the Neural Engine needs.
    Raw pixels come as a picture where they are uint8: Core ML has arrays of float and int32 alone.
    """

    suffix: str = ".mlpackage"
    libraries: tuple[str, ...] = ("coremltools",)
    text_dtype: TextDtype = "int32"
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8")
    cuts_texts: bool = True
    runtime: str = "Core ML"

    def check(self) -> None:
        """Make sure that everything is installed.

        Raises:
            ImportError: if something is missing; the message has the command that installs it.
        """
        with needed("the target 'coreml'", "coreml"):
            import_coremltools()

    def export(self, tower: TowerExport, path: Path) -> Written:
        """Write one tower.

        Raises:
            ValueError: if pictures are to come in batches.
        """
        precision = tower.spec.precision
        takes_picture = tower.input_dtype == "uint8"
        if takes_picture and tower.spec.dynamic_batch:
            raise ValueError(
                "Core ML takes one picture at a time, and uint8 pixels are one; leave dynamic-batch out, or choose "
                "--preprocess float32"
            )
        if takes_picture:
            spec = attrs.evolve(tower.spec, preprocess="float32")
            tower = attrs.evolve(tower, spec=spec, calibration=tower.calibration.float())
        if precision == "int8":
            graph = graph_in_int8(tower, Int8Form(stores_weights=True), largest_weight=_LARGEST_WEIGHT)
            program = tower.program_of(graph)
        else:
            program = tower.program(torch.float16 if precision == "float16" else torch.float32)
        convert(program, tower, path, takes_picture=takes_picture)
        return Written(compute=precision)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with Core ML, on a Mac.

        Core ML chooses by itself where it computes; `cpu` stands for that.

        Raises:
            NotRunHereError: if this is no Mac.
            ValueError: if it cannot be read.
        """
        device_called(device, {CPU: CPU}, self.runtime)
        if not _IS_MAC:
            raise NotRunHereError(
                f"{path.name} is written, not run: Core ML runs on Macs and on Apple's devices alone; run mobileclip "
                "verify on a Mac, or compare the golden vectors beside it on the device"
            )
        refuse_threads(num_threads, "Core ML")
        return _core_ml(path, tower)


def _core_ml(path: Path, tower: TowerFile) -> Run:
    coremltools = import_coremltools()
    try:
        model = coremltools.models.MLModel(str(path))
    except Exception as error:
        raise_machine_fault(error)
        # Core ML's own errors come as whatever its bindings make of them.
        raise ValueError(
            f"{path} cannot be read by Core ML ({error}); update macOS, or export the model again"
        ) from error
    given: Callable[[Tensor], Any] = _picture if tower.input_dtype == "uint8" else Tensor.numpy

    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = model.predict({tower.input_name: given(inputs)})
        return tuple(torch.from_numpy(np.asarray(outputs[name], dtype=np.float32)) for name in tower.outputs)

    return run


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels[0].movedim(0, -1).contiguous().numpy())
