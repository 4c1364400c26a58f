"""What int8 files of each format hold of a tower's layers, read by the libraries that wrote them."""

import sys
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch

from mobileclip.export.targets.torch import load_pt2
from mobileclip.inference.openvino_backend import import_quietly

IS_MAC = sys.platform == "darwin"
CONVOLUTIONS = ("Convolution", "GroupConvolution")


class Layer(NamedTuple):
    """A convolution or linear layer: its weight with a row for each output channel, and what is known of its input."""

    rows: np.ndarray
    scales: np.ndarray | None
    is_fed_rounded: bool


class Stored(NamedTuple):
    """Layers, the types of tables that are looked up, the range of the first input, and what else is rounded.

    What a convolution gives may be rounded: its int8 kernel gives nothing else.
    """

    layers: list[Layer]
    tables: list[np.ndarray]
    first_range: tuple[float, float]
    others: set[str]


def _range(scale, zero):
    return float(scale) * (0 - float(zero)), float(scale) * (255 - float(zero))


def onnx_stored(path):
    graph = onnx.load(path).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    giver = {name: node for node in graph.node for name in node.output}
    layers, fed = [], set()
    for node in (node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")):
        name = node.input[1]
        is_turned = name in giver and giver[name].op_type == "Transpose"
        name = giver[name].input[0] if is_turned else name
        scales, is_rounded = None, name in giver and giver[name].op_type == "DequantizeLinear"
        feeds = giver.get(node.input[0])
        if is_rounded:
            name, scale, zero = giver[name].input
            scales = tensors[scale]
            assert not tensors[zero].any(), "weights have no zero point"
            fed |= {giver[feeds.input[0]].input[0], *(node.output if node.op_type == "Conv" else ())}
        elif is_turned or name not in tensors:
            continue
        weight = tensors[name]
        if not (is_turned or node.op_type == "Conv" or any(one.name == "transB" and one.i for one in node.attribute)):
            weight = weight.T
        is_fed = feeds is not None and feeds.op_type == "DequantizeLinear"
        layers.append(Layer(weight.reshape(len(weight), -1), scales, is_fed))
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    tables = [tensors[n.input[0]] for n in graph.node if n.op_type == "Gather" and n.input[0] in tensors]
    first = _range(*(tensors[name] for name in rounded[0].input[1:]))
    return Stored(layers, tables, first, {node.input[0] for node in rounded} - fed)


def torch_stored(path):
    program, operations = load_pt2(path), torch.ops.quantized_decomposed
    weighted = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    signature, tensors = program.graph_signature, {**program.state_dict, **program.constants}
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    layers, others, first = [], set(), None
    for node in program.graph.nodes:
        if node.target in weighted:
            (fed, weight), scales = node.args[:2], None
            if weight.target == operations.dequantize_per_channel.default:
                weight, scales, zeros = (tensors[names[one.name]] for one in weight.args[:3])
                scales = scales.numpy()
                assert not zeros.any(), "weights have no zero point"
            else:
                weight = tensors[names[weight.name]]
            is_fed = fed.target == operations.dequantize_per_tensor.default
            layers.append(Layer(weight.detach().flatten(1).numpy(), scales, is_fed))
        elif node.target == operations.dequantize_per_tensor.default:
            of_output = node.args[0].args[0].target == torch.ops.aten.conv2d.default
            others |= {user.name for user in node.users if user.target not in weighted and not of_output}
        elif node.target == operations.quantize_per_tensor.default and first is None:
            first = _range(*node.args[1:3])
    tables = [tensor.numpy() for tensor in program.state_dict.values() if tensor.dtype == torch.float16]
    return Stored(layers, tables, first, others)


def _source(node, index):
    return node.input_value(index).get_node()


def openvino_stored(path):
    layers, weighted, tables, others, first = [], set(), [], set(), None
    nodes = import_quietly("openvino").Core().read_model(path).get_ordered_ops()
    for node in nodes:
        kind = node.get_type_name()
        if kind == "Gather" and _source(node, 0).get_type_name() == "Constant":
            tables.append(_source(node, 0).get_data())
        if kind == "FakeQuantize" and first is None:
            first = tuple(float(_source(node, index).get_data().item()) for index in (1, 2))
        if kind not in (*CONVOLUTIONS, "MatMul"):
            continue
        weight, scales = _source(node, 1), None
        weight = _source(weight, 0) if weight.get_type_name() == "Reshape" else weight
        if weight.get_type_name() == "Multiply" and _source(weight, 0).get_type_name() == "Convert":
            weight, scales = _source(_source(weight, 0), 0), _source(weight, 1).get_data().reshape(-1)
        if weight.get_type_name() == "Constant":
            weighted.add(node.get_friendly_name())
            numbers = weight.get_data()
            side = np.prod(numbers.shape[2:] if numbers.ndim == 5 else numbers.shape[1:], dtype=int)
            layers.append(Layer(numbers.reshape(-1, side), scales, _source(node, 0).get_type_name() == "FakeQuantize"))
    for node in (node for node in nodes if node.get_type_name() == "FakeQuantize"):
        given = _source(node, 0)
        if given.get_type_name() == "Add" and _source(given, 1).get_type_name() == "Constant":
            given = _source(given, 0)  # without the bias
        if given.get_type_name() not in CONVOLUTIONS:
            others |= {user.get_node().get_friendly_name() for user in node.output(0).get_target_inputs()} - weighted
    return Stored(layers, tables, first, others)


def coreml_function(path) -> Any:
    """A package's program, as coremltools reads it."""
    from mobileclip.export.targets.coreml import import_coremltools, quiet

    import_coremltools()
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.proto import Model_pb2
    data = path / "Data" / "com.apple.CoreML"
    spec = Model_pb2.Model.FromString((data / "model.mlmodel").read_bytes())
    return load(spec, spec.specificationVersion, str(data / "weights")).functions["main"]


def coreml_operations(path, kind):
    """The operations of a kind of a package's program."""
    return [one for one in coreml_function(path).operations if one.op_type == kind]


def coreml_stored(path):
    layers, fed, rounded, tables = [], set(), [], []
    for operation in coreml_function(path).operations:
        if operation.op_type in ("conv", "linear"):
            weight, scales, held = operation.weight.val, None, operation.weight.op
            if held.op_type == "constexpr_affine_dequantize":
                assert not np.any(held.zero_point.val), "weights have no zero point"
                weight, scales = held.quantized_data.val, held.scale.val.astype(np.float32).reshape(-1)
            is_fed = operation.x.op is not None and operation.x.op.op_type == "dequantize"
            fed |= {operation.x.op.input.op.name} if is_fed else set()
            layers.append(Layer(weight.reshape(len(weight), -1), scales, is_fed))
        elif operation.op_type == "quantize":
            rounded.append(operation)
            if operation.input.op is not None and operation.input.op.op_type == "conv":
                fed.add(operation.name)
        elif operation.op_type == "gather" and operation.x.val is not None and operation.x.val.ndim == 2:
            tables.append(operation.x.val)
    zero = 0 if rounded[0].zero_point is None else rounded[0].zero_point.val
    return Stored(layers, tables, _range(rounded[0].scale.val, zero), {one.name for one in rounded} - fed)


STORED = {"onnx": onnx_stored, "torch": torch_stored, "openvino": openvino_stored, "coreml": coreml_stored}
