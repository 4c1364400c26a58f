"""What a Core ML program may take, while it is read and while it runs here: found out without its numbers."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileclip.export.targets.bounds import Bounds

# What a result's shape depends on; of everything else the shape does.
_SIZES = frozenset(
    {
        *("strides", "pad", "dilations", "axes", "begin", "end", "begin_mask", "end_mask", "squeeze_mask"),
        *("shape", "reps", "perm"),
    }
)
_MOST_KNOWN = 2**10
_reading = threading.Lock()


@contextlib.contextmanager
def bounded_reading(path: Path) -> Iterator[None]:
    """Bound what coremltools computes of a program while it reads it, which is whatever is known without an input.

    It knows the shape of a result before the numbers in it, and asks for these in one place. Shapes are put together
    of few; what has many is computed when the program runs, like all others.

    Args:
        path: of the program, for messages.

    Raises:
        ValueError: if values of a fixed shape are larger than in any tower.
    """
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.operation import Operation

    bounds = Bounds(path)

    def checked(operation: Any, output_types: Any) -> Any:
        count = sum(_count(one.get_shape()) for one in output_types if types.is_tensor(one))
        is_constant = operation.op_type == "const"
        if not is_constant:
            bounds.add(operation.name, count)
        if count > _MOST_KNOWN and not is_constant:
            return tuple(None for _ in output_types)
        return compute(operation, output_types)

    with _reading:
        compute = Operation._auto_val  # noqa: SLF001  no public one knows shapes and not yet numbers
        Operation._auto_val = checked  # noqa: SLF001
        try:
            yield
        finally:
            Operation._auto_val = compute  # noqa: SLF001


def taken(
    compute: Callable[[str, Mapping[str, Any]], Tensor], kind: str, arguments: Mapping[str, Any]
) -> tuple[int, int]:
    """Return the most numbers that an operation makes at once, and how many multiplications and additions it takes.

    Args:
        compute: what computes it.
        kind: of the operation.
        arguments: by name.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    without = {name: value if name in _SIZES else _without_numbers(value) for name, value in arguments.items()}
    with torch.device("meta"), counter:
        count = compute(kind, without).numel()
    if kind == "conv" and arguments["pad_type"] == "custom":
        *first, height, width = arguments["x"].shape
        top, bottom, left, right = arguments["pad"].tolist()
        count = max(count, math.prod(first) * (height + top + bottom) * (width + left + right))
    return count, count + counter.get_total_flops()


def _without_numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_numbers(one) for one in value]
    return value.to("meta") if isinstance(value, Tensor) else value


def _count(shape: Any) -> int:
    """Return the numbers in a value; sides that are not fixed make it none that is computed."""
    return math.prod(int(side) for side in shape if isinstance(side, (int, np.integer)))
