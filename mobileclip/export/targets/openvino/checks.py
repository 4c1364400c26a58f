"""OpenVINO's models, looked through before the runtime sees them: known layers, and weights that lie in their file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.parsers import expat

from mobileclip.export.targets.bounds import Bounds
from mobileclip.storage import printable

_MOST_BYTES, _MOST_LAYERS, _MOST_DEPTH, _CONSTANT = 2**26, 50_000, 12, "Const"
# Those that give new values of what they are given: no loops, no branches, no chance, nothing of an extension.
_LAYERS = re.compile(
    "Abs|Add|AvgPool|Broadcast|Ceiling|Clamp|Concat|Const|Convert|ConvertLike|Convolution|Cos|CumSum|Divide|Elu|Equal|"
    "Erf|Exp|FakeQuantize|Floor|FloorMod|Gather|GatherElements|GatherND|Gelu|Greater|GreaterEqual|GroupConvolution|"
    "GroupNormalization|HSigmoid|HSwish|HardSigmoid|Interpolate|Less|LessEqual|Log|LogSoftmax|LogicalAnd|LogicalNot|"
    "LogicalOr|LogicalXor|MVN|MatMul|MaxPool|Maximum|Minimum|Mish|Mod|Multiply|Negative|NormalizeL2|NotEqual|PReLU|"
    "Pad|Parameter|Power|RMS|ReLU|Range|ReduceL1|ReduceL2|ReduceLogicalAnd|ReduceLogicalOr|ReduceMax|ReduceMean|"
    "ReduceMin|ReduceProd|ReduceSum|Reshape|Result|Round|ScaledDotProductAttention|Select|Selu|ShapeOf|Sigmoid|Sign|"
    "Sin|Slice|SoftMax|SoftPlus|SoftSign|Softmax|Split|Sqrt|SquaredDifference|Squeeze|StridedSlice|Subtract|Swish|Tan|"
    "Tanh|Tile|TopK|Transpose|Unsqueeze|VariadicSplit"
)
_OPSET = re.compile(r"opset\d{1,2}")
_TYPES = "f64|f32|f16|bf16|i64|i32|i16|i8|i4|u64|u32|u16|u8|u4|boolean"
_TYPE = re.compile(_TYPES)
# What stands in which; anything goes below the notes of a whole model, which are texts.
_NOTES = "rt_info"
_INSIDE = {
    "": ("net",),
    "net": ("layers", "edges", _NOTES),
    "layers": ("layer",),
    "edges": ("edge",),
    "layer": ("data", "input", "output"),
    "input": ("port",),
    "output": ("port",),
    "port": ("dim",),
}
_ATTRIBUTES = {
    "net": {"name", "version"},
    "layer": {"id", "name", "type", "version", "output_names"},
    "port": {"id", "precision", "names"},
    "edge": {"from-layer", "from-port", "to-layer", "to-port"},
}


def check_openvino(path: Path) -> None:
    """Check a model's graph and weights.

    Raises:
        ValueError: if there is anything but known layers, and constants that lie in the file of weights beside it.
    """
    weights = path.with_suffix(".bin")
    try:
        if not weights.is_file():
            raise ValueError(f"there is no {weights.name} beside it")  # noqa: TRY301  said as all else is
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        _Graph(weights.stat().st_size).parse(data)
    except (ValueError, expat.ExpatError) as error:
        raise ValueError(
            f"{path} is no OpenVINO model of known parts: {printable(error)}; do not use it unless you made it, and "
            "then export the model again"
        ) from error


def check_cost(model: Any, path: Path) -> None:
    """Check what one run of a model takes, by the shapes that OpenVINO finds.

    Args:
        model: of fixed shapes, as OpenVINO read it.
        path: of its file, for messages.

    Raises:
        ValueError: if a shape is not known beforehand, or the values are larger than those of any tower.
    """
    bounds = Bounds(path)
    for node in model.get_ordered_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.is_dynamic:
                raise ValueError(f"{path}: the size of a value cannot be known before it is run; do not use it")
            count = 1
            for side in shape:
                count *= side.get_length()
            bounds.add(node.get_friendly_name(), count)


class _Graph:
    """Goes through the elements of a graph.

    Args:
        num_bytes: of its weights.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes, self._num_layers = num_bytes, 0
        self._path: list[str] = []
        self._kind = ""

    def parse(self, data: bytes) -> None:
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.ProcessingInstructionHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.Parse(data, True)

    def _refuse(self, *_: object) -> None:
        raise ValueError("it declares types or entities, or holds instructions")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        parent = self._path[-1] if self._path else ""
        self._path.append(name)
        if len(self._path) > _MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        if _NOTES in self._path[1:2]:
            return
        if name not in _INSIDE.get(parent, ()):
            raise ValueError(f"it holds {printable(name, limit=40)} in {parent or 'front of its graph'}")
        if name in _ATTRIBUTES and not attributes.keys() <= _ATTRIBUTES[name]:
            raise ValueError(f"{name} says {printable(sorted(attributes), limit=80)}")
        if name == "layer":
            self._layer(attributes)
        if name == "data" and self._kind == _CONSTANT:
            self._constant(attributes)

    def _end(self, _: str) -> None:
        self._path.pop()

    def _layer(self, attributes: dict[str, str]) -> None:
        self._num_layers += 1
        self._kind = attributes.get("type", "")
        if self._num_layers > _MOST_LAYERS:
            raise ValueError(f"it holds more than {_MOST_LAYERS:,} layers")
        if not _LAYERS.fullmatch(self._kind) or not _OPSET.fullmatch(attributes.get("version", "")):
            raise ValueError(f"it holds the layer {printable(attributes.get('version', ''))} {printable(self._kind)}")

    def _constant(self, attributes: dict[str, str]) -> None:
        known = attributes.keys() == {"element_type", "shape", "offset", "size"}
        if not known or not _TYPE.fullmatch(attributes["element_type"]):
            raise ValueError(f"a constant says {printable(attributes, limit=120)}")
        place = [attributes["offset"], attributes["size"]]
        if not all(re.fullmatch(r"[0-9]{1,15}", number) for number in place):
            raise ValueError("a constant lies nowhere")
        if sum(map(int, place)) > self._num_bytes:
            raise ValueError(f"a constant lies beyond the {self._num_bytes:,} bytes of the weights")
