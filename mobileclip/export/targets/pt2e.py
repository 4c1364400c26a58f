"""Static int8 as PyTorch has it: exported programs that are watched, and then rounded, by torchao."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobileclip.export.towers.graph import TowerExport
from mobileclip.terminal.silence import SILENCING

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer

_ENCODER = "encoder."
_LARGEST_INPUT = 255
_LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
# Inputs that are watched together where the batch is dynamic.
_BATCH = 8


def rounded_program(
    tower: TowerExport, graph: nn.Module, quantizer: Quantizer, *, largest_batch: int | None = None
) -> torch.export.ExportedProgram:
    """Return a graph that rounds as a quantiser wants it, with the ranges that the calibration data have.

    Tables that are looked up, of token embeddings, become float16, in place: they are half of a text tower, and nothing
    is multiplied by them.

    Args:
        tower: calibration data, and the layers that stay in float32.
        graph: of the tower, in float32.
        quantizer: says what is rounded; not the layers that stay in float32.
        largest_batch: bound of a dynamic batch.
    """
    _look_up_in_float16(graph)
    with quiet(), torch.no_grad():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        watched = tower.program_of(graph).module()
        found = {layer_of(node) for node in watched.graph.nodes if node.target in _LAYERS}
        missing = tower.fallback.layers - found
        assert not missing, f"not found in the graph: {missing}"
        watched = prepare_pt2e(watched, quantizer)
        for inputs in torch.split(tower.calibration, _BATCH if tower.spec.dynamic_batch else 1):
            watched(inputs)
        rounded = convert_pt2e(watched)
        return tower.program_of(rounded, largest_batch=largest_batch)


def layers_alone(kept: frozenset[str], *, largest_weight: int) -> Quantizer:
    """Return the quantiser of convolutions and linear layers with their inputs, but for those that are kept.

    Weights are int8, symmetric, with a scale for each output channel. What goes into a layer is uint8 with one scale
    and zero point, from the least and largest value over the calibration data. torchao's own quantisers would round
    what is added to a layer's output too, and in a network of residuals that is everything.

    Args:
        kept: layers that stay in float32.
        largest_weight: of the steps. Kernels for processors without VNNI add pairs of products in 16 bits, which eight
            bits of weights saturate, silently: 64 is for them.
    """
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    weights = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
        quant_min=-largest_weight,
        quant_max=largest_weight,
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


def layer_of(node: torch.fx.Node) -> str:
    """Return the name, in the tower, of the module that an operation comes from; empty where it is of none."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path, _ = list(stack.values())[-1]
    return str(path).removeprefix(_ENCODER)


def is_layer(node: torch.fx.Node) -> bool:
    """Return whether an operation is a convolution or a linear layer."""
    return node.op == "call_function" and node.target in _LAYERS


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what libraries log and warn of while they are imported and work.

    torchao tells of its own kernels, for other processors, that it cannot load, and PyTorch of what torchao and
    ExecuTorch do not do as it wants by now. ExecuTorch sets up the root logger, and that is undone.
    """
    with SILENCING:
        root = logging.getLogger()
        level, disabled, handlers = root.level, root.manager.disable, list(root.handlers)
        logging.disable(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(disabled)
            root.setLevel(level)
            root.handlers[:] = handlers


def _look_up_in_float16(graph: nn.Module) -> None:
    for module in graph.modules():
        if isinstance(module, nn.Embedding):
            module.half()
            module.register_forward_hook(_as_float32)


def _as_float32(module: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
    del module, inputs
    return rows.float()
