"""int8 for Core ML: convolutions and linear layers with weights and inputs of 8 bits, by torchao's quantiser."""

from __future__ import annotations

from typing import Any

import torch

from mobileclip.export.graph import TowerExport
from mobileclip.export.targets.mil import quiet

_BATCH = 16
_WEIGHTED = frozenset({torch.ops.aten.conv2d.default, torch.ops.aten.linear.default})


def quantized_program(tower: TowerExport) -> torch.export.ExportedProgram:
    """Return a tower's program with static 8 bits, its ranges found on the calibration data.

    Weights are symmetric with a scale for each output channel; what comes into a layer is symmetric with one scale,
    which is what the Neural Engine multiplies in 8 bits. Layers of the fallback are left alone.

    Args:
        tower: in int8, taking floats or tokens.

    Raises:
        ImportError: if torchao is not installed; the message has the command that installs it.
    """
    try:
        with quiet():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    except ImportError as error:
        raise ImportError(f"int8 for Core ML needs {error.name}: pip install 'mobileclip[coreml,int8]'") from error
    batch = _BATCH if tower.spec.dynamic_batch else 1
    with quiet(), torch.no_grad():
        observed = prepare_pt2e(tower.program(torch.float32).module(), _quantizer(tower))
        for part in torch.split(tower.calibration, batch):
            observed(part)
        quantized = convert_pt2e(observed)
        shapes = ({0: torch.export.Dim("batch")},) if tower.spec.dynamic_batch else None
        example = tower.calibration[: 2 if tower.spec.dynamic_batch else 1]
        return torch.export.export(quantized, (example,), dynamic_shapes=shapes, strict=False)


def _quantizer(tower: TowerExport) -> Any:
    """Return what tells torchao which inputs of which layers to quantise, and how."""
    from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    inputs = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=MinMaxObserver,
    )
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
    )

    class LayerQuantizer(Quantizer):  # type: ignore[misc]
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if node.target in _WEIGHTED and not tower.fallback.layers & _modules(node):
                    taken = {node.args[0]: inputs, node.args[1]: weights}
                    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=taken, _annotated=True)
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """Nothing can be wrong: every layer is annotated alike."""

    return LayerQuantizer()


def _modules(node: torch.fx.Node) -> frozenset[str]:
    """Return the names in the tower of the modules that a node is in."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack", {})
    return frozenset(name.partition("encoder.")[2] for name, _ in stack.values())
