"""Core ML's programs, read from their files and computed in PyTorch: what can be known where Core ML does not run.

Each operation computes in float32 and is rounded to the type that the program declares for its result. Core ML's
kernels round elsewhere too: the Neural Engine adds up in fewer bits, the processor in more.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.machine import raise_machine_fault
from mobileclip.storage import printable
from mobileclip.terminal.silence import SILENCING

_DTYPES = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "bool": torch.bool,
}
_TALKATIVE = ("coremltools", "torchao", "torch.utils._pytree")
_DATA = Path("Data", "com.apple.CoreML")


@attrs.frozen(kw_only=True, eq=False)
class MilProgram:
    """An ML program.

    Args:
        description: of inputs and outputs, as the file has it.
        function: what it computes, as coremltools read it.
    """

    description: Any
    function: Any = attrs.field(repr=False)
    _wide: dict[str, Any] = attrs.field(factory=dict, init=False, repr=False)

    def constants(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the numbers that the program holds, by name."""
        found = {}
        for operation in self.function.operations:
            if operation.op_type == "const" and isinstance(operation.outputs[0].val, np.ndarray):
                found[operation.outputs[0].name] = operation.outputs[0].val
        return found

    @property
    def unknown(self) -> list[str]:
        """Operations that cannot be computed here."""
        kinds = {operation.op_type for operation in self.function.operations}
        return sorted(kinds - {"const", *_OPERATIONS, *_PLAIN})

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the program's outputs.

        Args:
            inputs: by name, of the types that the program declares.

        Raises:
            ValueError: if it holds an operation, or a form of one, that is not known here.
        """
        last_uses, values = self._last_uses(), dict[str, Any](inputs)
        for number, operation in enumerate(self.function.operations):
            if operation.op_type == "const":
                continue
            (output,) = operation.outputs
            if output.name in self._wide:
                continue
            arguments = {
                name: self._argument(argument, values)
                for name, argument in operation.inputs.items()
                if argument is not None and name != "name"
            }
            result = _narrow(_compute(operation.op_type, arguments), output)
            if operation.op_type.startswith("constexpr_"):
                self._wide[output.name] = _widen(result)
            else:
                values[output.name] = result
            for name in last_uses.get(number, ()):
                values.pop(name, None)
        return [values[output.name] for output in self.function.outputs]

    def _last_uses(self) -> dict[int, list[str]]:
        """Return the values that are of no use after an operation, by its place."""
        places: dict[str, int] = {}
        for number, operation in enumerate(self.function.operations):
            for argument in operation.inputs.values():
                for one in argument if isinstance(argument, Sequence) else (argument,):
                    if one is not None:
                        places[one.name] = number
        for output in self.function.outputs:
            places.pop(output.name, None)
        uses: dict[int, list[str]] = {}
        for name, number in places.items():
            uses.setdefault(number, []).append(name)
        return uses

    def _argument(self, variable: Any, values: Mapping[str, Any]) -> Any:
        """Return what an operation takes, in float32 where it is in half precision."""
        if isinstance(variable, Sequence):
            return [self._argument(one, values) for one in variable]
        if variable.name in values:
            return _widen(values[variable.name])
        if variable.name not in self._wide:
            value = variable.val
            is_array = isinstance(value, np.ndarray)
            self._wide[variable.name] = _widen(torch.from_numpy(np.array(value))) if is_array else _plain(value)
        return self._wide[variable.name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what coremltools and what it imports have to say to themselves: untried versions, bars, parts for Macs."""
    with SILENCING:
        loggers = [logging.getLogger(name) for name in _TALKATIVE]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def read_program(path: Path) -> MilProgram:
    """Return the program of an `.mlpackage`.

    Args:
        path: of the package, of somebody who is trusted.

    Raises:
        ValueError: if it cannot be read, or is no ML program.
    """
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.proto import Model_pb2
    try:
        spec = Model_pb2.Model.FromString((path / _DATA / "model.mlmodel").read_bytes())
        function = load(spec, spec.specificationVersion, str(path / _DATA / "weights")).functions["main"]
    except Exception as error:
        raise_machine_fault(error)
        # protobuf, coremltools and its storage in C++ each have their own errors for a damaged file.
        raise ValueError(
            f"{path} cannot be read as a Core ML package ({type(error).__name__}: {printable(error)}); export the "
            "model again"
        ) from error
    return MilProgram(description=spec.description, function=function)


def _compute(kind: str, arguments: Mapping[str, Any]) -> Tensor:
    """Return what an operation gives."""
    if kind in _PLAIN:
        return _PLAIN[kind](*(arguments[name] for name in ("x", "y") if name in arguments))
    if kind not in _OPERATIONS:
        raise ValueError(f"the program holds the operation {kind!r}, which is not known here; run it on a Mac")
    compute = _OPERATIONS[kind]
    try:
        bound = inspect.signature(compute).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"the program holds a form of {kind!r} that is not known here ({error}); run it on a Mac"
        ) from error
    return compute(*bound.args, **bound.kwargs)


def _narrow(result: Tensor, declared: Any) -> Tensor:
    from coremltools.converters.mil.mil.types import builtin_to_string

    return result.to(_DTYPES[builtin_to_string(declared.dtype)])


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _same(x: Tensor, dtype: str | None = None) -> Tensor:
    """Return `x`; a cast is what the declared type makes of it."""
    del dtype
    return x


def _conv(
    x: Tensor,
    *,
    weight: Tensor,
    strides: Tensor,
    pad_type: str,
    pad: Tensor,
    dilations: Tensor,
    groups: int,
    bias: Tensor | None = None,
) -> Tensor:
    top, bottom, left, right = pad.tolist() if pad_type == "custom" else (0, 0, 0, 0)
    if pad_type not in ("custom", "valid"):
        raise ValueError(f"the program pads by {pad_type!r}, which is not known here; run it on a Mac")
    if (top, left) == (bottom, right):
        return F.conv2d(x, weight, bias, strides.tolist(), (top, left), dilations.tolist(), groups)
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, weight, bias, strides.tolist(), 0, dilations.tolist(), groups)


def _matmul(x: Tensor, y: Tensor, *, transpose_x: bool, transpose_y: bool) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _gelu(x: Tensor, mode: str) -> Tensor:
    if mode != "EXACT":
        raise ValueError(f"the program holds a GELU of the form {mode!r}, which is not known here; run it on a Mac")
    return F.gelu(x)


def _layer_norm(x: Tensor, axes: Tensor, epsilon: float, gamma: Tensor, beta: Tensor) -> Tensor:
    axis = axes.tolist()
    if axis not in ([-1], [x.ndim - 1]):
        raise ValueError(f"the program normalises over the axes {axis}, and only the last is known here")
    return F.layer_norm(x, x.shape[-1:], gamma, beta, epsilon)


def _slice_by_index(
    x: Tensor,
    *,
    begin: Tensor,
    end: Tensor,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    masks = [[False] * x.ndim if mask is None else mask.tolist() for mask in (begin_mask, end_mask, squeeze_mask)]
    index: list[int | slice] = []
    for first, last, from_start, to_end, one in zip(begin.tolist(), end.tolist(), *masks, strict=True):
        index.append(first if one else slice(None if from_start else first, None if to_end else last))
    return x[tuple(index)]


def _concat(values: list[Any], axis: int, *, interleave: bool) -> Tensor:
    if interleave:
        raise ValueError("the program interleaves channels, which is not known here; run it on a Mac")
    # Shapes are put together of numbers, which come without a dimension.
    tensors = [torch.as_tensor(value) for value in values]
    return torch.cat([tensor if tensor.ndim else tensor[None] for tensor in tensors], dim=axis)


def _gather(x: Tensor, indices: Any, axis: int, batch_dims: int, *, validate_indices: bool) -> Tensor:
    if batch_dims or validate_indices:
        raise ValueError("the program gathers in batches, or checks what it gathers, which is not known here")
    index = torch.as_tensor(indices)
    taken = x.index_select(axis, index.flatten().long())
    return taken.reshape((*x.shape[:axis], *index.shape, *x.shape[axis:][1:]))


def _gather_along_axis(x: Tensor, indices: Tensor, axis: int, *, validate_indices: bool) -> Tensor:
    if validate_indices:
        raise ValueError("the program checks what it gathers, which is not known here; run it on a Mac")
    return torch.gather(x, axis, indices.long())


def _divide(x: Tensor, y: Any) -> Tensor:
    divisor = torch.as_tensor(y)
    # Integers are divided to integers, towards zero.
    mode = None if x.is_floating_point() or divisor.is_floating_point() else "trunc"
    return torch.div(x, divisor, rounding_mode=mode)


def _quantize(input: Tensor, scale: float, output_dtype: str, zero_point: float = 0) -> Tensor:  # noqa: A002  its name
    ends = torch.iinfo(_DTYPES[output_dtype])
    return (torch.round(input / scale) + zero_point).clamp(ends.min, ends.max)


def _dequantize(input: Tensor, scale: float, zero_point: float = 0) -> Tensor:  # noqa: A002  its name
    return (input.float() - zero_point) * scale


def _dequantize_constant(quantized_data: Tensor, scale: Any, zero_point: Any, axis: int) -> Tensor:
    """Return weights; scale and zero point are one, or one for each index of an axis."""
    along = [-1 if dim == axis % quantized_data.ndim else 1 for dim in range(quantized_data.ndim)]
    factor, zero = (torch.as_tensor(value).float().reshape(-1) for value in (scale, zero_point))
    return (quantized_data.float() - zero.reshape(along)) * factor.reshape(along)


def _argmax(x: Tensor, axis: int, *, keep_dims: bool, output_dtype: str = "int32") -> Tensor:
    del output_dtype
    return x.argmax(axis, keepdim=keep_dims)


def _expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


# Each takes the operation's inputs by name.
_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "cast": _same,
    "concat": _concat,
    "constexpr_affine_dequantize": _dequantize_constant,
    "conv": _conv,
    "dequantize": _dequantize,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gelu": _gelu,
    "identity": _same,
    "layer_norm": _layer_norm,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": _matmul,
    "maximum": lambda x, y: torch.maximum(x, torch.as_tensor(y, dtype=x.dtype)),
    "quantize": _quantize,
    "real_div": _divide,
    "reduce_argmax": _argmax,
    "reduce_l2_norm": lambda x, axes, keep_dims: x.norm(dim=axes.tolist(), keepdim=keep_dims),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(dim=axes.tolist(), keepdim=keep_dims),
    "reshape": lambda x, shape: x.reshape(shape.tolist()),
    "select": lambda cond, a, b: torch.where(torch.as_tensor(cond), torch.as_tensor(a), torch.as_tensor(b)),
    "shape": lambda x: torch.tensor(x.shape),
    "slice_by_index": _slice_by_index,
    "softmax": lambda x, axis: x.softmax(axis),
    "tile": lambda x, reps: x.tile(reps.tolist()),
    "transpose": lambda x, perm: x.permute(perm.tolist()),
}
# PyTorch's functions of one or two operands, which name their arguments otherwise.
_PLAIN: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "greater_equal": torch.ge,
    "mul": torch.mul,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "sub": torch.sub,
}
