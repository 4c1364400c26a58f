"""From a tower to an ExecuTorch program whose work is XNNPACK's, or another backend's."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from typing import TYPE_CHECKING

import torch
from torch import nn

from mobileclip.export.targets.executorch.backends import lowering
from mobileclip.export.targets.pt2e import is_layer, layer_of, quiet, rounded_program
from mobileclip.export.towers.attention import set_attention, written_out_attention
from mobileclip.export.towers.graph import TowerExport

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager
    from torchao.quantization.pt2e.quantizer import Quantizer

# The runtime sets memory aside for the largest batch when a program is opened.
LARGEST_BATCH = 16
# The least scale of what goes into layers and comes out of them. torchao's own, 2^-12, makes zeros of small outputs.
_LEAST_SCALE = 2**-20


def lowered(tower: TowerExport, dtype: torch.dtype) -> ExecutorchProgramManager:
    """Return a tower as ExecuTorch's program, whose `buffer` is what a `.pte` file holds.

    Args:
        tower: in int8, its calibration data too.
        dtype: what it computes in, or what int8 is made of: float32.

    Raises:
        ValueError: if the wheel cannot lower for the backend, or the tower leaves the range of float16 there.
    """
    chosen, half = lowering(tower.spec.backend), dtype == torch.float16
    if tower.spec.lowered_only and half and tower.fallback.layers:
        raise ValueError(
            f"layers leave the range of float16, and the backend {tower.spec.backend!r} computes in it throughout: "
            f"{', '.join(sorted(tower.fallback.layers))}; choose --precision float32"
        )
    # The other backends round to float16 themselves.
    graph = tower.graph(torch.float32 if tower.spec.lowered_only else dtype)
    # XNNPACK has no attention of one operation.
    set_attention(graph, written_out_attention)
    if half and not tower.spec.lowered_only:
        _normalize_in_float32(graph)
    largest = LARGEST_BATCH if tower.spec.dynamic_batch else None
    # Core ML's converter shows bars of its own.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        from executorch.exir import to_edge_transform_and_lower

        if tower.spec.precision == "int8":
            program = rounded_program(tower, graph, _quantizer(tower.fallback.layers), largest_batch=largest)
        else:
            program = tower.program_of(graph, largest_batch=largest)
        edge = to_edge_transform_and_lower(program, partitioner=[chosen.partitioner(half=half)])
        return edge.to_executorch()


def _normalize_in_float32(graph: nn.Module) -> None:
    """Let layer norms compute in float32, and give float16 all the same.

    XNNPACK has none, and ExecuTorch's own gives something else in float16 from 256 channels on (release 1.5.1, x86:
    four times too large for 256 random numbers; the text embeddings of MobileCLIP-S0 then have a cosine of 0.05).
    """
    for module in graph.modules():
        if isinstance(module, nn.LayerNorm) and module.weight.dtype == torch.float16:
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))
            module.register_forward_hook(lambda _module, _inputs, output: output.half())


def _quantizer(kept: frozenset[str]) -> Quantizer:
    """Return XNNPACK's quantiser of convolutions and linear layers alone, but for those that are kept.

    What goes into them and what comes out is int8, with one scale and zero point each, from the least and largest value
    over the calibration data; weights have no zero point, and a scale for each output channel.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver

    config = get_symmetric_quantization_config(is_per_channel=True)
    values = dataclasses.replace(
        config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=_LEAST_SCALE)
    )
    weights = dataclasses.replace(config.weight, observer_or_fake_quant_ctr=PerChannelMinMaxObserver)
    config = dataclasses.replace(config, input_activation=values, output_activation=values, weight=weights)
    quantizer = XNNPACKQuantizer()
    for operation in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
        quantizer.set_operator_type(operation, config)
    return quantizer.set_filter_function(lambda node: not is_layer(node) or layer_of(node) not in kept)
