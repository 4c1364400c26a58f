"""Static int8 for ONNX Runtime, by its own quantiser."""

from __future__ import annotations

import ast
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from mobileclip.export.towers.graph import TowerExport

if TYPE_CHECKING:
    import onnx

# Where PyTorch's exporter notes which module an operation comes from: the names of all modules around it, outermost
# first, and its own behind them.
_SCOPES = "pkg.torch.onnx.name_scopes"
_LINEAR = ("Gemm", "MatMul")
_WEIGHTED = ("Conv", *_LINEAR)
_ENCODER = "encoder."
_SUFFIX_LOOKED_UP = "_float16"


def quantized(model: onnx.ModelProto, tower: TowerExport) -> onnx.ModelProto:
    """Return a model whose convolutions and linear layers compute in int8; everything else stays as it is.

    What goes into them is uint8, with one scale and zero point each, from the least and largest value over the
    calibration data; so is what comes out of convolutions, whose int8 kernel gives nothing else. Weights are int8
    without a zero point, with a scale for each output channel, and within -64 and 64: processors without VNNI add pairs
    of products in 16 bits, which eight bits of weights saturate, silently. Products of two activations, those of
    attention, have no weights and stay float32. Tables that are looked up, of token embeddings, are stored as float16:
    they are half of a text tower, and nothing is multiplied by them.

    Args:
        model: in float32, as PyTorch's exporter gives it, with its notes on every operation.
        tower: calibration data, and the layers that stay in float32.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    layers = layers_of_weights(model)
    missing = tower.fallback.layers - {layer for several in layers.values() for layer in several}
    assert not missing, f"not found in the graph: {missing}"
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        exported, prepared, written = (Path(temporary) / f"{name}.onnx" for name in ("exported", "prepared", "int8"))
        onnx.save_model(model, exported)
        # Its symbolic inference of shapes does not know this opset; onnx's own, which runs anyway, is enough.
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            written,
            _Calibration.of(tower),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_WEIGHTED),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept(onnx.load_model(prepared), layers, tower.fallback.layers),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": list(_LINEAR)},
        )
        model = onnx.load_model(written)
    _store_looked_up_as_float16(model)
    _without_unused_domains(model)
    return model


@attrs.define(kw_only=True)
class _Calibration:
    """One input after another, by its name, and None behind the last."""

    inputs: Iterator[dict[str, Any]]

    @classmethod
    def of(cls, tower: TowerExport) -> _Calibration:
        return cls(inputs=({tower.input_name: row.numpy()} for row in torch.split(tower.calibration, 1)))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.inputs, None)


def layers_of_weights(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Return the layers that use each weight, both by name: the optimiser renames operations, and not weights."""
    stored = {tensor.name for tensor in model.graph.initializer}
    layers: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.op_type in _WEIGHTED and node.input[1] in stored:
            scopes = ast.literal_eval(next(note.value for note in node.metadata_props if note.key == _SCOPES))
            layers.setdefault(node.input[1], set()).add(scopes[-2].removeprefix(_ENCODER))
    return layers


def _kept(model: onnx.ModelProto, layers: dict[str, set[str]], fallback: frozenset[str]) -> list[str]:
    """Return the names of operations that stay in float32: of such layers, or without a weight."""
    weighted = [node for node in model.graph.node if node.op_type in _WEIGHTED]
    return [
        node.name for node in weighted if node.input[1] not in layers or not layers[node.input[1]].isdisjoint(fallback)
    ]


def _store_looked_up_as_float16(model: onnx.ModelProto) -> None:
    """Store tables of which rows are taken as float16; the rows become float32 again."""
    import numpy as np
    import onnx

    tables = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) > 1}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.data_type != onnx.TensorProto.FLOAT:
            continue
        rounded = onnx.numpy_helper.to_array(table).astype(np.float16)
        table.CopyFrom(onnx.numpy_helper.from_array(rounded, table.name))
        output = node.output[0]
        node.output[0] = f"{output}{_SUFFIX_LOOKED_UP}"
        nodes.append(onnx.helper.make_node("Cast", [node.output[0]], [output], to=onnx.TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _without_unused_domains(model: onnx.ModelProto) -> None:
    """Take back the domains of ONNX Runtime's own operations, which its optimiser names and does not use."""
    used = {node.domain for node in model.graph.node}
    kept = [domain for domain in model.opset_import if domain.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice from standard error: it logs as the root logger, which gets a handler by that."""
    logger, silent = logging.getLogger(), logging.NullHandler()
    logger.addHandler(silent)
    logger.addFilter(_is_from_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(_is_from_elsewhere)
        logger.removeHandler(silent)


def _is_from_elsewhere(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname
