"""Weights of 8 bits for OpenVINO, by its own quantiser, NNCF."""

from __future__ import annotations

from typing import Any

from mobileclip.export.towers.fallback import stored_layers
from mobileclip.export.towers.graph import TowerExport
from mobileclip.inference.optimization.openvino_int8 import TABLE, WEIGHTED, layers_of, quantiser


def with_eight_bits(model: Any, tower: TowerExport) -> Any:
    """Return a model whose weights have 8 bits, by NNCF; the runtime computes with them in float32.

    There is a scale and a zero point for each output channel, or each entry of a table.

    Args:
        model: in float32, as OpenVINO converts it.
        tower: its encoder, and the layers that stay in float32.
    """
    with quantiser() as nncf:
        layers = layers_of(model, stored_layers(tower.encoder))
        kept = tower.float32
        missing = kept - {name for several in layers.values() for name in several}
        assert not missing, f"not found in the graph: {missing}"
        names = [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() in (*WEIGHTED, TABLE)]
        whole = [name for name in names if name not in layers or not kept.isdisjoint(layers[name])]
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT8_ASYM,
            ignored_scope=nncf.IgnoredScope(names=whole, validate=False),
        )
