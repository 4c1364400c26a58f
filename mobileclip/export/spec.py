"""The options of an export, and named presets, such as `iphone`, which set several options."""

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
"""Source of a feature map: the number of a stage (for a ViT, a layer) from 0, or `text-space` for the whole tower."""
TEXT_SPACE: Final = "text-space"


def _are_stages(_: object, attribute: attrs.Attribute[tuple[Stage, ...]], stages: tuple[Stage, ...]) -> None:
    if len(set(stages)) != len(stages) or any(isinstance(stage, int) and stage < 0 for stage in stages):
        raise ValueError(f"{attribute.name} must be distinct stage numbers, from 0, or {TEXT_SPACE}; got {stages}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class ExportSpec:
    """The options of an export: target, precision, towers, layout and preprocessing.

    Args:
        output: output folder, which must be missing or empty unless an existing export is replaced.
        target: format of the runtime: `onnx`, `openvino`, `litert`, `executorch`, `coreml`, `torch`, or another target
            registered in `mobileclip.export.targets`.
        layout: scheme of file, input and output names, with extra files for a host: `plain`, `transformers.js`,
            `immich`, `ultralytics` (text encoder of YOLOE), or another layout registered in
            `mobileclip.export.layouts`.
        tower: towers to export, one file each. A classifier is exported whole and returns raw logits, unless `image`
            selects its image tower.
        precision: precision of the stored weights, and of the computation if the runtime supports it. Embeddings are
            always float32. int8 is static: convolutions and linear layers have one scale per output channel, and the
            ranges of their inputs come from calibration data. `int8-weights` stores weights in 8 bits, for a smaller
            file, and computes in float32.
        also: further precisions to write to the same folder, if the layout has a different file name for each
            precision.
        dynamic_batch: whether to accept batches of any size; otherwise the batch size is 1, as mobile runtimes require.
        preprocess: input format of the exported image encoder. `host`: pixels that the host has scaled and normalised.
            `uint8` or `float32`: pixels of that type in [0, 255]; the file scales and normalises, and the host resizes
            and crops. `picture`: uint8 pixels of an upright image of any size; the file does all preprocessing. Only
            for targets that resize in the same way as the library.
        normalize: whether the files scale embeddings to unit length.
        features: stages of the image tower (for a ViT, layers), from 0, whose feature maps are additional outputs,
            named `stage_0` and so on. `text-space` adds the embedding of each image position, named `text_space`; the
            mean over positions is the image embedding, see `ImageTextModel.explain`. Empty by default.
        image_size: side of the images in pixels; by default the model's own size, see `mobileclip.encoders.load_model`.
        context_length: number of token ids per text, at most the model's own number, which is the default.
        text_lengths: `own` lets the text tower's file also accept rows of 8, 16 and 32 ids, so that short texts take
            less time, if the tower is causal and the target supports several lengths. `full` accepts only the context
            length.
        converter: path of the Python in a separate environment with the target's converter. Only `litert` needs a
            converter, which cannot be installed in the environment of this library.

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
        """Raise an error if feature maps are requested without an image tower."""
        if self.features and self.tower == "text":
            raise ValueError(
                "features need the image tower, but only the text tower is exported; choose --tower image or both"
            )

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """All precisions to write; `load` opens the first."""
        return tuple(dict.fromkeys((self.precision, *self.also)))

    @property
    def towers(self) -> tuple[Tower, ...]:
        """Names of the towers to export, with the image tower first."""
        return ("image", "text") if self.tower == "both" else (self.tower,)


@attrs.frozen(kw_only=True, field_transformer=strict)
class Preset:
    """Export options for a platform, such as `iphone`.

    Args:
        target: name of the target, such as `coreml`.
        layout: name of the layout of files, inputs and outputs.
        precisions: precisions of the files; `load` opens the first.
        preprocess: input format of the exported image encoder.
        dynamic_batch: whether the files accept batches of any size; otherwise the batch size is 1.
        use: instructions for using the files on this platform, for the card.

    Examples:
        >>> spec = presets.resolve("iphone").fitted(ExportSpec(output="phone"))
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
        """Return the spec with the options of this preset, but keep each option that differs from the spec's default.

        Args:
            spec: export options from the user.
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
            # Only the requested precision, without the additional ones of the preset.
            asked.add("also")
        return attrs.evolve(spec, **{name: value for name, value in wanted.items() if name not in asked})


presets: Registry[Preset] = Registry("export_preset")
"""Presets by name; other packages add presets here or by an entry point in `mobileclip.export_preset`."""

presets.add(
    "iphone",
    Preset(
        target="coreml",
        layout="apple",
        precisions=("float16",),
        preprocess="uint8",
        use="Put both packages into an Xcode project in place of Apple's packages with the same names. The input "
        "`image` is an image, the input `text` is an int32 array with one row of ids, and the output `final_emb_1` is "
        "the embedding.",
    ),
)
presets.add(
    "android",
    Preset(
        target="litert",
        precisions=("float16",),
        preprocess="uint8",
        use="Open the files with LiteRT's `Interpreter` or `CompiledModel`, with the signature `serving_default`. "
        "Pixels are uint8, resized and cropped by the app; ids are int32. Pass one input at a time.",
    ),
)
presets.add(
    "browser",
    Preset(
        target="onnx",
        layout="transformers.js",
        precisions=("float32", "float16", "int8-weights"),
        dynamic_batch=True,
        use="Serve the folder, and load it in transformers.js with the dtype `fp32`, `fp16` or `q8`. The dynamic axes "
        "are `batch_size` and, for texts, `sequence_length`. For devices that need fixed shapes, "
        "`session_options: { freeDimensionOverrides: { batch_size: 1 } }` fixes the batch size.",
    ),
)
presets.add(
    "server",
    Preset(
        target="onnx",
        dynamic_batch=True,
        use="Any number of threads may call one session, with batches of any size. Set the number of threads per "
        "request: `mobileclip.load(folder, num_threads=2)`, or `intra_op_num_threads` of ONNX Runtime.",
    ),
)
