"""Every form of a tower; the same code makes the forms of this library's tower and of the release's tower."""

from __future__ import annotations

import copy
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import torch
from torch import Tensor, nn

from benchmarks.rivals import Tower, exported
from mobileclip.encoders import ImageEncoderSpec
from mobileclip.extras import install_command
from mobileclip.hardware import FastPrecision, dtype_of
from mobileclip.inference import optimize_tower
from mobileclip.inference.comparison import times_in_turn
from mobileclip.inference.forms import causal_pool, truncate_to_longest, with_depthwise_convs, with_one_token
from mobileclip.inference.openvino_backend import openvino_model, openvino_program, quantiser
from mobileclip.inputs import ImageInput

Side = Literal["release", "ours"]
Engine = Literal["eager", "optimize", "onnxruntime", "openvino"]
Form = Literal[
    "eager",
    "eager_bf16",
    "optimize",
    "optimize_bf16",
    "onnxruntime",
    "openvino",
    "openvino_bf16",
    "openvino_int8",
]
FORMS: tuple[Form, ...] = get_args(Form)
USUAL: tuple[Form, ...] = ("eager", "onnxruntime", "openvino", "openvino_bf16", "openvino_int8")
"""Forms that were the best of any side. `optimize`, which takes a minute to choose, and eager bfloat16 are not
default."""
Encode = Callable[[Tensor], Tensor]

_PRECISIONS: dict[str, FastPrecision] = {"": "float32", "bf16": "bfloat16", "int8": "int8"}
# Imported modules, and the extras that install them.
_NEEDS: dict[Engine, tuple[tuple[str, ...], str]] = {
    "eager": ((), ""),
    "optimize": ((), ""),
    "onnxruntime": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "openvino": (("openvino", "nncf"), "openvino"),
}
_FEW = 4
# A variant this many times slower than another is not tried again.
_HOPELESS = 1.3


def parts_of(form: Form) -> tuple[Engine, FastPrecision]:
    """Return the runtime and the precision of a form."""
    name, _, precision = form.partition("_")
    engine: Engine = name  # type: ignore[assignment]  # every form begins with one
    return engine, _PRECISIONS[precision]


def missing(form: Form) -> str:
    """Return the missing packages of a form with their install command; empty if none is missing."""
    modules, extra = _NEEDS[parts_of(form)[0]]
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}; {install_command(extra)}" if absent else ""


def has(side: Side, form: Form) -> bool:
    """Return whether a side has a form; only this library has `optimize`."""
    return side == "ours" or not form.startswith("optimize")


@attrs.frozen(kw_only=True, eq=False)
class Contender:
    """One form of a side's tower.

    Args:
        encode: function from a batch of inputs to embeddings in float32.
        most: maximum number of inputs per call; larger batches are split.
        layout: layout of the feature maps.
        takes_pixels: whether the form also accepts uint8 pixels in place of images.
    """

    encode: Encode
    most: int
    layout: str = ""
    takes_pixels: bool = False

    def __str__(self) -> str:
        """Return what was chosen."""
        return ", ".join([*([self.layout] if self.layout else []), f"{self.most} at once"])


@attrs.frozen(kw_only=True, eq=False)
class Contestant:
    """One side's tower, which makes the side's forms.

    Args:
        side: name of the side.
        module: folded tower, in float32 and evaluation mode.
        mine: this library's folded tower, which gives the exporter the input contract.
        tower: name of the tower.
    """

    side: Side
    module: nn.Module
    mine: nn.Module
    tower: Tower

    @cached_property
    def computed(self) -> nn.Module:
        """The module to run; this library's module has the form that `optimize` and the exporters use."""
        return self.module if self.side == "release" else _as_exported(self.module)

    @property
    def pixels(self) -> ImageInput | None:
        """The conversion of pixels to images in this library's programs; the release's programs take images."""
        spec = self.mine.spec
        return spec.input if self.side == "ours" and isinstance(spec, ImageEncoderSpec) else None

    def contenders(self, form: Form, inputs: Tensor, ranges: Tensor, folder: Path) -> Iterator[Contender]:
        """Yield a form's variants, the same for both sides: memory layouts, and a large batch whole or in fours.

        Args:
            form: name of the form.
            inputs: a batch of the size to measure.
            ranges: a batch to calibrate the ranges of int8.
            folder: folder for exported files.

        Raises:
            Exception: any error of a compiler, exporter or runtime that cannot make the form.
        """
        engine, precision = parts_of(form)
        if engine == "optimize":
            fast, report = optimize_tower(self.module, inputs, precision=precision)
            yield Contender(encode=fast, most=len(inputs), layout=str(report.used and report.used.form))
            return
        if engine == "eager":
            for layout, most in variants_of(self.tower, len(inputs)):
                run = self._torch(precision, layout)
                yield Contender(encode=partial(_in_parts, run, most), most=most, layout=layout)
            return
        made = self._onnxruntime(inputs, folder) if engine == "onnxruntime" else self._openvino(form, inputs, ranges)
        takes_pixels = engine == "openvino" and self.pixels is not None
        for most in at_once(len(inputs)):
            yield Contender(encode=partial(_in_parts, made(most), most), most=most, takes_pixels=takes_pixels)

    def _torch(self, precision: FastPrecision, layout: str) -> Encode:
        dtype = dtype_of(precision)
        module = copy.deepcopy(self.computed).to(dtype)
        options: dict[str, Any] = {"memory_format": torch.channels_last} if layout == "channels innermost" else {}
        module.to(**options)
        pool = causal_pool(self.module)

        def run(inputs: Tensor) -> Tensor:
            if inputs.is_floating_point():
                inputs = inputs.to(dtype, **options)
            elif pool is not None:
                inputs = truncate_to_longest(inputs, pool)
            embeddings: Tensor = module(inputs).float()
            return embeddings

        return run

    def _onnxruntime(self, inputs: Tensor, folder: Path) -> Callable[[int], Encode]:
        rival = self.module if self.side == "release" else None
        run = exported(self.mine, self.tower, "onnxruntime", batch_size=len(inputs), rival=rival, folder=folder)
        return lambda _: run

    def _openvino(self, form: Form, inputs: Tensor, ranges: Tensor) -> Callable[[int], Encode]:
        pool = causal_pool(self.module)
        lengths = pool is not None
        precision = parts_of(form)[1]
        int8 = default_int8(self.computed, ranges, lengths=lengths) if precision == "int8" else None

        def made(most: int) -> Encode:
            program = openvino_program(
                self.computed,
                inputs[:most].clone(),
                lengths=lengths,
                precision=precision,
                int8=int8,
                pixels=self.pixels,
            )
            return program if pool is None else lambda part: program(truncate_to_longest(part, pool).contiguous())

        return made


def default_int8(tower: nn.Module, ranges: Tensor, *, lengths: bool) -> Any:
    """Return a tower as an OpenVINO model in int8 with NNCF's default settings, for batches of one."""
    model = openvino_model(tower, ranges[:_FEW], lengths=lengths, any_batch=True)
    model.reshape([1, *ranges.shape[1:]])
    with quantiser() as nncf:
        return nncf.quantize(model, nncf.Dataset([row.numpy() for row in torch.split(ranges, 1)]))


def _as_exported(tower: nn.Module) -> nn.Module:
    return with_depthwise_convs(with_one_token(tower))


def fastest(variants: list[Contender], inputs: Tensor, *, rounds: int) -> Contender:
    """Return the variant with the minimum median time; variants that are far slower in the first round are dropped."""
    if len(variants) > 1:
        first = [times[0] for times in times_in_turn(_calls(variants, inputs), rounds=1)]
        variants = [one for one, ms in zip(variants, first, strict=True) if ms <= _HOPELESS * min(first)]
    if len(variants) == 1:
        return variants[0]
    medians = [statistics.median(times) for times in times_in_turn(_calls(variants, inputs), rounds=rounds)]
    return variants[medians.index(min(medians))]


def _calls(variants: list[Contender], inputs: Tensor) -> list[Callable[[], Tensor]]:
    return [partial(one.encode, inputs) for one in variants]


def variants_of(tower: Tower, batch_size: int) -> list[tuple[str, int]]:
    """Return PyTorch's memory layouts, each with the number of inputs per call."""
    return list(product(("contiguous", "channels innermost") if tower == "image" else ("",), at_once(batch_size)))


def at_once(batch_size: int) -> list[int]:
    """Return the possible numbers of inputs per call: the whole batch, and four if four divides a larger batch."""
    return [batch_size, _FEW] if batch_size > _FEW and batch_size % _FEW == 0 else [batch_size]


def _in_parts(run: Encode, most: int, inputs: Tensor) -> Tensor:
    return torch.cat([run(part) for part in torch.split(inputs, most)])
