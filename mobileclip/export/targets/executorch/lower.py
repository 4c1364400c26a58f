"""From a tower to an ExecuTorch program whose work is XNNPACK's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mobileclip.export.targets.quiet import quiet
from mobileclip.export.towers.attention import set_attention, written_out_attention
from mobileclip.export.towers.graph import TowerExport
from mobileclip.export.towers.int8 import EVERY_OUTPUT, dequantize_for_each_user, graph_in_int8
from mobileclip.inference.quantization import Int8Form

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager

# The runtime sets memory aside for the largest batch when a program is opened.
LARGEST_BATCH = 16
_LARGEST_WEIGHT = 127


def lowered(tower: TowerExport, dtype: torch.dtype) -> ExecutorchProgramManager:
    """Return a tower as ExecuTorch's program, whose `buffer` is what a `.pte` file holds.

    Args:
        tower: in int8, its calibration data too.
        dtype: what it computes in, or what int8 is made of: float32.
    """
    in_int8 = tower.spec.precision == "int8"
    if in_int8:
        how = Int8Form(signed=True, stores_weights=True)
        graph = graph_in_int8(tower, how, outputs=EVERY_OUTPUT, largest_weight=_LARGEST_WEIGHT)
    else:
        graph = tower.graph(dtype)
    # XNNPACK has no attention of one operation.
    set_attention(graph, written_out_attention)
    if dtype == torch.float16:
        _normalize_in_float32(graph)
    largest = LARGEST_BATCH if tower.spec.dynamic_batch else None
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = tower.program_of(graph, largest_batch=largest)
        if in_int8:
            dequantize_for_each_user(program)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
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
