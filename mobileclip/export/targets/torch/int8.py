"""Static int8 in an exported program, which PyTorch runs as it is, and torch.compile with kernels of int8."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from mobileclip.export.targets.pt2e import is_layer, layer_of, quiet, rounded_program
from mobileclip.export.towers.graph import TowerExport
from mobileclip.extras import needed

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer

_LARGEST_WEIGHT, _LARGEST_INPUT = 64, 255


def check_int8() -> None:
    """Make sure that what int8 needs is installed.

    Raises:
        ImportError: if it is not; the message has the command that installs it.
    """
    with needed("int8 in the target 'torch'", "int8"), quiet():
        import_module("torchao.quantization.pt2e")


def quantized_program(tower: TowerExport) -> torch.export.ExportedProgram:
    """Return a tower whose convolutions and linear layers take int8; everything else stays float32.

    What goes into them is uint8, with one scale and zero point each, from the least and largest value over the
    calibration data. Weights are int8 without a zero point, with a scale for each output channel, and within -64 and
    64: kernels for processors without VNNI add pairs of products in 16 bits, which eight bits of weights saturate,
    silently. torchao's own quantiser for these kernels would round what is added to a layer's output too, and in a
    network of residuals that is everything.

    Args:
        tower: calibration data, and the layers that stay in float32.

    Raises:
        ImportError: if torchao is not installed; the message has the command that installs it.
    """
    check_int8()
    return rounded_program(tower, tower.graph(torch.float32), _layers_alone(tower.fallback.layers))


def _layers_alone(kept: frozenset[str]) -> Quantizer:
    """Return the quantiser of what goes into convolutions and linear layers, but for those that are kept."""
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    weights = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
        quant_min=-_LARGEST_WEIGHT,
        quant_max=_LARGEST_WEIGHT,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    inputs = QuantizationSpec(
        dtype=torch.uint8,
        observer_or_fake_quant_ctr=MinMaxObserver,
        quant_min=0,
        quant_max=_LARGEST_INPUT,
        qscheme=torch.per_tensor_affine,
    )

    class LayersAlone(Quantizer):  # type: ignore[misc]  # torchao has no types
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if is_layer(node) and layer_of(node) not in kept:
                    taken: dict[Any, Any] = {node.args[0]: inputs, node.args[1]: weights}
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map=taken, _annotated=True
                    )
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """Nothing can be wrong with a graph of our own."""

    return LayersAlone()
