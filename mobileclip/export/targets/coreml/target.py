"""Core ML: ML programs for iPhones, iPads and Macs, as `.mlpackage` folders."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.spec import TextDtype
from mobileclip.export.targets.base import (
    CPU,
    ComputedWhole,
    Described,
    NotRunHereError,
    Run,
    WrittenHere,
    check_signature,
    device_called,
    not_finite,
    refuse_threads,
)
from mobileclip.export.targets.coreml.convert import convert
from mobileclip.export.targets.coreml.int8 import quantized_program
from mobileclip.export.targets.coreml.mil import MilProgram, quiet, read_program
from mobileclip.export.towers.graph import TowerExport
from mobileclip.extras import needed
from mobileclip.hardware.precision import Precision
from mobileclip.hardware.threads import threads_or_default, torch_threads
from mobileclip.machine import raise_machine_fault

_IS_MAC = sys.platform == "darwin"


@attrs.frozen
class CoreMLTarget(ComputedWhole, WrittenHere):
    """Core ML through coremltools; files are written anywhere, and run by Core ML on a Mac.

    Elsewhere `open` computes the file's program in PyTorch, operation by operation (`mil.py`), and the report says so.
    float16 is computed in as exported. In int8, what is not quantised is float16, which the Neural Engine needs.
    Raw pixels come as a picture where they are uint8: Core ML has arrays of float and int32 alone.
    """

    suffix: str = ".mlpackage"
    libraries: tuple[str, ...] = ("coremltools",)
    text_dtype: TextDtype = "int32"
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8")
    resizes: bool = False
    prefers_depthwise: bool = False
    runtime: str = "Core ML" if _IS_MAC else "mil reference"
    vouched: bool = False
    concurrent: bool = False

    def check(self) -> None:
        """Make sure that everything is installed.

        Raises:
            ImportError: if something is missing; the message has the command that installs it.
        """
        with needed("the target 'coreml'", "coreml"), quiet():
            import_module("coremltools")

    def export(self, tower: TowerExport, path: Path) -> Precision:
        """Write one tower.

        Raises:
            ImportError: if int8 is asked for, and what it needs is not installed.
            ValueError: if pictures are to come in batches.
        """
        precision = tower.spec.precision
        takes_picture = tower.input_dtype == "uint8"
        if takes_picture and tower.spec.dynamic_batch:
            raise ValueError(
                "Core ML takes one picture at a time, and uint8 pixels are one; leave --dynamic-batch out, or choose "
                "--preprocess float32"
            )
        if takes_picture:
            spec = attrs.evolve(tower.spec, preprocess="float32")
            tower = attrs.evolve(tower, spec=spec, calibration=tower.calibration.float())
        if precision == "int8":
            program = quantized_program(tower)
        else:
            program = tower.program(torch.float16 if precision == "float16" else torch.float32)
        convert(program, tower, path, takes_picture=takes_picture)
        return precision

    def inspect(self, path: Path, tower: TowerFile) -> None:
        """Check a file without running it.

        Raises:
            ValueError: if it is no ML program, or not what the contract says.
        """
        program = read_program(path)
        inputs = [_described(feature) for feature in program.description.input]
        # The description leaves out the shape of an output that is not fixed; the program has it.
        outputs = [
            (name, dtype, _shape(variable.shape))
            for (name, dtype, _), variable in zip(
                map(_described, program.description.output), program.function.outputs, strict=True
            )
        ]
        check_signature(path, tower, inputs, outputs)
        for name, numbers in program.constants().items():
            if numbers.dtype.kind == "f" and not bool(np.isfinite(numbers).all()):
                raise not_finite(path, name)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with Core ML, or, where this is no Mac, with PyTorch.

        Core ML chooses by itself where it computes; `cpu` stands for that.

        Raises:
            ValueError: if it cannot be read.
        """
        device_called(device, {CPU: CPU}, self.runtime)
        if _IS_MAC:
            refuse_threads(num_threads, "Core ML")
            return _core_ml(path, tower)
        threads_or_default(num_threads)
        program = read_program(path)
        if program.unknown:
            raise NotRunHereError(
                f"{path.name} is written, not run: it holds {', '.join(program.unknown)}, which is not known here; run "
                "mobileclip verify on a Mac, or compare the golden vectors beside it there"
            )
        return _reference(program, tower, num_threads)


def _reference(program: MilProgram, tower: TowerFile, num_threads: int | None) -> Run:
    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        taken = inputs.float() if tower.input_dtype == "uint8" else inputs
        with torch_threads(num_threads):
            return tuple(program.run({tower.input_name: taken}))

    return run


def _core_ml(path: Path, tower: TowerFile) -> Run:
    import coremltools

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


def _described(feature: Any) -> Described:
    """Return the name, type and shape of an input or output."""
    from coremltools.proto import FeatureTypes_pb2 as Types

    if feature.type.WhichOneof("Type") == "imageType":
        picture = feature.type.imageType
        is_colour = picture.colorSpace == Types.ImageFeatureType.RGB
        return feature.name, "uint8" if is_colour else "another type", (1, 3, picture.height, picture.width)
    array = feature.type.multiArrayType
    names = {Types.ArrayFeatureType.FLOAT32: "float32", Types.ArrayFeatureType.INT32: "int32"}
    sides: list[int | None] = list(array.shape)
    for axis, bounds in enumerate(array.shapeRange.sizeRanges):
        if bounds.lowerBound != bounds.upperBound:
            sides[axis] = None
    return feature.name, names.get(array.dataType, "another type"), tuple(sides)


def _shape(sides: tuple[Any, ...]) -> tuple[int | None, ...]:
    """Return a shape of the program; what is not fixed in it is a symbol."""
    return tuple(int(side) if isinstance(side, (int, np.integer)) else None for side in sides)
