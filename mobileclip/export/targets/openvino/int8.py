"""Static int8, and weights of 8 bits, for OpenVINO, by its own quantiser, NNCF."""

from __future__ import annotations

from typing import Any

from mobileclip.export.towers.fallback import stored_layers
from mobileclip.export.towers.graph import TowerExport
from mobileclip.inference.optimization.openvino_int8 import TABLE, WEIGHTED, in_int8, layers_of, quantiser
from mobileclip.inference.optimization.openvino_quiet import import_quietly


def quantized(model: Any, tower: TowerExport) -> Any:
    """Return a model whose convolutions and linear layers compute in int8; everything else stays as it is.

    Tables that are looked up, of token embeddings, are stored as float16: they are half of a text tower, and nothing is
    multiplied by them.

    Args:
        model: in float32, as OpenVINO converts it.
        tower: calibration data, and the layers that stay in float32.
    """
    model = in_int8(model, tower.encoder, tower.calibration, kept=tower.fallback.layers)
    _store_looked_up_as_float16(model)
    return model


def with_eight_bits(model: Any, tower: TowerExport) -> Any:
    """Return a model whose weights have 8 bits, by NNCF; the runtime computes with them in float32.

    There is a scale and a zero point for each output channel, or each entry of a table.

    Args:
        model: in float32, as OpenVINO converts it.
        tower: its encoder, and the layers that stay in float32.
    """
    with quantiser() as nncf:
        layers = layers_of(model, stored_layers(tower.encoder))
        kept = tower.fallback.layers
        missing = kept - {name for several in layers.values() for name in several}
        assert not missing, f"not found in the graph: {missing}"
        names = [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() in (*WEIGHTED, TABLE)]
        whole = [name for name in names if name not in layers or not kept.isdisjoint(layers[name])]
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT8_ASYM,
            ignored_scope=nncf.IgnoredScope(names=whole, validate=False),
        )


def _store_looked_up_as_float16(model: Any) -> None:
    """Store tables of which rows are taken as float16; the rows become float32 again."""
    openvino = import_quietly("openvino")
    from openvino import opset13 as operations

    for node in model.get_ops():
        table = node.input_value(0).get_node() if node.get_type_name() == TABLE else None
        if table is None or table.get_type_name() != "Constant" or table.get_element_type() != openvino.Type.f32:
            continue
        users = node.output(0).get_target_inputs()
        rounded = operations.constant(table.get_data(), dtype=openvino.Type.f16)
        node.input(0).replace_source_output(rounded.output(0))
        node.validate_and_infer_types()
        rows = operations.convert(node, "f32")
        for user in users:
            user.replace_source_output(rows.output(0))
