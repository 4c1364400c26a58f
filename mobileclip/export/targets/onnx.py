"""ONNX, run by ONNX Runtime: on servers, desktops, phones and in browsers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from mobileclip.export.contract import TowerFile
from mobileclip.export.int8 import Int8Form, RoundedWeight, round_weight
from mobileclip.export.targets.base import CPU, Run, Target, WrittenFile, device_of_runtime, readable
from mobileclip.export.towers import TowerExport
from mobileclip.hardware import PRECISIONS, Precision, threads_or_default
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import printable

if TYPE_CHECKING:
    import onnx


_SUFFIX_STORED = "_bfloat16"
_PROVIDERS = {
    CPU: "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_LOG_ERRORS_ONLY = 3
_IMAGE_AXES, _TEXT_AXES = ("batch_size", "channels", "height", "width"), ("batch_size", "sequence_length")
_MOST_BYTES = 2**31 - 1


@attrs.frozen
class OnnxTarget(Target):
    """ONNX through `torch.onnx.export(dynamo=True)`.

    float16 files compute in float16; on processors without float16, the kernels of ONNX Runtime compute in float32.
    bfloat16 is only a storage type, which halves the file: ONNX Runtime has no bfloat16 convolution, so the weights
    become float32 when the file is opened. int8 quantisation is static; biases are int32, so that ONNX Runtime also
    computes linear layers in int8. The 8-bit weights of `int8-weights` become float32 when the file is opened.
    """

    suffix: str = ".onnx"
    libraries: tuple[str, ...] = ("onnx", "onnxruntime")
    modules: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    extra: str = "onnx"
    int8: Int8Form = Int8Form(stores_weights=True, stores_biases=True)
    computes: tuple[Precision, ...] = ("float32", "float16")
    precisions: tuple[Precision, ...] = PRECISIONS
    resizes: bool = True
    cuts_texts: bool = True
    prefers_depthwise: bool = True
    runtime: str = "onnxruntime"
    validates_files: bool = True
    concurrent: bool = True

    def export(self, tower: TowerExport, path: Path) -> WrittenFile:
        """Write one tower."""
        import onnx

        model = _converted(tower, self.graph(tower))
        if tower.spec.precision == "bfloat16":
            _store_as_bfloat16(model)
        if tower.spec.precision == "int8-weights":
            _store_in_eight_bits(model, tower.encoder)
        # Remove the exporter's metadata (paths and source lines) of every operation, a large part of a megabyte.
        for node in model.graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        onnx.helper.set_model_props(model, dict(tower.notes))
        _name_axes(model, _TEXT_AXES if tower.tower == "text" else _IMAGE_AXES)
        onnx.save_model(model, path)
        return self.written(tower)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with ONNX Runtime; the CPU runs operations that the device cannot run."""
        import onnxruntime

        here = onnxruntime.get_available_providers()
        devices = {name: provider for name, provider in _PROVIDERS.items() if provider in here}
        wanted = dict.fromkeys((device_of_runtime(device, devices, "ONNX Runtime"), _PROVIDERS[CPU]))
        data = _checked(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_ERRORS_ONLY
        options.intra_op_num_threads, options.inter_op_num_threads = threads_or_default(num_threads), 1
        if tower.lengths and device != CPU:
            options.add_free_dimension_override_by_name(_TEXT_AXES[1], tower.lengths[-1])
        with readable(path, f"ONNX Runtime {onnxruntime.__version__}", "pip install -U onnxruntime"):
            session = onnxruntime.InferenceSession(data, options, providers=list(wanted))

        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = session.run(list(tower.outputs), {tower.input_name: inputs.numpy()})
            return tuple(map(torch.from_numpy, outputs))

        return run


def _converted(tower: TowerExport, graph: nn.Module) -> onnx.ModelProto:
    """Return the ONNX model that PyTorch's exporter creates from a tower's graph."""
    program = tower.program_of(graph)
    with warnings.catch_warnings():
        # Deprecation warnings from inside PyTorch: from its pytrees and from copies in its decompositions.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[tower.input_name],
            output_names=tower.output_names,
            verbose=False,
        )
    assert converted is not None
    return converted.model_proto


def _name_axes(model: onnx.ModelProto, names: tuple[str, ...]) -> None:
    """Name the dynamic axes of the input, in place of the exporter's generic names.

    Args:
        model: model, changed in place.
        names: names of the axes.
    """
    graph = model.graph
    sides = zip(graph.input[0].type.tensor_type.shape.dim, names, strict=False)
    named = {side.dim_param: name for side, name in sides if side.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = re.sub(r"\w+", lambda found: named.get(found[0], found[0]), side.dim_param)


def _checked(path: Path) -> bytes:
    """Return the content of a file after a check that it is a valid ONNX model without external data.

    Raises:
        ValueError: if the file exceeds 2 GiB, is not a valid ONNX model, or refers to weights in other files.
    """
    import onnx

    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes; the limit for an ONNX file is {_MOST_BYTES:,}; choose a lower precision"
        )
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(data)
        named = [one.name for one in _tensors(model) if one.external_data]
    except Exception as error:
        raise_machine_fault(error)
        # The class of the error depends on the installed implementation of protobuf.
        raise ValueError(f"{path} is not a valid ONNX model: {printable(error)}; export the model again") from error
    if named:
        raise ValueError(
            f"{path}: the weight {printable(named[0])} is stored in another file, expected all weights in this file; "
            "do not use this model"
        )
    return data


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of a model at any depth."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for one in [value] if hasattr(value, "ListFields") else value:
            if isinstance(one, onnx.TensorProto):
                yield one
            else:
                yield from _tensors(one)


def _store_as_bfloat16(model: onnx.ModelProto) -> None:
    """Store weight matrices as bfloat16, which the graph casts to float32; small vectors stay in float32.

    The vectors include the mean and the standard deviation of the pixels, if the file normalises images.

    Args:
        model: model, changed in place.
    """
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        is_matrix = sum(side > 1 for side in tensor.dims) > 1
        if tensor.data_type != onnx.TensorProto.FLOAT or not is_matrix:
            continue
        name = tensor.name
        rounded = _as_torch(tensor).to(torch.bfloat16)
        tensor.ClearField("float_data")
        tensor.data_type = onnx.TensorProto.BFLOAT16
        tensor.raw_data = rounded.contiguous().view(torch.int16).numpy().tobytes()
        tensor.name = f"{name}{_SUFFIX_STORED}"
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    unrounded = [value for value in model.graph.value_info if value.name not in {cast.output[0] for cast in casts}]
    del model.graph.value_info[:]
    model.graph.value_info.extend(unrounded)


def _as_torch(tensor: onnx.TensorProto) -> Tensor:
    import onnx

    return torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())


def _store_in_eight_bits(model: onnx.ModelProto, encoder: nn.Module) -> None:
    """Store the weights of linear layers, ungrouped convolutions and embedding tables in 8 bits.

    The graph dequantises a weight with operations on constants, which a runtime computes once, when it opens the file.
    For an embedding table, the graph dequantises only the rows that it looks up, so that the table stays small in
    memory.

    Args:
        model: float32 model, changed in place.
        encoder: tower that the model was exported from.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    tables = {f"encoder.{name}.weight" for name, one in encoder.named_modules() if isinstance(one, nn.Embedding)}
    file, done = _Operations(), set[str]()
    for node in model.graph.node:
        attributes = {one.name: one.i for one in node.attribute}
        is_layer = node.op_type in ("Conv", "Gemm", "MatMul") and attributes.get("group", 1) == 1
        name = node.input[1] if is_layer else node.input[0] if node.op_type == "Gather" else ""
        if name not in (stored if is_layer else tables):
            file.nodes.append(node)
            continue
        weight = _as_torch(stored[name])
        if not is_layer:
            file.look_up(name, round_weight(weight), node)
        elif name not in done:
            transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes.get("transB"))
            rows = weight.T if transposed else weight.flatten(1)
            file.restore(name, round_weight(rows), tuple(weight.shape), transposed=transposed)
        if is_layer:
            file.nodes.append(node)
        done.add(name)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in done]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*kept, *file.stored])
    model.graph.node.extend(file.nodes)


class _Operations:
    """Collects the operations and weights of an ONNX graph with 8-bit weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def restore(self, name: str, weight: RoundedWeight, shape: tuple[int, ...], *, transposed: bool) -> None:
        """Add a quantised weight and the operations that dequantise the weight to float32.

        Args:
            name: name of the float32 weight.
            weight: quantised weight, with one row per output channel.
            shape: shape of the float32 weight.
            transposed: whether the float32 weight has one column per output channel.
        """
        rows = self._scaled(f"{name}.rows", self._store(name, weight))
        if transposed:
            self._add("Transpose", [rows], name)
        else:
            self._add("Reshape", [rows, self._constant(f"{name}.shape", torch.tensor(shape))], name)

    def look_up(self, name: str, table: RoundedWeight, node: onnx.NodeProto) -> None:
        """Add a quantised embedding table and the operations that look up rows and dequantise the rows to float32.

        Args:
            name: name of the float32 table.
            table: quantised table, with one row per token id.
            node: `Gather` operation that looks up the rows.
        """
        ids, output = node.input[1], node.output[0]
        self._scaled(
            output, [self._add("Gather", [part, ids], f"{output}.{part}") for part in self._store(name, table)]
        )

    def _store(self, name: str, weight: RoundedWeight) -> list[str]:
        """Store a weight; return the names of the stored steps, zero points and scales."""
        parts = {"steps": weight.steps, "zero": weight.zero, "scale": weight.scale}
        return [self._constant(f"{name}.{part}", tensor) for part, tensor in parts.items()]

    def _scaled(self, name: str, parts: list[str]) -> str:
        """Add the operations of `(steps - zero) * scale`; return the name of the result."""
        steps, zero, scale = parts
        difference = self._add("Sub", [self._as_float(steps), self._as_float(zero)], f"{name}.difference")
        return self._add("Mul", [difference, scale], name)

    def _as_float(self, name: str) -> str:
        import onnx

        return self._add("Cast", [name], f"{name}.float32", to=onnx.TensorProto.FLOAT)

    def _constant(self, name: str, tensor: torch.Tensor) -> str:
        import onnx

        self.stored.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output
