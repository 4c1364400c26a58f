"""What is exported, and how: the choices of the person who exports, and those that a place such as `iphone` implies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, get_args

import attrs
from attrs import validators

from mobileclip.hardware import PRECISIONS, Precision
from mobileclip.registry import Registry
from mobileclip.strict import strict
from mobileclip.terminal.common import Rare

Tower = Literal["image", "text"]
Towers = Literal["image", "text", "both"]
Preprocess = Literal["host", "uint8", "float32", "picture"]
InputDtype = Literal["float32", "uint8", "int32", "int64"]
TextDtype = Literal["int32", "int64"]
TextLengths = Literal["own", "full"]
Stage = int | Literal["text-space"]
"""What a feature map comes behind: a stage, from 0, of a ViT a layer; or all of the tower, in the space of texts."""
TEXT_SPACE: Final = "text-space"


def _are_stages(_: object, attribute: attrs.Attribute[tuple[Stage, ...]], stages: tuple[Stage, ...]) -> None:
    if len(set(stages)) != len(stages) or any(isinstance(stage, int) and stage < 0 for stage in stages):
        raise ValueError(
            f"{attribute.name} are numbers of stages, from 0, or {TEXT_SPACE}, each once, and not {stages}"
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class ExportSpec:
    """The choices of an export: target, precision, towers, layout and preprocessing.

    Args:
        output: the folder to write; it must not exist, or be empty.
        target: the runtime's format: `onnx`, `openvino`, `litert`, `executorch`, `coreml`, `torch`, or
            another that is registered in `mobileclip.export.targets`.
        layout: names of files, inputs and outputs, and the files beside them: `plain`, `transformers.js`,
            `immich`, `ultralytics` (text encoder of YOLOE), or another registered in `mobileclip.export.layouts`.
        tower: the towers to export, a file each. A classifier is exported whole, and gives logits as they are, unless
            its image tower is asked for.
        precision: of the stored weights, and of what is computed where the runtime can compute in it. Embeddings are
            float32 always. int8 is static: convolutions and linear layers with a scale for each output
            channel, and ranges of what goes into them found on calibration data. `int8-weights` stores weights in 8
            bits, which is a smaller file, and computes with them in float32.
        also: further precisions, in the same folder, where the layout's names of files tell them apart.
        dynamic_batch: take batches of any size; fixed at one otherwise, which runtimes on devices want.
        preprocess: what the image file takes. `host`: pixels that the host has scaled and normalised. `uint8` or
            `float32`: pixels in [0, 255] of that type; scaling and normalising are inside, resizing and cropping the
            host's. `picture`: uint8 pixels of a picture of any size, upright; everything is inside, which targets
            allow that resize as the library does.
        normalize: scale embeddings to unit length inside.
        features: stages of the image tower, from 0, whose feature maps come out beside the embedding, as `stage_0` and
            so on; of a ViT they are layers; `text-space` is the embedding of each place, as `text_space`. The mean of
            these is the embedding: see `ImageTextModel.explain`. None by default.
        image_size: side of the images, in pixels, where not the model's own; see `mobileclip.encoders.load_model`.
        context_length: ids per text, where fewer than the model's own.
        text_lengths: `own` lets the text file take rows of 8, 16 and 32 ids too, where the tower is causal and the
            target has it, so that a short text takes less time; `full` leaves the context length alone.
        converter: the Python of an environment with the target's own converter, where that cannot stand beside this
            library: that of `litert`. Other targets need none.

    Examples:
        >>> ExportSpec(output="phone", target="coreml", precision="float16", preprocess="uint8").towers
        ('image', 'text')
    """

    output: Path = attrs.field(converter=Path)
    target: str = "onnx"
    layout: str = "plain"
    tower: Towers = attrs.field(default="both", validator=validators.in_(("image", "text", "both")))
    precision: Precision = attrs.field(default="float32", validator=validators.in_(PRECISIONS))
    also: Rare[tuple[Precision, ...]] = ()
    dynamic_batch: bool = False
    preprocess: Preprocess = attrs.field(default="host", validator=validators.in_(get_args(Preprocess)))
    normalize: Rare[bool] = True
    features: Rare[tuple[Stage, ...]] = attrs.field(default=(), validator=_are_stages)
    image_size: Rare[int | None] = None
    context_length: Rare[int | None] = None
    text_lengths: Rare[TextLengths] = attrs.field(default="own", validator=validators.in_(get_args(TextLengths)))
    converter: Rare[Path | None] = None

    def __attrs_post_init__(self) -> None:
        """Check that feature maps are asked of an image tower."""
        if self.features and self.tower == "text":
            raise ValueError("features are maps of the image tower, and the text tower alone is exported")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """All precisions that are written, the one that is loaded first."""
        return tuple(dict.fromkeys((self.precision, *self.also)))

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers to export, in order."""
        return ("image", "text") if self.tower == "both" else (self.tower,)


@attrs.frozen(kw_only=True, field_transformer=strict)
class Place:
    """The export settings that a place expects: target, layout and precisions.

    Args:
        target: the runtime's format.
        layout: what files, inputs and outputs are called.
        precisions: of the files; the first is the one that `load` takes.
        preprocess: what the image file takes.
        dynamic_batch: whether batches may have any size.
        use: how the files are used there, for the card.

    Examples:
        >>> spec = places.resolve("iphone").fitted(ExportSpec(output="phone"))
        >>> spec.target, spec.layout, spec.precision, spec.preprocess
        ('coreml', 'apple', 'float16', 'uint8')
    """

    target: str
    layout: str = "plain"
    precisions: tuple[Precision, ...] = ("float32",)
    preprocess: Preprocess = "host"
    dynamic_batch: bool = False
    use: str = ""

    def fitted(self, spec: ExportSpec) -> ExportSpec:
        """Return how a model is exported for the place; what a spec has that is not the default stays.

        Args:
            spec: what was asked for beside the place.
        """
        precision, *also = self.precisions
        wanted: dict[str, Any] = {
            "target": self.target,
            "layout": self.layout,
            "precision": precision,
            "also": tuple(also),
            "preprocess": self.preprocess,
            "dynamic_batch": self.dynamic_batch,
        }
        defaults = attrs.fields_dict(ExportSpec)
        asked = {name for name in wanted if getattr(spec, name) != defaults[name].default}
        if "precision" in asked:
            # The one that was asked for, and no others beside it.
            asked.add("also")
        return attrs.evolve(spec, **{name: value for name, value in wanted.items() if name not in asked})


places: Registry[Place] = Registry("export_place")
"""Places by name; third parties add theirs here or by an entry point in `mobileclip.export_place`."""

places.add(
    "iphone",
    Place(
        target="coreml",
        layout="apple",
        precisions=("float16",),
        preprocess="uint8",
        use="Put both packages into an Xcode project in the place of Apple's of the same names. `image` is a picture, "
        "`text` an int32 array of one row of ids, `final_emb_1` the embedding.",
    ),
)
places.add(
    "android",
    Place(
        target="litert",
        precisions=("float16",),
        preprocess="uint8",
        use="Open the files with LiteRT's `Interpreter` or `CompiledModel`, by the signature `serving_default`. Pixels "
        "are uint8, resized and cropped by the app; ids are int32. One input at a time.",
    ),
)
places.add(
    "browser",
    Place(
        target="onnx",
        layout="transformers.js",
        precisions=("float32", "float16", "int8-weights"),
        dynamic_batch=True,
        use="Serve the folder, and name it in transformers.js, with the dtype `fp32`, `fp16` or `q8`. The batch axis "
        "is called `batch_size`, and that of texts of any length `sequence_length`: `session_options: { "
        "freeDimensionOverrides: { batch_size: 1 } }` fixes it, where a unit wants fixed shapes.",
    ),
)
places.add(
    "server",
    Place(
        target="onnx",
        dynamic_batch=True,
        use="Any number of threads may call one session, with batches of any size. Give it as many threads as a "
        "request may take: `mobileclip.load(folder, num_threads=2)`, or `intra_op_num_threads` of ONNX Runtime.",
    ),
)
