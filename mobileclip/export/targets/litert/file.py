"""The operations of a `.tflite` file and their weights, which are told from each other by what they multiply by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

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


def operations_of(data: bytes) -> tuple[Operation, ...]:
    """Return the operations of a file that was written here, in order."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    (graph,) = model.subgraphs
    types, kinds = _names(schema.TensorType), _names(schema.BuiltinOperator)
    codes = [kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]

    def stored(index: int) -> npt.NDArray[Any] | None:
        tensor = graph.tensors[index]
        data, dtype = model.buffers[tensor.buffer].data, _FLOATS.get(types[tensor.type])
        if data is None or dtype is None:
            return None
        return np.asarray(data).view(dtype).reshape(() if tensor.shape is None else tensor.shape)

    return tuple(
        Operation(
            kind=codes[one.opcodeIndex],
            output=graph.tensors[one.outputs[0]].name.decode(),
            weight=stored(one.inputs[1]) if len(one.inputs) > 1 else None,
        )
        for one in graph.operators
    )


def with_notes(data: bytes, notes: Mapping[str, str]) -> bytes:
    """Return a file with metadata: entries of a name and a text each.

    Args:
        data: of a file that was written here.
        notes: texts by name; the one called `name` is the model's description too.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    model.description = notes.get("name", "")
    model.metadata = list(model.metadata or [])
    for name, text in notes.items():
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer, buffer.data = name, len(model.buffers), list(text.encode())
        model.buffers.append(buffer)
        model.metadata.append(entry)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def with_float_input(data: bytes) -> bytes:
    """Return a file whose input is quantised inside: where that comes first, the converter makes int8 of the input.

    Args:
        data: of a file that was written here; as it is where its input is no int8.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    (index,) = graph.inputs
    quantised = graph.tensors[index]
    if quantised.type != schema.TensorType.INT8:
        return data
    taken, code, operator = schema.TensorT(), schema.OperatorCodeT(), schema.OperatorT()
    taken.name, taken.shape, taken.type, taken.buffer = quantised.name, quantised.shape, schema.TensorType.FLOAT32, 0
    quantised.name += b"_int8"
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes), [len(graph.tensors)], [index]
    model.operatorCodes.append(code)
    graph.inputs = [len(graph.tensors)]
    signature.inputs[0].tensorIndex = len(graph.tensors)
    graph.tensors.append(taken)
    graph.operators.insert(0, operator)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _names(codes: type) -> dict[int, str]:
    return {value: name for name, value in vars(codes).items() if isinstance(value, int)}
