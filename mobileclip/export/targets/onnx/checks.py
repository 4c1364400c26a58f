"""ONNX models, looked through before a runtime sees them: one file, known operations, values of bounded size."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobileclip.export.targets.onnx.bounds import Bounds
from mobileclip.export.targets.onnx.sizes import fold_sizes
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import printable

if TYPE_CHECKING:
    import onnx

_MOST_BYTES, _MOST_NODES, _SMALL = 2**31 - 1, 50_000, 1024
# Those that give new values of what they are given: no loops, no branches, no chance, nothing of other domains.
_OPERATIONS = re.compile(
    "Abs|Add|And|ArgMax|ArgMin|AveragePool|BatchNormalization|Cast|Ceil|Clip|Concat|Conv|Cos|CumSum|"
    "DequantizeLinear|Div|Dropout|Elu|Equal|Erf|Exp|Expand|Flatten|Floor|Gather|GatherElements|GatherND|Gelu|"
    "Gemm|GlobalAveragePool|Greater|GreaterOrEqual|GroupNormalization|HardSigmoid|HardSwish|Identity|"
    "InstanceNormalization|LayerNormalization|LeakyRelu|Less|LessOrEqual|Log|LogSoftmax|MatMul|Max|MaxPool|Mean|"
    "Min|Mish|Mod|Mul|Neg|Not|Or|PRelu|Pad|Pow|QuantizeLinear|Range|Reciprocal|ReduceL1|ReduceL2|ReduceMax|"
    "ReduceMean|ReduceMin|ReduceProd|ReduceSum|ReduceSumSquare|Relu|Reshape|Resize|RMSNormalization|Round|Selu|"
    "Shape|Sigmoid|Sign|Sin|Slice|Softmax|Softplus|Softsign|Split|Sqrt|Squeeze|Sub|Sum|Tan|Tanh|Tile|Transpose|"
    "Trilu|Unsqueeze|Where|Xor"
)
# Numbers and texts; no graphs, and no tensors, which initializers hold.
_ATTRIBUTES = ("FLOAT", "INT", "STRING", "FLOATS", "INTS", "STRINGS")


def parse_onnx(data: bytes, path: Path, *, believed: bool = False) -> onnx.ModelProto:
    """Return a model of known parts, or, where it is believed, of any.

    Args:
        data: of the file.
        path: of it, for messages.
        believed: whether operations that are not known here are its author's business.

    Raises:
        ValueError: if it is no ONNX model, or holds or names anything but known operations and plain weights.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise_machine_fault(error)
        # protobuf's errors, of whichever implementation is installed.
        raise ValueError(f"{path} is no ONNX model: {printable(error)}; export the model again") from error
    try:
        if not believed:
            _check(model)
        onnx.checker.check_model(model)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ValueError(
            f"{path} is not a valid ONNX model of known parts: {printable(error)}; do not use it unless you made it, "
            "and then export the model again"
        ) from error
    return model


def read_onnx(path: Path) -> bytes:
    """Return the bytes of a model's file.

    Raises:
        ValueError: if it is too large for one.
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and ONNX models have up to {_MOST_BYTES:,}")
    return path.read_bytes()


def check_cost(graph: onnx.ModelProto, taken: Sequence[int], path: Path) -> None:
    """Check what one run of a model takes, by the shapes of all its values.

    Args:
        graph: that `without_weights` returned.
        taken: shape of the input.
        path: of its file, for messages.

    Raises:
        ValueError: if a shape cannot be known beforehand, or the values are larger than those of any tower.
    """
    import onnx

    sized = onnx.ModelProto()
    sized.CopyFrom(graph)
    try:
        for side, length in zip(sized.graph.input[0].type.tensor_type.shape.dim, taken, strict=True):
            side.dim_value = length
        fold_sizes(sized)
        inferred = onnx.shape_inference.infer_shapes(sized, strict_mode=True, data_prop=True)
    except Exception as error:
        raise_machine_fault(error)
        # Its errors have no common base of their own.
        raise ValueError(f"{path} cannot be run: {printable(error)}; export the model again") from error
    shapes = {value.name: _shape(value) for value in (*inferred.graph.input, *inferred.graph.value_info)}
    shapes |= {value.name: _shape(value) for value in inferred.graph.output}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer}
    bounds = Bounds(path)
    for node in inferred.graph.node:
        given = [shapes.get(name) for name in node.input if name]
        for output in filter(None, node.output):
            shape = shapes.get(output)
            if shape is None or any(one is None for one in given):
                raise ValueError(
                    f"{path}: the size of {printable(output)} cannot be known before it is run; do not use it"
                )
            bounds.add(
                output, math.prod(shape), _products(node.op_type, [one for one in given if one is not None], shape)
            )


def _check(model: onnx.ModelProto) -> None:
    import onnx

    graph = model.graph
    domains = {entry.domain for entry in model.opset_import}
    if domains - {"", "ai.onnx"} or model.functions or model.training_info or graph.sparse_initializer:
        raise ValueError("it holds operations of its own, a training graph or sparse weights")
    if len(graph.node) > _MOST_NODES:
        raise ValueError(f"it holds {len(graph.node):,} operations, and up to {_MOST_NODES:,} are known here")
    kinds = {onnx.AttributeProto.AttributeType.Value(name) for name in _ATTRIBUTES}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or not _OPERATIONS.fullmatch(node.op_type):
            raise ValueError(f"it holds the operation {printable(f'{node.domain} {node.op_type}'.strip(), limit=80)}")
        if any(attribute.type not in kinds or attribute.ref_attr_name for attribute in node.attribute):
            raise ValueError(f"{printable(node.name)} holds a graph or a tensor")
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            raise ValueError(f"the weight {printable(tensor.name)} lies in another file")
        if any(side < 0 for side in tensor.dims):
            raise ValueError(f"the weight {printable(tensor.name)} has a negative size")


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph alone: what is multiplied is an input, and what tells shapes is kept.

    Args:
        model: that `parse_onnx` returned.
    """
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = "shapes"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    for value in model.graph.output:
        light.graph.output.append(
            onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None)
        )
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(side.HasField("dim_value") for side in tensor.shape.dim):
        return None
    return tuple(side.dim_value for side in tensor.shape.dim)


def _products(kind: str, given: list[tuple[int, ...]], shape: tuple[int, ...]) -> int:
    """Return the multiplications of an operation, two each."""
    if kind in ("MatMul", "Gemm") and given[0]:
        return 2 * math.prod(shape) * max(given[0])
    if kind == "Conv" and given[1:] and given[1][:1]:
        return 2 * math.prod(shape) * math.prod(given[1][1:])
    return 0
