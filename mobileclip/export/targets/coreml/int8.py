"""int8 for Core ML: convolutions and linear layers with weights and inputs of 8 bits, by torchao's quantiser."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import attrs
import torch

from mobileclip.export.targets.coreml.mil import quiet
from mobileclip.export.targets.pt2e import is_layer, layer_of, rounded_program
from mobileclip.export.towers.graph import TowerExport
from mobileclip.extras import needed

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer

_LARGEST_WEIGHT, _LARGEST_INPUT = 127, 255


def quantized_program(tower: TowerExport) -> torch.export.ExportedProgram:
    """Return a tower's program with static 8 bits, its ranges found on the calibration data.

    Weights are int8, symmetric, with a scale for each output channel. What comes into a layer is uint8 with one scale
    and zero point, from the least and largest value over the calibration data. Layers of the fallback are left alone.

    Args:
        tower: in int8, taking floats or tokens.

    Raises:
        ImportError: if torchao is not installed; the message has the command that installs it.
    """
    with needed("int8 for Core ML", "coreml", "int8"), quiet():
        import_module("torchao.quantization.pt2e.quantize_pt2e")
    # Ranges are the same whatever the batch, and found sooner in larger ones.
    batched = attrs.evolve(tower, spec=attrs.evolve(tower.spec, dynamic_batch=True))
    program = rounded_program(batched, tower.graph(torch.float32), _quantizer(tower.fallback.layers))
    return program if tower.spec.dynamic_batch else tower.program_of(program.module())


def _quantizer(kept: frozenset[str]) -> Quantizer:
    """Return what tells torchao to quantise layers, but for those that are kept."""
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    inputs = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=_LARGEST_INPUT,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=MinMaxObserver,
    )
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-_LARGEST_WEIGHT,
        quant_max=_LARGEST_WEIGHT,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
    )

    class LayerQuantizer(Quantizer):  # type: ignore[misc]  # torchao has no types
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if is_layer(node) and layer_of(node) not in kept:
                    taken: dict[Any, Any] = {node.args[0]: inputs, node.args[1]: weights}
                    annotation = QuantizationAnnotation(input_qspec_map=taken, _annotated=True)
                    node.meta["quantization_annotation"] = annotation
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """Nothing can be wrong: every layer is annotated alike."""

    return LayerQuantizer()
