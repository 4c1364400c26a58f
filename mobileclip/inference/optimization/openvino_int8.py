"""Static int8 for OpenVINO, by its own quantiser, NNCF."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mobileclip.inference.layers import weighted_layers
from mobileclip.inference.optimization.openvino_quiet import import_quietly, quiet

_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
_LOG_ERRORS_ONLY = 40


def in_int8(model: Any, encoder: nn.Module, inputs: Tensor, *, kept: Collection[str]) -> Any:
    """Return a model whose convolutions and linear layers compute in int8; everything else stays as it is.

    What goes into them is uint8, with a scale and zero point each, from the least and largest value over calibration
    data; in front of depthwise convolutions, one for each channel. Weights are int8 without a zero point, with a scale
    for each output channel, and within -64 and 64 but for depthwise convolutions: processors without VNNI add pairs of
    products in 16 bits, which eight bits of weights saturate, silently. Layers of squeeze-and-excite blocks, which see
    one vector an image, stay float: so NNCF has it. Products of two activations, those of attention, have no weights
    and stay float32 too.

    Args:
        model: in float32, as OpenVINO converts it, of batches of one or of any size.
        encoder: the tower that it was made of, folded.
        inputs: calibration data, a batch.
        kept: names of layers that stay as they are.
    """
    with quantiser() as nncf:
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        layers = _layers_of(model, encoder)
        missing = set(kept) - {name for several in layers.values() for name in several}
        assert not missing, f"not found in the graph: {missing}"
        rows = torch.split(inputs, 1)
        names = [node.get_friendly_name() for node in model.get_ops()]
        ignored = [name for name in names if not layers.get(name, set()).difference(kept)]
        return nncf.quantize(
            model,
            nncf.Dataset([row.numpy() for row in rows]),
            subset_size=len(rows),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )


@contextmanager
def quantiser() -> Iterator[Any]:
    """Yield NNCF, silent but for errors."""
    nncf = import_quietly("nncf")
    level = nncf.nncf_logger.level
    with quiet():
        nncf.set_log_level(_LOG_ERRORS_ONLY)
        try:
            yield nncf
        finally:
            nncf.set_log_level(level)


def _layers_of(model: Any, encoder: nn.Module) -> dict[str, set[str]]:
    """Return the layers that each operation may be, both by name: those that have its weight.

    The conversion keeps no names of modules, and the values and order of a weight through all that it does to it.
    """
    weights: dict[bytes, set[str]] = {}
    for name, layer in weighted_layers(encoder):
        weight = cast("Tensor", layer.weight).detach().numpy()
        weights.setdefault(weight.tobytes(), set()).add(name)
    layers = {}
    for node in model.get_ops():
        if node.get_type_name() in _WEIGHTED:
            constant = node.input_value(1).get_node()
            if constant.get_type_name() == "Constant" and (names := weights.get(constant.get_data().tobytes())):
                layers[node.get_friendly_name()] = names
    return layers
