"""Core ML: ML programs for iPhones, iPads and Macs, as `.mlpackage` folders."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.int8 import Int8Form
from mobileclip.export.spec import TextDtype
from mobileclip.export.targets.base import (
    CPU,
    NotRunHereError,
    Run,
    Target,
    WrittenFile,
    device_of_runtime,
    quiet,
    readable,
    refuse_threads,
)
from mobileclip.export.towers import SHORTEST, TowerExport
from mobileclip.extras import needed
from mobileclip.hardware import Precision

_IS_MAC = sys.platform == "darwin"


@attrs.frozen
class CoreMLTarget(Target):
    """Core ML through coremltools; any machine can write the packages, but only a Mac can run the packages.

    float16 files compute in float16. In int8 files, unquantised operations compute in float16, as the Neural Engine
    requires. A uint8 input is an image rather than an array, because Core ML arrays are only float or int32.
    """

    suffix: str = ".mlpackage"
    libraries: tuple[str, ...] = ("coremltools",)
    text_dtype: TextDtype = "int32"
    int8: Int8Form = Int8Form(stores_weights=True, largest_weight=127)
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8")
    cuts_texts: bool = True
    runtime: str = "Core ML"

    def check(self) -> None:
        """Raise an error unless all required packages are installed.

        Raises:
            ImportError: if a package is missing; the message gives the install command.
        """
        with needed("the target 'coreml'", "coreml"):
            import_coremltools()

    def export(self, tower: TowerExport, path: Path) -> WrittenFile:
        """Write one tower.

        Raises:
            ValueError: if the input is an image and the batch is dynamic.
        """
        takes_image = tower.input_dtype == "uint8"
        if takes_image and tower.spec.dynamic_batch:
            raise ValueError(
                "Core ML accepts one image at a time, and uint8 pixels count as an image; leave --dynamic-batch "
                "out, or choose --preprocess float32"
            )
        if takes_image:
            spec = attrs.evolve(tower.spec, preprocess="float32")
            tower = attrs.evolve(tower, spec=spec, calibration=tower.calibration.float())
        convert(tower.program_of(self.graph(tower)), tower, path, takes_image=takes_image)
        return self.written(tower)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with Core ML, on a Mac.

        Core ML chooses the device itself, so `device` must be `cpu`.

        Raises:
            NotRunHereError: if this machine is not a Mac.
            ValueError: if the file cannot be read.
        """
        device_of_runtime(device, {CPU: CPU}, self.runtime)
        if not _IS_MAC:
            raise NotRunHereError(
                f"{path.name} is written, not run: Core ML runs only on Macs and other Apple devices; run mobileclip "
                "verify on a Mac, or compare with the golden vectors on the device"
            )
        refuse_threads(num_threads, "Core ML")
        return _core_ml(path, tower)


def _core_ml(path: Path, tower: TowerFile) -> Run:
    coremltools = import_coremltools()
    with readable(path, "Core ML", "a newer macOS"):
        model = coremltools.models.MLModel(str(path))
    given: Callable[[Tensor], Any] = _picture if tower.input_dtype == "uint8" else Tensor.numpy

    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = model.predict({tower.input_name: given(inputs)})
        return tuple(torch.from_numpy(np.asarray(outputs[name], dtype=np.float32)) for name in tower.outputs)

    return run


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels[0].movedim(0, -1).contiguous().numpy())


# Core ML requires an upper bound for every dynamic axis.
LARGEST_BATCH = 64
# Operations that scale embeddings to unit length: float16 cannot represent the squares of large values.
_UNIT_LENGTH = frozenset({"reduce_l2_norm", "maximum", "tile", "real_div"})
# The converter adds a table for profilers of another runtime to the package.
_PROFILER_TABLE = "executorch_debug_handle_mapping.json"
# Packages that coremltools imports if they are installed, which takes seconds, and that no conversion needs.
_UNNEEDED = frozenset({"executorch", "sklearn", "torchvision", "transformers"})
_IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


def convert(program: torch.export.ExportedProgram, tower: TowerExport, path: Path, *, takes_image: bool) -> None:
    """Write a program as an ML program for iOS 17 and macOS 14.

    Dtypes stay as in the program, with one exception: in an int8 program, all float operations except the final
    normalisation become float16.

    Args:
        program: program in float32, float16 or int8.
        tower: tower that the program was exported from.
        path: path of the package to write.
        takes_image: whether the input is an image rather than an array.
    """
    coremltools = import_coremltools()
    with _without_bars():
        pipeline = coremltools.PassPipeline()
        # Token ids exceed 16 bits, and sums in units of the smaller step exceed the range of float16.
        pipeline.remove_passes(
            {"common::add_int16_cast", "common::distributive_quantized_binary_op_scale_normalization"}
        )
        precision: Any = coremltools.precision.FLOAT32
        if tower.spec.precision == "int8":
            precision = coremltools.transform.FP16ComputePrecision(op_selector=_becomes_half)
        batch = coremltools.RangeDim(1, LARGEST_BATCH, default=1) if tower.spec.dynamic_batch else 1
        shape: Any = coremltools.Shape((batch, *tower.input_shape))
        if tower.lengths and tower.spec.dynamic_batch:
            longest = tower.lengths[-1]
            shape = coremltools.Shape((batch, coremltools.RangeDim(SHORTEST, longest, default=longest)))
        elif tower.lengths:
            # All enumerated lengths run on the Neural Engine; of a range, only the default length does.
            shapes = [(1, length) for length in tower.lengths]
            shape = coremltools.EnumeratedShapes(shapes, default=shapes[-1])
        if takes_image:
            taken = coremltools.ImageType(name=tower.input_name, shape=shape, color_layout=coremltools.colorlayout.RGB)
        else:
            dtype = np.dtype(tower.input_dtype).type
            taken = coremltools.TensorType(name=tower.input_name, shape=shape, dtype=dtype)
        with _norms_in_their_type():
            model = coremltools.convert(
                program.run_decompositions({}),
                inputs=[taken],
                outputs=[coremltools.TensorType(name=name, dtype=np.float32) for name in tower.output_names],
                convert_to="mlprogram",
                compute_precision=precision,
                minimum_deployment_target=coremltools.target.iOS17,
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
        model.author, model.license = tower.notes.get("author", ""), tower.notes.get("license", "")
        model.short_description = f"{tower.notes.get('name', '')}, {tower.tower} tower"
        model.user_defined_metadata.update(tower.notes)
        model.save(str(path))
    (path / _PROFILER_TABLE).unlink(missing_ok=True)


def _becomes_half(operation: Any) -> bool:
    return operation.op_type not in _UNIT_LENGTH


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Silence coremltools: version warnings, progress bars, and messages about missing libraries of macOS."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield


def import_coremltools() -> Any:
    """Import coremltools without the packages that coremltools needs only for models of other libraries.

    Raises:
        ImportError: if coremltools is not installed.
    """
    unneeded = _Unneeded()
    with _without_bars():
        sys.meta_path.insert(0, unneeded)
        try:
            return import_module("coremltools")
        finally:
            sys.meta_path.remove(unneeded)


class _Unneeded(MetaPathFinder):
    """An import finder that hides packages from coremltools, except for packages that are already imported."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        """Hide packages that coremltools does not need, and leave all other imports to the other finders.

        Raises:
            ModuleNotFoundError: if coremltools imports a hidden package.
        """
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename in (__file__, *_IMPORTING):
            frame = frame.f_back
        asking = "" if frame is None else frame.f_globals.get("__name__", "")
        if fullname in _UNNEEDED and asking.partition(".")[0] == "coremltools":
            raise ModuleNotFoundError(f"{fullname} is hidden from coremltools", name=fullname)


@contextlib.contextmanager
def _norms_in_their_type() -> Iterator[None]:
    """Make coremltools convert float16 layer norms; its own conversion always uses a float32 epsilon."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY, register_torch_op
    from coremltools.converters.mil.mil.types import builtin_to_string, nptype_from_builtin

    def layer_norm(context: Any, node: Any) -> None:
        x, normalized, weight, bias, epsilon = _get_inputs(context, node)[:5]
        if weight is not None and x.dtype != weight.dtype:  # a mean over a mask, which coremltools computes in float32
            x = Builder.cast(x=x, dtype=builtin_to_string(weight.dtype))
        context.add(
            Builder.layer_norm(
                x=x,
                axes=list(range(-len(normalized.val), 0)),
                gamma=weight,
                beta=bias,
                epsilon=nptype_from_builtin(x.dtype)(epsilon.val),
                name=node.name,
            )
        )

    before = _TORCH_OPS_REGISTRY.get_func("layer_norm")
    register_torch_op(layer_norm, override=True)
    try:
        yield
    finally:
        register_torch_op(before, override=True)
