"""What a `.tflite` file holds, read without its runtime: inputs, outputs, operations and all numbers in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip.export.targets.base import Described
from mobileclip.machine import raise_machine_fault

SIGNATURE = "serving_default"
"""What the converter calls the one function of a file."""

_FLOATS = {"FLOAT16": np.float16, "FLOAT32": np.float32, "FLOAT64": np.float64}


@attrs.frozen(kw_only=True, eq=False)
class Operation:
    """One operation.

    Args:
        kind: its name in the format, such as `CONV_2D`.
        output: name of the first value that it gives.
        weight: what it multiplies by or looks up, where that is stored as floats.
    """

    kind: str
    output: str
    weight: npt.NDArray[Any] | None = attrs.field(repr=False)


@attrs.frozen(kw_only=True, eq=False)
class LiteRTFile:
    """What a `.tflite` file holds.

    Args:
        inputs: of its signature.
        outputs: of its signature, in no order that counts.
        operations: in order.
        numbers: floats that are stored, by the name of their tensor.
    """

    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]
    operations: tuple[Operation, ...] = attrs.field(repr=False)
    numbers: dict[str, npt.NDArray[Any]] = attrs.field(repr=False)


def read_litert(data: bytes, path: Path) -> LiteRTFile:
    """Return what a file holds.

    Args:
        data: its bytes.
        path: for messages.

    Raises:
        ValueError: if it is no model of LiteRT with one signature, or a damaged one.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        return _read(schema.ModelT.InitFromPackedBuf(data, 0), schema)
    except Exception as error:
        raise_machine_fault(error)
        # Whatever a damaged file makes of a reader that trusts it.
        raise ValueError(
            f"{path} is a damaged model of LiteRT ({type(error).__name__}: {error}); export the model again"
        ) from error


def _read(model: Any, schema: Any) -> LiteRTFile:
    (graph,) = model.subgraphs
    (signature,) = model.signatureDefs
    if signature.signatureKey.decode() != SIGNATURE:
        raise ValueError(f"its signature is {signature.signatureKey!r}")
    types, kinds = _names(schema.TensorType), _names(schema.BuiltinOperator)
    codes = [kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]

    def described(value: Any) -> Described:
        tensor = graph.tensors[value.tensorIndex]
        return (value.name.decode(), types[tensor.type].lower(), tuple(int(side) for side in tensor.shape))

    def stored(index: int) -> npt.NDArray[Any] | None:
        tensor = graph.tensors[index]
        data, dtype = model.buffers[tensor.buffer].data, _FLOATS.get(types[tensor.type])
        if data is None or dtype is None:
            return None
        return np.asarray(data).view(dtype).reshape(() if tensor.shape is None else tensor.shape)

    numbers = {
        tensor.name.decode(): numbers
        for index, tensor in enumerate(graph.tensors)
        if (numbers := stored(index)) is not None
    }
    operations = tuple(
        Operation(
            kind=codes[one.opcodeIndex],
            output=graph.tensors[one.outputs[0]].name.decode(),
            weight=stored(one.inputs[1]) if len(one.inputs) > 1 else None,
        )
        for one in graph.operators
    )
    return LiteRTFile(
        inputs=tuple(map(described, signature.inputs)),
        outputs=tuple(map(described, signature.outputs)),
        operations=operations,
        numbers=numbers,
    )


def _names(codes: type) -> dict[int, str]:
    return {value: name for name, value in vars(codes).items() if isinstance(value, int)}
