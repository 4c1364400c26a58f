"""Places where models run, such as `iphone`, by name: the export options that each implies.

A further place enters here, registered by name. How files are called there is a layout's, what is in them a target's.
"""

from __future__ import annotations

from typing import Any

import attrs

from mobileclip.export.spec import ExportSpec, Preprocess
from mobileclip.hardware.precision import Precision
from mobileclip.registry import Registry
from mobileclip.strict import strict


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
