"""Compiles towers to OpenVINO programs with a fixed batch size, in float32, bfloat16 or int8."""

from __future__ import annotations

import io
import logging
import statistics
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobileclip.extras import needed
from mobileclip.hardware import FastPrecision
from mobileclip.inference.comparison import times_in_turn
from mobileclip.inputs import ImageInput
from mobileclip.terminal.silence import SILENCING

Input = TypeVar("Input")
Output = TypeVar("Output")


class LockedFunction(Generic[Input, Output]):
    """A callable that makes a function thread-safe with a lock.

    The callable is picklable if the function is picklable; an unpickled copy has a separate lock.

    Args:
        run: a function that is not thread-safe, such as an OpenVINO request or a LiteRT interpreter.
    """

    def __init__(self, run: Callable[[Input], Output]) -> None:
        self._run = run
        self._lock = threading.Lock()

    def __call__(self, given: Input) -> Output:
        """Return the result of the function; wait until other threads have left the function."""
        with self._lock:
            return self._run(given)

    def __reduce__(self) -> tuple[type[LockedFunction[Input, Output]], tuple[Callable[[Input], Output]]]:
        """Pickle the function without the lock."""
        return type(self), (self._run,)


PROCESSOR_OPTIONS = {"SNIPPETS_MODE": "DISABLE"}
"""Compile options for CPUs, which turn off OpenVINO's operator fusion (snippets). In release 2026.4, fusion crashes the
process for some towers, with one thread or dynamic text lengths. Without fusion, text towers are faster, and image
towers are not slower."""

_TELEMETRY = "openvino_telemetry"


@contextmanager
def suppress_telemetry() -> Iterator[None]:
    """Suppress telemetry and output of OpenVINO and NNCF.

    OpenVINO and NNCF send telemetry about every import and call, unless the telemetry package is missing. The
    function hides the telemetry package, unless the process has already imported the package. NNCF prints progress bars
    on standard output.
    """
    with SILENCING:
        logger_class, hidden = logging.getLoggerClass(), _TELEMETRY not in sys.modules
        if hidden:
            # An import then fails, as if the package were missing.
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            with redirect_stdout(io.StringIO()):
                yield
        finally:
            if hidden:
                del sys.modules[_TELEMETRY]
            # NNCF replaces the class of all later loggers.
            logging.setLoggerClass(logger_class)


def import_quietly(name: str) -> Any:
    """Import a module, `openvino` or `nncf`, without telemetry and output.

    Raises:
        ImportError: if the package is not installed.
    """
    with suppress_telemetry():
        return import_module(name)


def openvino_core() -> Any:
    """Return the OpenVINO core of this process, which stays alive until the process ends.

    Freeing the last core unloads the device libraries; after unloading in a thread, the next signal ends the process
    (OpenVINO 2026.4). The core copies weights into memory, since some systems cannot replace or remove mapped files.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    with SILENCING:
        return _core()


@cache
def _core() -> Any:
    core = import_quietly("openvino").Core()
    core.set_property({"ENABLE_MMAP": False})
    return core


def converted(program: ExportedProgram) -> Any:
    """Convert an exported program of `torch.export` to an OpenVINO model.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    openvino = import_quietly("openvino")
    with suppress_telemetry(), warnings.catch_warnings():
        # The conversion uses deprecated functions of PyTorch's pytrees.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return openvino.convert_model(program)


def openvino_model(tower: nn.Module, example: Tensor, *, lengths: bool, any_batch: bool = False) -> Any:
    """Convert a tower to an OpenVINO model.

    Args:
        tower: a float32 tower in evaluation mode.
        example: an example batch.
        lengths: whether to allow texts shorter than the example's.
        any_batch: whether to allow any batch size; the example then needs at least two inputs.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    sides = {0: torch.export.Dim("batch")} if any_batch else {}
    sides |= {1: torch.export.Dim("tokens", min=2, max=example.shape[1])} if lengths else {}
    return converted(torch.export.export(tower, (example,), dynamic_shapes=(sides,) if sides else None, strict=False))


_LOG_ERRORS_ONLY = 40
_FEW = 16


def int8_model(tower: nn.Module, ranges: Tensor, *, lengths: bool) -> Any:
    """Convert a tower to an OpenVINO model for batches of one, with int8 convolutions and linear layers.

    The inputs of an int8 layer are uint8, with a scale and a zero point from the minimum and maximum over the
    calibration data. Weights are int8 without a zero point, with a scale per output channel, and between -64 and 64:
    CPUs without VNNI add pairs of products in 16 bits, where larger weights would saturate silently. Grouped
    convolutions (largest loss of accuracy, no speed-up) and attention products stay in float.

    Args:
        tower: a float32 tower in evaluation mode.
        ranges: a batch of images or token ids for calibration.
        lengths: whether to allow texts shorter than those in `ranges`.

    Raises:
        ImportError: if OpenVINO or NNCF is not installed.
    """
    with needed("int8", "openvino"):
        model = openvino_model(tower, ranges[:_FEW], lengths=lengths, any_batch=True)
        model.reshape([1, *ranges.shape[1:]])
        with quantiser() as nncf:
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet

            ignored = [node.get_friendly_name() for node in model.get_ops() if not _is_rounded(node)]
            rows = [row.numpy() for row in torch.split(ranges, 1)]
            return nncf.quantize(
                model,
                nncf.Dataset(rows),
                subset_size=len(rows),
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=nncf.OverflowFix.ENABLE,
                    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                ),
            )


def _is_rounded(node: Any) -> bool:
    """Return whether to quantise an operation: a layer with weights, except for grouped convolutions."""
    has_weights = node.get_type_name() in ("Convolution", "MatMul")
    return has_weights and node.input_value(1).get_node().get_type_name() == "Constant"


@contextmanager
def quantiser() -> Iterator[Any]:
    """Yield the module `nncf`, which logs only errors within the context."""
    nncf = import_quietly("nncf")
    level = nncf.nncf_logger.level
    with suppress_telemetry():
        nncf.set_log_level(_LOG_ERRORS_ONLY)
        try:
            yield nncf
        finally:
            nncf.set_log_level(level)


Program = Callable[[Tensor], Tensor]
_DEVICE = "CPU"
_WHITE = 255.0
# Required device capability, and precision hint, for each precision.
_HINTS: dict[FastPrecision, tuple[str, str]] = {"float32": ("FP32", "f32"), "bfloat16": ("BF16", "bf16")}
_ROUNDS = 5


def openvino_program(
    tower: nn.Module,
    example: Tensor,
    *,
    lengths: bool,
    precision: FastPrecision,
    int8: Any = None,
    pixels: ImageInput | None = None,
) -> Program:
    """Compile a tower for OpenVINO on the CPU, with PyTorch's current number of threads.

    With `pixels`, the program scales and normalises images before the first convolution. OpenVINO fuses only the scale
    into the convolution: the mean cannot be fused, since the convolution pads normalised images with zeros.

    Args:
        tower: a float32 tower in evaluation mode.
        example: an example batch.
        lengths: whether to allow texts shorter than the example's.
        precision: inference precision of OpenVINO. For int8, layers without int8 use bfloat16 if the CPU supports
            bfloat16 and bfloat16 is faster, otherwise float32.
        int8: the model from `int8_model`; None for other precisions.
        pixels: image input with mean and standard deviation, for a program that also accepts uint8 images in
            channels-last memory format; None for float images or token ids only.

    Raises:
        ImportError: if OpenVINO is not installed.
        RuntimeError: if the CPU does not support the precision, or the conversion fails.
    """
    with needed("the engine 'openvino'", "openvino"):
        core = openvino_core()
    capabilities = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "int8":
        hints = [hint for able, hint in _HINTS.values() if able in capabilities]
        model = int8.clone()
    else:
        able, hint = _HINTS[precision]
        hints = [hint]
        if able not in capabilities:
            raise RuntimeError(f"this CPU does not support {precision}")
        model = openvino_model(tower, example, lengths=lengths)
    model.reshape([len(example), -1] if lengths else list(example.shape))
    program = _fastest([_compiled(core, model, hint) for hint in hints], example)
    return LockedFunction(program if pixels is None else program.taking_also(core, _of_pixels(model, pixels)))


def _compiled(core: Any, model: Any, hint: str) -> _OpenVINOProgram:
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        **PROCESSOR_OPTIONS,
    }
    return _OpenVINOProgram([core.compile_model(model, _DEVICE, options)], options)


def _fastest(programs: list[_OpenVINOProgram], example: Tensor) -> _OpenVINOProgram:
    """Return the program with the lowest median latency; skip timing if there is only one program."""
    if len(programs) == 1:
        return programs[0]
    times = times_in_turn([lambda one=one: one(example) for one in programs], rounds=_ROUNDS)  # type: ignore[misc]
    return programs[min(range(len(programs)), key=lambda place: statistics.median(times[place]))]


def _of_pixels(model: Any, contract: ImageInput) -> Any:
    """Change the input of an image model to uint8 pixels in channels-last memory format."""
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
    """A program of compiled OpenVINO models; unpickling needs the OpenVINO release that pickled the program.

    Args:
        compiled: the model for float inputs, and optionally the model for uint8 pixels.
        options: compile options of OpenVINO.
    """

    def __init__(self, compiled: list[Any], options: dict[str, Any]) -> None:
        self._compiled, self._options = compiled, options
        self._requests = [one.create_infer_request() for one in compiled]

    def taking_also(self, core: Any, model: Any) -> _OpenVINOProgram:
        """Return the program with a second model for uint8 pixels, compiled with the options of the first model."""
        return _OpenVINOProgram([*self._compiled, core.compile_model(model, _DEVICE, self._options)], self._options)

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            # Decoded pixels are passed without a copy.
            request, given = self._requests[1], np.ascontiguousarray(inputs.movedim(-3, -1).numpy())
        else:
            request, given = self._requests[0], inputs.numpy()
        # A request computes one batch at a time, and overwrites these embeddings with the next ones.
        (embeddings,) = request.infer([given], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(embeddings.copy())

    def __reduce__(self) -> tuple[Callable[..., _OpenVINOProgram], tuple[list[bytes], dict[str, Any]]]:
        return _imported, ([one.export_model().read() for one in self._compiled], self._options)


def _imported(programs: list[bytes], options: dict[str, Any]) -> _OpenVINOProgram:
    with needed("the engine 'openvino'", "openvino"):
        core = openvino_core()
    return _OpenVINOProgram([core.import_model(one, _DEVICE, options) for one in programs], options)
