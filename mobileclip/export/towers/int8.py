"""A tower in int8 as an export holds it: its graph with operations that quantise and dequantise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mobileclip.export.towers.graph import TowerExport
from mobileclip.export.towers.ranges import found_ranges, given_ranges
from mobileclip.inference.layers import weighted_layers
from mobileclip.inference.quantization import LARGEST_WEIGHT, Int8Form, quantised_layers, with_int8_layers

EVERY_OUTPUT = (nn.Conv2d, nn.Linear)
"""For runtimes that compute a layer in int8 only where its output is int8 too."""


def graph_in_int8(
    tower: TowerExport,
    how: Int8Form,
    *,
    outputs: tuple[type[nn.Module], ...] = (nn.Conv2d,),
    largest_weight: int = LARGEST_WEIGHT,
    float16_tables: bool = True,
) -> nn.Module:
    """Return the graph of a tower whose convolutions and linear layers quantise; everything else stays as it is.

    What goes into them has one step and zero point, and so has what comes out of `outputs`; weights have no zero point,
    and a step for each output channel. A tower that carries ranges has exactly these; what it lacks of the outputs that
    the runtime needs, and all ranges of other towers, are found on the calibration data. Products of two activations,
    those of attention, have no weights and stay float.

    Args:
        tower: calibration data, and the layers that stay in float32.
        how: what the operations are like.
        outputs: kinds of layers whose outputs are of 8 bits.
        largest_weight: of the steps that are found: 64 where kernels for processors without VNNI add pairs of products
            in 16 bits, which eight bits of weights saturate, silently.
        float16_tables: whether tables that are looked up, of token embeddings, become float16: they are half of a text
            tower, and nothing is multiplied by them.
    """
    graph, kept = tower.graph(torch.float32), tower.float32
    missing = kept - {name for name, _ in weighted_layers(tower.encoder)}
    assert not missing, f"not found in the tower: {missing}"
    ranges = _ranges(tower, graph, outputs, largest_weight)
    chosen = {name: values for name, values in ranges.items() if name.rpartition(".")[0] not in kept}
    graph.encoder = with_int8_layers(graph.get_submodule("encoder"), chosen, how)
    if float16_tables:
        _look_up_in_float16(graph)
    return graph.requires_grad_(requires_grad=False)


def dequantize_for_each_user(program: torch.export.ExportedProgram) -> None:
    """Let every operation have what is dequantised for itself, in place.

    XNNPACK takes it over with the operation that it computes, and LiteRT's converter lays it out as that wants it.
    """
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    graph = program.graph_module.graph
    for node in [node for node in graph.nodes if node.target is dequantize]:
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node))
    program.graph_module.recompile()


def _ranges(
    tower: TowerExport, graph: nn.Module, outputs: tuple[type[nn.Module], ...], largest_weight: int
) -> dict[str, Tensor]:
    given = given_ranges(tower.encoder)
    quantised = quantised_layers(given)
    needed = {f"{name}.output" for name, layer in weighted_layers(tower.encoder) if isinstance(layer, outputs)}
    lacking = {name for name in needed - given.keys() if name.removesuffix(".output") in quantised}
    if given and not lacking:
        return given
    found = found_ranges(graph, tower.calibration, outputs=outputs, largest_weight=largest_weight)
    return given | {name: found[name] for name in lacking} if given else found


def _look_up_in_float16(graph: nn.Module) -> None:
    for module in graph.modules():
        if isinstance(module, nn.Embedding):
            module.half()
            module.register_forward_hook(_as_float32)


def _as_float32(module: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
    del module, inputs
    return rows.float()
