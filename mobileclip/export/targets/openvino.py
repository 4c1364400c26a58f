"""OpenVINO's intermediate representation (IR), for CPUs and for Intel's GPUs and NPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.int8 import Int8Form
from mobileclip.export.targets.base import CPU, Run, Target, WrittenFile, device_of_runtime, readable
from mobileclip.export.towers import SHORTEST, TowerExport
from mobileclip.extras import needed
from mobileclip.hardware import Precision, threads_or_default
from mobileclip.inference.openvino_backend import PROCESSOR_OPTIONS, converted, import_quietly, openvino_core

# Required capability of a device, and the precision hint to set. Without a hint, or with a hint for float16 that the
# CPU does not support, a CPU with bfloat16 computes everything in bfloat16.
_HINTS: dict[Precision, tuple[str, str]] = {"float16": ("FP16", "f16"), "bfloat16": ("BF16", "bf16")}
_WIDEST = "f32"
_PROCESSOR = "CPU"
# Path of the hint in the model's metadata, for hosts that do not read the contract.
_HINT = ["mobileclip", "INFERENCE_PRECISION_HINT"]


@attrs.frozen
class OpenVINOTarget(Target):
    """OpenVINO from an exported program: the graph in `.xml`, and the weights next to it in `.bin`.

    Weights and operations of a float16 or bfloat16 graph have the graph's dtype. The host requests a compute precision
    from the device; `open` requests float32 if the device does not support float16 or bfloat16. int8 quantisation is
    static.
    """

    suffix: str = ".xml"
    libraries: tuple[str, ...] = ("openvino", "nncf")
    extra: str = "openvino"
    # The converter supports quantisation operations only on float weights, runs the operations, and stores the results.
    int8: Int8Form = Int8Form(outputs=())
    precisions: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8")
    cuts_texts: bool = True
    prefers_depthwise: bool = True
    runtime: str = "openvino"

    def check(self) -> None:
        """Raise an error unless all required packages are installed.

        Raises:
            ImportError: if a package is missing; the message gives the install command.
        """
        with needed("the target 'openvino'", self.extra):
            for name in self.libraries:
                import_quietly(name)

    def export(self, tower: TowerExport, path: Path) -> WrittenFile:
        """Write one tower.

        Raises:
            OSError: if the files cannot be written.
        """
        openvino = import_quietly("openvino")
        model = converted(tower.program_of(self.graph(tower)))
        batch = -1 if tower.spec.dynamic_batch else 1
        model.reshape([batch, (SHORTEST, *tower.input_shape)] if tower.lengths else [batch, *tower.input_shape])
        for output, name in zip(model.outputs, tower.output_names, strict=True):
            output.get_tensor().set_names({name})
        _, hint = _HINTS.get(tower.spec.precision, ("", _WIDEST))
        model.set_rt_info(hint, _HINT)
        try:
            openvino.save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:  # OpenVINO writes the files itself and hides the system's error
            raise OSError(
                f"OpenVINO cannot write {path.name} ({error}); if the disk is full, make room and export again"
            ) from error
        return self.written(tower)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with OpenVINO."""
        core = openvino_core()
        place = device_of_runtime(device, {name.lower(): name for name in core.available_devices}, "OpenVINO")
        able, hint = _HINTS.get(tower.compute, ("FP32", _WIDEST))
        if able not in core.get_property(place, "OPTIMIZATION_CAPABILITIES"):
            hint = _WIDEST
        version = import_quietly("openvino").get_version()
        with readable(path, f"OpenVINO {version}", "pip install -U openvino"):
            model = core.read_model(path, path.with_suffix(".bin"))
        if tower.lengths and place != _PROCESSOR:
            model.reshape([tower.input_shape[0] or -1, tower.lengths[-1]])
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint}
        if place == _PROCESSOR:
            options |= {**PROCESSOR_OPTIONS, "INFERENCE_NUM_THREADS": threads_or_default(num_threads)}
        compiled = core.compile_model(model, place, options)

        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            # Copy the outputs, because the runtime reuses their memory.
            return tuple(torch.from_numpy(one.copy()) for one in compiled(inputs.numpy()).to_tuple())

        return run
