"""Weights of 8 bits in an ONNX file, with the operations that make float32 of them."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import torch

from mobileclip.export.towers.graph import TowerExport
from mobileclip.export.towers.weights import RoundedWeight, round_weight

if TYPE_CHECKING:
    import onnx

# Where PyTorch's exporter notes which module an operation comes from: the names of all modules around it, outermost
# first, and its own behind them.
_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_ENCODER = "encoder."


def layers_of_weights(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Return the layers that use each weight, both by name: the exporter renames operations, and not weights."""
    stored = {tensor.name for tensor in model.graph.initializer}
    layers: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.op_type in _WEIGHTED and node.input[1] in stored:
            scopes = ast.literal_eval(next(note.value for note in node.metadata_props if note.key == _SCOPES))
            layers.setdefault(node.input[1], set()).add(scopes[-2].removeprefix(_ENCODER))
    return layers


def store_in_eight_bits(model: onnx.ModelProto, tower: TowerExport) -> None:
    """Store the weights of convolutions and linear layers, and tables of embeddings, in 8 bits.

    They become float32 by operations on constants, which runtimes compute once, when a file is opened. Of a table, the
    rows that are looked up become float32, so that it stays small in memory too.

    Args:
        model: in float32, changed in place; with the exporter's notes on every operation.
        tower: its encoder, and the layers that stay in float32.
    """
    import onnx

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = _layers(model, tower)
    missing = tower.float32 - set(layers.values())
    assert not missing, f"not found in the graph: {missing}"
    file, done = _Operations(), set[str]()
    for node in model.graph.node:
        looked_up = node.op_type == "Gather"
        name = node.input[0 if looked_up else 1] if len(node.input) > 1 else ""
        if name not in layers or layers[name] in tower.float32:
            file.nodes.append(node)
            continue
        weight = torch.from_numpy(onnx.numpy_helper.to_array(stored[name]).copy())
        transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _is_transposed(node))
        if looked_up:
            file.look_up(name, round_weight(weight), node)
        elif name not in done:
            rows = weight.T if transposed else weight.flatten(1)
            file.restore(name, round_weight(rows), tuple(weight.shape), transposed=transposed)
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
    return name.removeprefix(_ENCODER).removesuffix(".weight")


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
        parts = self._store(name, weight)
        if transposed:
            self._add("Transpose", [self._scaled(f"{name}.rows", parts)], name)
            return
        rows = self._scaled(f"{name}.rows", parts)
        self._add("Reshape", [rows, self._constant(f"{name}.shape", torch.tensor(shape))], name)

    def look_up(self, name: str, table: RoundedWeight, node: onnx.NodeProto) -> None:
        """Write a table, and what makes float32 of the rows that are looked up.

        Args:
            name: of the float32 one.
            table: its rows.
            node: what looks them up.
        """
        ids, output = node.input[1], node.output[0]
        self._scaled(
            output, [self._add("Gather", [part, ids], f"{output}.{part}") for part in self._store(name, table)]
        )

    def _store(self, name: str, weight: RoundedWeight) -> list[str]:
        """Store a weight; return what steps, zero points and scales are called."""
        parts = {"steps": weight.steps, "zero": weight.zero, "scale": weight.scale}
        return [self._constant(f"{name}.{part}", tensor) for part, tensor in parts.items()]

    def _scaled(self, name: str, parts: list[str]) -> str:
        """Write `(steps - zero) * scale`; return what it is called."""
        steps, zero, scale = parts
        difference = self._add("Sub", [self._as_float(steps), self._as_float(zero)], f"{name}.difference")
        return self._add("Mul", [difference, scale], name)

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
