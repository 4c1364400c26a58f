"""What int8 files of each format hold of a tower's layers, read by the libraries that wrote them."""

import sys
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch

from mobileclip.export.targets.torch import load_pt2
from mobileclip.inference.openvino_backend import import_quietly

IS_MAC = sys.platform == "darwin"


class Layer(NamedTuple):
    """A convolution or linear layer: its weight with a row for each output channel, and what is known of its input."""

    rows: np.ndarray
    scales: np.ndarray | None
    is_fed_rounded: bool


class Stored(NamedTuple):
    """Layers, the types of tables that are looked up, the range of the first input, and what else is rounded."""

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
    layers, fed, given = [], set(), set()
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        source = giver.get(node.input[1])
        is_turned = source is not None and source.op_type == "Transpose"
        source = giver.get(source.input[0]) if is_turned else source
        is_rounded = source is not None and source.op_type == "DequantizeLinear"
        if not is_rounded and node.input[1] not in tensors:
            continue
        weight = tensors[source.input[0] if is_rounded else node.input[1]]
        if (
            node.op_type != "Conv"
            and not is_turned
            and not {one.name: one.i for one in node.attribute}.get("transB", 0)
        ):
            weight = weight.T
        if is_rounded:
            assert not tensors[source.input[2]].any(), "weights have no zero point"
            fed.add(giver[giver[node.input[0]].input[0]].input[0])
            # The int8 kernel of convolutions gives nothing else.
            given |= set(node.output) if node.op_type == "Conv" else set()
        is_fed = giver.get(node.input[0]) is not None and giver[node.input[0]].op_type == "DequantizeLinear"
        scales = tensors[source.input[1]] if is_rounded else None
        layers.append(Layer(weight.reshape(len(weight), -1), scales, is_fed))
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    first = rounded[0]
    tables = [tensors[n.input[0]] for n in graph.node if n.op_type == "Gather" and n.input[0] in tensors]
    return Stored(
        layers,
        tables,
        _range(tensors[first.input[1]], tensors[first.input[2]]),
        {node.input[0] for node in rounded} - fed - given,
    )


def torch_stored(path):
    program, operations = load_pt2(path), torch.ops.quantized_decomposed
    weighted = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    tensors = {**program.state_dict, **program.constants}
    layers, others, first = [], set(), None
    for node in program.graph.nodes:
        if node.target in weighted:
            weight, scales = node.args[1], None
            if weight.target == operations.dequantize_per_channel.default:
                weight, scales, zeros = (tensors[names[one.name]] for one in weight.args[:3])
                assert not zeros.any(), "weights have no zero point"
            else:
                weight = tensors[names[weight.name]]
            is_fed = node.args[0].target == operations.dequantize_per_tensor.default
            rows = weight.detach().flatten(1).numpy()
            layers.append(Layer(rows, None if scales is None else scales.numpy(), is_fed))
        elif node.target == operations.dequantize_per_tensor.default:
            of_output = node.args[0].args[0].target == torch.ops.aten.conv2d.default
            others |= {user.name for user in node.users if user.target not in weighted and not of_output}
        elif node.target == operations.quantize_per_tensor.default and first is None:
            first = _range(*node.args[1:3])
    tables = [tensor.numpy() for tensor in program.state_dict.values() if tensor.dtype == torch.float16]
    return Stored(layers, tables, first, others)


def source(node, index):
    return node.input_value(index).get_node()


def is_constant(node):
    return node.get_type_name() == "Constant"


def _weight(node):
    """What holds a layer's weight, and its scales, or None where it is float."""
    if node.get_type_name() == "Reshape":
        node = source(node, 0)
    if node.get_type_name() == "Multiply" and source(node, 0).get_type_name() == "Convert":
        return source(source(node, 0), 0), source(node, 1).get_data().reshape(-1)
    return node, None


def _is_output_of_convolution(node):
    """Whether it is what a convolution gives, with its bias: the int8 kernels of other runtimes give nothing else."""
    if node.get_type_name() == "Add" and is_constant(source(node, 1)):
        node = source(node, 0)
    return node.get_type_name() in ("Convolution", "GroupConvolution")


def openvino_stored(path):
    model = import_quietly("openvino").Core().read_model(path)

    layers, weighted, tables, others, first = [], set(), [], set(), None
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Gather" and is_constant(source(node, 0)):
            tables.append(source(node, 0).get_data())
        if kind == "FakeQuantize" and first is None:
            first = tuple(float(source(node, index).get_data().item()) for index in (1, 2))
        if kind not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        weight, scales = _weight(source(node, 1))
        if not is_constant(weight):
            continue
        weighted.add(node.get_friendly_name())
        numbers = weight.get_data()
        rows = numbers.reshape(-1, np.prod(numbers.shape[2:] if numbers.ndim == 5 else numbers.shape[1:], dtype=int))
        layers.append(Layer(rows, scales, source(node, 0).get_type_name() == "FakeQuantize"))
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize" and not _is_output_of_convolution(source(node, 0)):
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
            weight, scales = operation.weight.val, None
            if operation.weight.op.op_type == "constexpr_affine_dequantize":
                held = operation.weight.op
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
    first = rounded[0]
    zero = 0 if first.zero_point is None else first.zero_point.val
    return Stored(layers, tables, _range(first.scale.val, zero), {one.name for one in rounded} - fed)


STORED = {"onnx": onnx_stored, "torch": torch_stored, "openvino": openvino_stored, "coreml": coreml_stored}
