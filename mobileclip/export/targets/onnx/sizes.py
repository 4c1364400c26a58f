"""What an ONNX graph computes of the sides of its input alone, such as the size that a picture is resized to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

# Of numbers: what they give is no larger than what they are given, all together or each with each.
_ARITHMETIC = (
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Gather",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Reshape",
    "Squeeze",
    "Sub",
    "Unsqueeze",
)
_MOST_BYTES = 1024


def fold_sizes(model: onnx.ModelProto) -> None:
    """Replace operations on sides of the inputs by their results, which shape inference does not follow.

    Args:
        model: changed in place; its inputs have known sides.

    Raises:
        Exception: whatever an operation raises that cannot be computed.
    """
    import onnx

    graph = model.graph
    sides = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.input}
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    left = []
    for node in graph.node:
        value = _computed(node, sides, known, model)
        if value is None or value.nbytes > _MOST_BYTES:
            left.append(node)
            continue
        known[node.output[0]] = value
        graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    del graph.node[:]
    graph.node.extend(left)


def _computed(
    node: onnx.NodeProto, sides: dict[str, list[int]], known: dict[str, Any], model: onnx.ModelProto
) -> Any | None:
    """Return what an operation gives, or None where that is not known without the inputs' values."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Shape" and node.input[0] in sides:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        return np.array(sides[node.input[0]][ends.get("start") : ends.get("end")], dtype=np.int64)
    if node.op_type not in _ARITHMETIC or not all(name in known for name in node.input):
        return None
    (value,) = ReferenceEvaluator(node, opsets={entry.domain: entry.version for entry in model.opset_import}).run(
        None, {name: known[name] for name in node.input}
    )
    return np.asarray(value)
