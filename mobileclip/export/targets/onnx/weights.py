"""Weights of 8 and 4 bits in an ONNX file, with the operations that make float32 of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mobileclip.export.targets.onnx.int8 import layers_of_weights
from mobileclip.export.towers.graph import TowerExport
from mobileclip.export.towers.weights import Bits, RoundedWeight, bits_of, round_weight

if TYPE_CHECKING:
    import onnx

_SIXTEEN = "sixteen"


def store_in_few_bits(model: onnx.ModelProto, tower: TowerExport) -> None:
    """Store the weights of convolutions and linear layers, and tables of embeddings, in 8 or 4 bits.

    They become float32 by operations on constants, which runtimes compute once, when a file is opened. Of a table, the
    rows that are looked up become float32, so that it stays small in memory too. There are no types or operations of
    four bits in it: two steps share a byte, so that every runtime reads them.

    Args:
        model: in float32, changed in place; with the exporter's notes on every operation.
        tower: its encoder, precision, and the layers that keep more bits.
    """
    import onnx

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = _layers(model, tower)
    missing = tower.fallback.layers - set(layers.values())
    assert not missing, f"not found in the graph: {missing}"
    file, done = _Operations(), set[str]()
    for node in model.graph.node:
        looked_up = node.op_type == "Gather"
        name = node.input[0 if looked_up else 1] if len(node.input) > 1 else ""
        bits = None if name not in layers else _bits(layers[name], tower)
        if bits is None:
            file.nodes.append(node)
            continue
        weight = torch.from_numpy(onnx.numpy_helper.to_array(stored[name]).copy())
        transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _is_transposed(node))
        if looked_up:
            file.look_up(name, round_weight(weight, bits), node)
        elif name not in done:
            rows = weight.T if transposed else weight.flatten(1)
            file.restore(name, round_weight(rows, bits), tuple(weight.shape), transposed=transposed)
        if not looked_up:
            file.nodes.append(node)
        done.add(name)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in done]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*kept, *file.stored])
    model.graph.node.extend(file.nodes)


def _layers(model: onnx.ModelProto, tower: TowerExport) -> dict[str, str]:
    """Return the layer of each weight, both by name."""
    known = dict(tower.encoder.named_modules())
    layers = {weight: min(several) for weight, several in layers_of_weights(model).items()}
    layers |= {
        name: path
        for name, path in ((node.input[0], _table(node.input[0])) for node in model.graph.node if node.input)
        if isinstance(known.get(path), torch.nn.Embedding)
    }
    return layers


def _table(name: str) -> str:
    return name.removeprefix("encoder.").removesuffix(".weight")


def _bits(layer: str, tower: TowerExport) -> Bits | None:
    module = tower.encoder.get_submodule(layer)
    return bits_of(module, tower.spec.precision, is_kept=layer in tower.fallback.layers)


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


class _Operations:
    """The operations and weights of a graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def restore(self, name: str, weight: RoundedWeight, shape: tuple[int, ...], *, transposed: bool) -> None:
        """Write a weight, and what makes float32 of it.

        Args:
            name: of the float32 one.
            weight: a row for each output channel.
            shape: of the float32 one.
            transposed: whether its rows are columns there.
        """
        values = self._scaled(name, self._store(name, weight), weight.bits)
        if not transposed:
            self._add("Reshape", [values, self._constant(f"{name}.shape", torch.tensor(shape))], name)
            return
        rows = self._constant(f"{name}.shape", torch.tensor(shape[::-1]))
        self._add("Transpose", [self._add("Reshape", [values, rows], f"{name}.rows")], name)

    def look_up(self, name: str, table: RoundedWeight, node: onnx.NodeProto) -> None:
        """Write a table, and what makes float32 of the rows that are looked up.

        Args:
            name: of the float32 one.
            table: its rows.
            node: what looks them up.
        """
        ids, output = node.input[1], node.output[0]
        rows = [self._add("Gather", [part, ids], f"{output}.{part}") for part in self._store(name, table)]
        values = self._scaled(output, rows, table.bits)
        # As many texts and ids as come in, and all of a row.
        width = self._constant(f"{name}.shape", torch.tensor([0, 0, table.steps[0].numel()]))
        self._add("Reshape", [values, width], output)

    def _store(self, name: str, weight: RoundedWeight) -> list[str]:
        """Store a weight; return what steps, zero points and scales are called."""
        steps = weight.steps
        if weight.bits == 4:
            low, high = steps.chunk(2, dim=2)
            steps = low | high << 4
        parts = {"steps": steps, "zero": weight.zero, "scale": weight.scale}
        return [self._constant(f"{name}.{part}", tensor) for part, tensor in parts.items()]

    def _scaled(self, name: str, parts: list[str], bits: Bits) -> str:
        """Write `(steps - zero) * scale` of blocks; return what it is called."""
        steps, zero, scale = parts
        values = self._as_float(steps)
        if bits == 4:
            values = self._unpacked(values)
        difference = self._add("Sub", [values, self._as_float(zero)], f"{name}.difference")
        return self._add("Mul", [difference, scale], f"{name}.blocks")

    def _unpacked(self, packed: str) -> str:
        """Write what takes two steps out of every byte: the first half of a block is in the lower bits."""
        if all(tensor.name != _SIXTEEN for tensor in self.stored):
            self._constant(_SIXTEEN, torch.tensor(16.0))
        high = self._add("Floor", [self._add("Div", [packed, _SIXTEEN], f"{packed}.parts")], f"{packed}.high")
        low = self._add("Sub", [packed, self._add("Mul", [high, _SIXTEEN], f"{packed}.rest")], f"{packed}.low")
        return self._add("Concat", [low, high], f"{packed}.unpacked", axis=-1)

    def _as_float(self, name: str) -> str:
        import onnx

        return self._add("Cast", [name], f"{name}.float32", to=onnx.TensorProto.FLOAT)

    def _constant(self, name: str, tensor: torch.Tensor) -> str:
        import onnx

        self.stored.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output
