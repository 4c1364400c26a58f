"""Static int8, and weights of 8 and 4 bits, for OpenVINO, by its own quantiser, NNCF."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mobileclip.export.fallback import stored_layers, weighted_layers
from mobileclip.export.graph import TowerExport
from mobileclip.export.weights import BLOCK, bits_of
from mobileclip.inference.openvino_quiet import import_quietly, quiet

_WEIGHTED, _TABLE = ("Convolution", "GroupConvolution", "MatMul"), "Gather"
_LOG_ERRORS_ONLY = 40


def quantized(model: Any, tower: TowerExport) -> Any:
    """Return a model whose convolutions and linear layers compute in int8; everything else stays as it is.

    What goes into them is uint8, with a scale and zero point each, from the least and largest value over calibration
    data; in front of depthwise convolutions, one for each channel. Weights are int8 without a zero point, with a scale
    for each output channel, and within -64 and 64 but for depthwise convolutions: processors without VNNI add pairs of
    products in 16 bits, which eight bits of weights saturate, silently. Layers of squeeze-and-excite blocks, which see
    one vector an image, stay float: so NNCF has it. Products of two activations, those of attention, have no weights
    and stay float32 too. Tables that are looked up, of token embeddings, are stored as float16: they are half of a text
    tower, and nothing is multiplied by them.

    Args:
        model: in float32, as OpenVINO converts it.
        tower: calibration data, and the layers that stay in float32.
    """
    with _quantiser() as nncf:
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        layers = _layers_of(model, weighted_layers(tower.encoder))
        missing = tower.fallback.layers - {name for several in layers.values() for name in several}
        assert not missing, f"not found in the graph: {missing}"
        rows = torch.split(tower.calibration, 1)
        names = [node.get_friendly_name() for node in model.get_ops()]
        kept = [name for name in names if not layers.get(name, set()) - tower.fallback.layers]
        model = nncf.quantize(
            model,
            nncf.Dataset([{tower.input_name: row.numpy()} for row in rows]),
            subset_size=len(rows),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )
    _store_looked_up_as_float16(model)
    return model


def with_few_bits(model: Any, tower: TowerExport) -> Any:
    """Return a model whose weights have 8 or 4 bits, by NNCF; the runtime computes with them in float32.

    In 8 bits there is a scale and a zero point for each output channel, or each entry of a table. In 4 bits, there is
    one for each block of numbers of linear layers and tables; convolutions have 8 bits, and grouped ones are float32.

    Args:
        model: in float32, as OpenVINO converts it.
        tower: its encoder, precision, and the layers that keep more bits.
    """
    with _quantiser() as nncf:
        layers = _layers_of(model, stored_layers(tower.encoder))
        missing = tower.fallback.layers - {name for several in layers.values() for name in several}
        assert not missing, f"not found in the graph: {missing}"
        modules, kept = dict(tower.encoder.named_modules()), tower.fallback.layers
        bits = {
            name: {bits_of(modules[layer], tower.spec.precision, is_kept=layer in kept) for layer in several}
            for name, several in layers.items()
        }
        weighted = (*_WEIGHTED, _TABLE)
        names = [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() in weighted]
        if tower.spec.precision == "int4-weights":
            others = [name for name in names if bits.get(name) != {4}]
            model = nncf.compress_weights(
                model,
                mode=nncf.CompressWeightsMode.INT4_ASYM,
                group_size=BLOCK,
                all_layers=True,
                ignored_scope=nncf.IgnoredScope(names=others, validate=False),
            )
        # What has four bits is left as it is.
        whole = [name for name in names if None in bits.get(name, {None})]
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT8_ASYM,
            ignored_scope=nncf.IgnoredScope(names=whole, validate=False),
        )


@contextmanager
def _quantiser() -> Iterator[Any]:
    """Yield NNCF, silent but for errors."""
    nncf = import_quietly("nncf")
    level = nncf.nncf_logger.level
    with quiet():
        nncf.set_log_level(_LOG_ERRORS_ONLY)
        try:
            yield nncf
        finally:
            nncf.set_log_level(level)


def _layers_of(model: Any, layers_there: list[tuple[str, nn.Module]]) -> dict[str, set[str]]:
    """Return the layers that each operation may be, both by name: those that have its weight.

    The conversion keeps no names of modules, and the values and order of a weight through all that it does to it.
    """
    weights: dict[bytes, set[str]] = {}
    for name, layer in layers_there:
        weight = cast("Tensor", layer.weight).detach().numpy()
        weights.setdefault(weight.tobytes(), set()).add(name)
    layers = {}
    for node in model.get_ops():
        if node.get_type_name() in (*_WEIGHTED, _TABLE):
            constant = node.input_value(0 if node.get_type_name() == _TABLE else 1).get_node()
            if constant.get_type_name() == "Constant" and (names := weights.get(constant.get_data().tobytes())):
                layers[node.get_friendly_name()] = names
    return layers


def _store_looked_up_as_float16(model: Any) -> None:
    """Store tables of which rows are taken as float16; the rows become float32 again."""
    openvino = import_quietly("openvino")
    from openvino import opset13 as operations

    for node in model.get_ops():
        table = node.input_value(0).get_node() if node.get_type_name() == _TABLE else None
        if table is None or table.get_type_name() != "Constant" or table.get_element_type() != openvino.Type.f32:
            continue
        users = node.output(0).get_target_inputs()
        rounded = operations.constant(table.get_data(), dtype=openvino.Type.f16)
        node.input(0).replace_source_output(rounded.output(0))
        node.validate_and_infer_types()
        rows = operations.convert(node, "f32")
        for user in users:
            user.replace_source_output(rows.output(0))
