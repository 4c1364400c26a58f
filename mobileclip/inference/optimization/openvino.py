"""Towers as programs of OpenVINO: in int8, quiet while PyTorch computes, compiled for sizes of batches."""

from __future__ import annotations

import io
import logging
import statistics
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache, cached_property
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobileclip.encoders import DualEncoder
from mobileclip.extras import needed
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference.comparison import bundled_samples, first_results, least_agreement, times_in_turn
from mobileclip.inference.quantization import ranges_of_form, with_int8_layers
from mobileclip.inference.quantization.rounding import is_grouped, weighted_layers
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.terminal.silence import SILENCING

Input = TypeVar("Input")
Output = TypeVar("Output")


class OneAtATime(Generic[Input, Output]):
    """A function that any number of threads may call: one after another is let in.

    It can be pickled if the function can; the other one has a lock of its own.

    Args:
        run: what is not safe under threads, such as a request of OpenVINO, or an interpreter of LiteRT.
    """

    def __init__(self, run: Callable[[Input], Output]) -> None:
        self._run = run
        self._lock = threading.Lock()

    def __call__(self, given: Input) -> Output:
        """Return what the function gives."""
        with self._lock:
            return self._run(given)

    def __reduce__(self) -> tuple[type[OneAtATime[Input, Output]], tuple[Callable[[Input], Output]]]:
        """Return what it is made of again."""
        return type(self), (self._run,)


_FEWEST, _FEW = 4, 16


@attrs.frozen(kw_only=True, eq=False)
class Calibration:
    """Inputs of a tower that ranges of values are found with, and others that it is measured on.

    Args:
        ranges: what the tower takes, a batch.
        measured: other inputs, a batch.
        others: embeddings of the other tower in float32, which are found by those of `measured` and find them; without
            them, the nearest other inputs of `measured` are looked for.
    """

    ranges: Tensor
    measured: Tensor
    others: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor, others: Tensor | None = None) -> Calibration:
        """Return half of the inputs, every other one, for the ranges, and half to be measured on.

        Raises:
            ValueError: if there are fewer than four.
        """
        if len(inputs) < _FEWEST:
            raise ValueError(
                f"calibration has {len(inputs)} inputs of a tower, expected at least {_FEWEST}, of which half are for "
                "ranges and half are measured on; give more, or none for the pictures of the package"
            )
        return cls(ranges=inputs[::2], measured=inputs[1::2], others=others)

    @classmethod
    def of_package(cls, contract: ImageInput | TextInput, others: Tensor | None = None) -> Calibration:
        """Return crops of half of the package's pictures and the other half whole; or its captions, by halves."""
        from mobileclip.data.images.transform import ImageTransform
        from mobileclip.data.text.tokenizer import Tokenizer
        from mobileclip.inference.comparison import calibration_crops

        samples = bundled_samples()
        if isinstance(contract, TextInput):
            return cls.of(Tokenizer(contract)(samples.captions), others)
        transform = ImageTransform(contract)
        crops = calibration_crops(samples.images[::2], contract)
        whole = torch.stack([transform(data) for data in samples.images[1::2]])
        return cls(ranges=transform.normalize(crops.movedim(1, -1)), measured=whole, others=others)

    def refusal(self, embeddings: Tensor, expected: Tensor) -> str:
        """Return why a tower does not find what it should; nothing where it does.

        Args:
            embeddings: of `measured`.
            expected: the same in float32.
        """
        same = self.same_first(embeddings, expected)
        agreement = float(same.double().mean())
        least = least_agreement(len(same))
        if agreement < least:
            return f"{agreement:.1%} of {len(same)} first results are as in float32, expected at least {least:.1%}"
        return ""

    def same_first(self, embeddings: Tensor, expected: Tensor) -> Tensor:
        """Return whether each first result is as in float32; see `refusal`.

        Shape:
            returns (results,), bool.
        """
        return self._found_first(embeddings) == self._found_first(expected)

    def _found_first(self, embeddings: Tensor) -> Tensor:
        if self.others is None:
            return first_results(embeddings, embeddings)
        return torch.cat([first_results(embeddings, self.others), first_results(self.others, embeddings)])


class Int8Model:
    """A tower as OpenVINO's model in int8, but for grouped convolutions, which lose most and gain nothing.

    Args:
        tower: in evaluation mode, in float32.
        ranges: what ranges of values are found with, a batch.
        lengths: whether texts may be shorter.
    """

    rest: FastPrecision = "bfloat16"
    """What other operations may be computed in, where the processor does."""

    def __init__(self, tower: nn.Module, ranges: Tensor, *, lengths: bool) -> None:
        self._tower, self._ranges, self._lengths = tower, ranges, lengths

    @cached_property
    def model(self) -> Any:
        """The model, of batches of one.

        Raises:
            ImportError: if OpenVINO or its quantiser is not installed; the message has the command that installs them.
        """
        with needed("int8", "openvino"):
            model = openvino_model(self._tower, self._ranges[:_FEW], lengths=self._lengths, any_batch=True)
            model.reshape([1, *self._ranges.shape[1:]])
            kept = [name for name, layer in weighted_layers(self._tower) if is_grouped(layer)]
            return in_int8(model, self._tower, self._ranges, kept=kept)


class TunedInt8Model(Int8Model):
    """A tower as OpenVINO's model in int8 with the ranges that it carries, for all layers that have some.

    Args:
        tower: in evaluation mode, in float32; what `mobileclip quantize` wrote, or a form of it.
        ranges: inputs, a batch, of which the first are examples.
        lengths: whether texts may be shorter.
    """

    rest: FastPrecision = "float32"

    @cached_property
    def model(self) -> Any:
        """The model, of batches of one.

        Raises:
            ImportError: if OpenVINO is not installed; the message has the command that installs it.
        """
        form = with_int8_layers(self._tower, ranges_of_form(self._tower))
        with needed("int8", "openvino"):
            model = openvino_model(form, self._ranges[:_FEW], lengths=self._lengths, any_batch=True)
        model.reshape([1, *self._ranges.shape[1:]])
        return model


@torch.no_grad()
def calibrations(model: DualEncoder, given: tuple[Tensor, Tensor] | None) -> tuple[Calibration, Calibration]:
    """Return what the image tower and the text tower of a model are calibrated with and measured on.

    Args:
        model: in float32.
        given: images and tokenised texts; those of the package by default.

    Raises:
        ValueError: if there are fewer than four images or texts.
    """
    from mobileclip.data.images.transform import ImageTransform
    from mobileclip.data.text.tokenizer import Tokenizer

    if given is None:
        samples, transform = bundled_samples(), ImageTransform(model.spec.image.input)
        images = torch.stack([transform(data) for data in samples.images])
        tokens = Tokenizer(model.spec.text.input)(samples.captions)
    else:
        images, tokens = given
    image_embeddings, text_embeddings = model.image_encoder(images), model.text_encoder(tokens)
    if given is None:
        return (
            Calibration.of_package(model.spec.image.input, text_embeddings),
            Calibration.of_package(model.spec.text.input, image_embeddings),
        )
    return Calibration.of(images, text_embeddings), Calibration.of(tokens, image_embeddings)


PROCESSOR_OPTIONS = {"SNIPPETS_MODE": "DISABLE"}
"""Of compiling for a processor: without OpenVINO's own fusing, which release 2026.4 ends the process in for some
towers, with one thread or texts of any length; the others take no longer without it, and texts less."""

_TELEMETRY = "openvino_telemetry"


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be sent or printed inside.

    Both libraries report every import and every call, and do without where the package that does so is missing: it is
    hidden, unless somebody has imported it before. NNCF draws bars of its progress on standard output.
    """
    with SILENCING:
        logger_class, hidden = logging.getLoggerClass(), _TELEMETRY not in sys.modules
        if hidden:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails, as of what is not there
        try:
            with redirect_stdout(io.StringIO()):
                yield
        finally:
            if hidden:
                del sys.modules[_TELEMETRY]
            # NNCF makes its own the class of all loggers to come.
            logging.setLoggerClass(logger_class)


def import_quietly(name: str) -> Any:
    """Return the module `openvino` or `nncf`.

    Raises:
        ImportError: if it is not installed.
    """
    with quiet():
        return import_module(name)


def openvino_core() -> Any:
    """Return the runtime, which is one of the process and stays.

    With the last one go the libraries of its devices. If that happens in a thread while a model is replaced, the
    process ends at the next signal (release 2026.4). It reads weights whole: not every system lets files that are
    mapped be replaced or removed.

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
    """Return a program of `torch.export` as OpenVINO's model.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    openvino = import_quietly("openvino")
    with quiet(), warnings.catch_warnings():
        # PyTorch's own deprecations of its trees, which the conversion walks.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return openvino.convert_model(program)


def openvino_model(tower: nn.Module, example: Tensor, *, lengths: bool, any_batch: bool = False) -> Any:
    """Return a tower as OpenVINO's model.

    Args:
        tower: in evaluation mode, in float32.
        example: a batch, as it will come.
        lengths: whether texts may be shorter than the example's.
        any_batch: whether the batch may have any size; then the example has several inputs.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    sides = {0: torch.export.Dim("batch")} if any_batch else {}
    sides |= {1: torch.export.Dim("tokens", min=2, max=example.shape[1])} if lengths else {}
    return converted(torch.export.export(tower, (example,), dynamic_shapes=(sides,) if sides else None, strict=False))


_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
_LOG_ERRORS_ONLY = 40


def in_int8(model: Any, encoder: nn.Module, inputs: Tensor, *, kept: Collection[str]) -> Any:
    """Return a model whose convolutions and linear layers compute in int8; everything else stays as it is.

    What goes into them is uint8, with a scale and zero point each, from the least and largest value over calibration
    data; in front of depthwise convolutions, one for each channel. Weights are int8 without a zero point, with a scale
    for each output channel, and within -64 and 64 but for depthwise convolutions: processors without VNNI add pairs of
    products in 16 bits, which eight bits of weights saturate, silently. Layers of squeeze-and-excite blocks, which see
    one vector an image, stay float: so NNCF has it. Products of two activations, those of attention, have no weights
    and stay float32 too.

    Args:
        model: in float32, as OpenVINO converts it, of batches of one or of any size.
        encoder: the tower that it was made of, folded.
        inputs: calibration data, a batch.
        kept: names of layers that stay as they are.
    """
    with quantiser() as nncf:
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        layers = _layers_of(model, encoder)
        missing = set(kept) - {name for several in layers.values() for name in several}
        assert not missing, f"not found in the graph: {missing}"
        rows = torch.split(inputs, 1)
        names = [node.get_friendly_name() for node in model.get_ops()]
        ignored = [name for name in names if not layers.get(name, set()).difference(kept)]
        return nncf.quantize(
            model,
            nncf.Dataset([row.numpy() for row in rows]),
            subset_size=len(rows),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )


@contextmanager
def quantiser() -> Iterator[Any]:
    """Yield NNCF, silent but for errors."""
    nncf = import_quietly("nncf")
    level = nncf.nncf_logger.level
    with quiet():
        nncf.set_log_level(_LOG_ERRORS_ONLY)
        try:
            yield nncf
        finally:
            nncf.set_log_level(level)


def _layers_of(model: Any, encoder: nn.Module) -> dict[str, set[str]]:
    """Return the layers that each operation may be, both by name: those that have its weight.

    The conversion keeps no names of modules, and the values and order of a weight through all that it does to it.
    """
    weights: dict[bytes, set[str]] = {}
    for name, layer in weighted_layers(encoder):
        weight = cast("Tensor", layer.weight).detach().numpy()
        weights.setdefault(weight.tobytes(), set()).add(name)
    layers = {}
    for node in model.get_ops():
        if node.get_type_name() in _WEIGHTED:
            constant = node.input_value(1).get_node()
            if constant.get_type_name() == "Constant" and (names := weights.get(constant.get_data().tobytes())):
                layers[node.get_friendly_name()] = names
    return layers


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
