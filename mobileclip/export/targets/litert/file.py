"""The operations of a `.tflite` file and their weights, which are told from each other by what they multiply by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

SIGNATURE = "serving_default"
"""What hosts call the function of a file; of texts, that of the whole context length."""

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


def signature_of(length: int) -> str:
    """Return the name of the signature for shorter rows of ids."""
    return f"length_{length}"


def operations_of(data: bytes) -> tuple[Operation, ...]:
    """Return the operations of a file that was written here, in order, signature after signature."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    types, kinds = _names(schema.TensorType), _names(schema.BuiltinOperator)
    codes = [kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]

    def stored(tensor: Any) -> npt.NDArray[Any] | None:
        data, dtype = model.buffers[tensor.buffer].data, _FLOATS.get(types[tensor.type])
        if data is None or dtype is None:
            return None
        return np.asarray(data).view(dtype).reshape(() if tensor.shape is None else tensor.shape)

    return tuple(
        Operation(
            kind=codes[one.opcodeIndex],
            output=graph.tensors[one.outputs[0]].name.decode(),
            weight=stored(graph.tensors[one.inputs[1]]) if len(one.inputs) > 1 else None,
        )
        for graph in model.subgraphs
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


def with_float_ends(data: bytes) -> bytes:
    """Return a file whose input is quantised inside, and whose outputs are dequantised there.

    Where these come first and last, the converter makes int8 of the input and the outputs themselves.

    Args:
        data: of a file that was written here.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    for signature in model.signatureDefs:
        _give_float_ends(model, model.subgraphs[signature.subgraphIndex], signature)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _give_float_ends(model: Any, graph: Any, signature: Any) -> None:
    from ai_edge_litert import schema_py_generated as schema

    def float_of(index: int) -> int:
        """Add a float tensor that takes the name of one in int8."""
        one, other = graph.tensors[index], schema.TensorT()
        other.name, other.shape, other.type, other.buffer = one.name, one.shape, schema.TensorType.FLOAT32, 0
        one.name += b"_int8"
        graph.tensors.append(other)
        return len(graph.tensors) - 1

    def operator(kind: int, taken: int, given: int) -> Any:
        code, one = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        one.opcodeIndex, one.inputs, one.outputs = len(model.operatorCodes), [taken], [given]
        model.operatorCodes.append(code)
        return one

    places = {one: one for one in (*graph.inputs, *graph.outputs)}
    for entry in (*signature.inputs, *signature.outputs):
        index = entry.tensorIndex
        if graph.tensors[index].type != schema.TensorType.INT8:
            continue
        entry.tensorIndex = places[index] = float_of(index)
        if entry in signature.inputs:
            graph.operators.insert(0, operator(schema.BuiltinOperator.QUANTIZE, entry.tensorIndex, index))
        else:
            graph.operators.append(operator(schema.BuiltinOperator.DEQUANTIZE, index, entry.tensorIndex))
    graph.inputs, graph.outputs = ([places[one] for one in ends] for ends in (graph.inputs, graph.outputs))


def _names(codes: type) -> dict[int, str]:
    return {value: name for name, value in vars(codes).items() if isinstance(value, int)}
