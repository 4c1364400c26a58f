"""A tower made into a program for inputs of one size by OpenVINO."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobileclip.extras import needed
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference.comparison.measuring import times_in_turn
from mobileclip.inference.one_at_a_time import OneAtATime
from mobileclip.inference.optimization.int8 import Int8Model
from mobileclip.inference.optimization.openvino_quiet import (
    PROCESSOR_OPTIONS,
    import_quietly,
    openvino_core,
    openvino_model,
)
from mobileclip.inputs import ImageInput

Program = Callable[[Tensor], Tensor]
_DEVICE = "CPU"
_WHITE = 255.0
# What a device must be able to do, and what it is asked for.
_HINTS: dict[FastPrecision, tuple[str, str]] = {"float32": ("FP32", "f32"), "bfloat16": ("BF16", "bf16")}
_ROUNDS = 5


def openvino_program(
    tower: nn.Module,
    example: Tensor,
    *,
    lengths: bool,
    precision: FastPrecision,
    int8: Int8Model | None = None,
    pixels: ImageInput | None = None,
) -> Program:
    """Return a tower as OpenVINO runs it on the processor, with as many threads as PyTorch has now.

    Pixels are scaled and normalised inside, in front of the first convolution, into which OpenVINO folds a factor; a
    mean is subtracted as it is, since what the convolution pads with are zeros of normalised images.

    Args:
        tower: in evaluation mode, in float32.
        example: a batch, as it will come.
        lengths: whether texts may be shorter than the example's.
        precision: what OpenVINO may compute in; what int8 leaves, in float32, or in bfloat16 where it may be and that
            takes less time.
        int8: the tower in int8, for that.
        pixels: how pixels become images; the program then takes uint8 too, of the shape of the images and with
            channels innermost in memory, as they were decoded.

    Raises:
        ImportError: if OpenVINO is not installed; the message has the command that installs it.
        RuntimeError: if the processor does not compute in this precision, or the tower cannot be converted.
    """
    with needed("the engine 'openvino'", "openvino"):
        core = openvino_core()
    capabilities = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "int8":
        assert int8 is not None, "int8 needs a calibrated model"
        rest = ("float32", int8.rest)
        hints = [hint for name, (able, hint) in _HINTS.items() if name in rest and able in capabilities]
        model = int8.model.clone()
    else:
        able, hint = _HINTS[precision]
        hints = [hint]
        if able not in capabilities:
            raise RuntimeError(f"the processor does not compute in {precision}")
        model = openvino_model(tower, example, lengths=lengths)
    model.reshape([len(example), -1] if lengths else list(example.shape))
    program = _fastest([_compiled(core, model, hint) for hint in hints], example)
    return OneAtATime(program if pixels is None else program.taking_also(core, _of_pixels(model, pixels)))


def _compiled(core: Any, model: Any, hint: str) -> _OpenVINOProgram:
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        **PROCESSOR_OPTIONS,
    }
    return _OpenVINOProgram([core.compile_model(model, _DEVICE, options)], options)


def _fastest(programs: list[_OpenVINOProgram], example: Tensor) -> _OpenVINOProgram:
    """Return the program of the least median time; where there is one alone, without a call."""
    if len(programs) == 1:
        return programs[0]
    times = times_in_turn([lambda one=one: one(example) for one in programs], rounds=_ROUNDS)  # type: ignore[misc]
    return programs[min(range(len(programs)), key=lambda place: statistics.median(times[place]))]


def _of_pixels(model: Any, contract: ImageInput) -> Any:
    """Return a model of images, changed to one of uint8 pixels as they lie in memory."""
    openvino = import_quietly("openvino")
    changed = openvino.preprocess.PrePostProcessor(model)
    changed.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    changed.input().model().set_layout(openvino.Layout("NCHW"))
    steps = changed.input().preprocess().convert_element_type(openvino.Type.f32)
    if any(contract.mean):
        steps.mean([_WHITE * mean for mean in contract.mean])
    steps.scale([_WHITE * std for std in contract.std])
    return changed.build()


class _OpenVINOProgram:
    """Compiled models of OpenVINO; what is pickled are the programs, for the same release of OpenVINO.

    Args:
        compiled: the model, and perhaps that of pixels.
        options: that they were compiled with.
    """

    def __init__(self, compiled: list[Any], options: dict[str, Any]) -> None:
        self._compiled, self._options = compiled, options
        self._requests = [one.create_infer_request() for one in compiled]

    def taking_also(self, core: Any, model: Any) -> _OpenVINOProgram:
        """Return the program with the model of pixels beside it, compiled with the same options."""
        return _OpenVINOProgram([*self._compiled, core.compile_model(model, _DEVICE, self._options)], self._options)

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            # What was decoded is passed on where it lies.
            request, given = self._requests[1], np.ascontiguousarray(inputs.movedim(-3, -1).numpy())
        else:
            request, given = self._requests[0], inputs.numpy()
        # A request computes one batch at a time, and its next embeddings where these are.
        (embeddings,) = request.infer([given], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(embeddings.copy())

    def __reduce__(self) -> tuple[Callable[..., _OpenVINOProgram], tuple[list[bytes], dict[str, Any]]]:
        return _imported, ([one.export_model().read() for one in self._compiled], self._options)


def _imported(programs: list[bytes], options: dict[str, Any]) -> _OpenVINOProgram:
    with needed("the engine 'openvino'", "openvino"):
        core = openvino_core()
    return _OpenVINOProgram([core.import_model(one, _DEVICE, options) for one in programs], options)
