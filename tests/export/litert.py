"""A small export for LiteRT and the checkpoint that it was made of, kept with the tests: the converter is elsewhere.

python -m tests.export.litert litert-converter/bin/python     # writes them anew
"""

import os
import sys
from pathlib import Path

import attrs
import torch

from mobileclip.encoders import DualEncoderSpec, load_model, save_model
from mobileclip.export import ExportSpec, bundled_samples, export_model, targets
from tests.export.models import MCI, MCT, SHALLOW, few_samples, one_tower, seeing

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "golden" / "litert"
CHECKPOINT, EXPORT, INT8 = FOLDER / "checkpoint.safetensors", FOLDER / "export", FOLDER / "int8.tflite"
LENGTHS = FOLDER / "lengths.tflite"
SPEC = DualEncoderSpec(image=attrs.evolve(MCI, input=attrs.evolve(MCI.input, size=32)), text=MCT)


def converter():
    """The Python of an environment with LiteRT's converter: of LITERT_PYTHON, or what `make litert` makes; or None."""
    found = Path(os.environ.get("LITERT_PYTHON", ROOT / ".venv-litert" / "bin" / "python"))
    return found if found.is_file() else None


def model():
    """What the export was made of."""
    return load_model(CHECKPOINT)


def export_of(stored, tower, precision, *, layers=(), **options):
    """A tower as `export_model` gives it to the target."""
    options |= {"preprocess": "uint8", "features": (0, 1)}
    return one_tower(stored, tower, target="litert", precision=precision, every=8, layers=layers, **options)


def int8_export(**options):
    """The image tower in int8, but for its last layer."""
    return export_of(model(), "image", "int8", layers=["head.project"], **options)


def lengths_export(precision="float32", **options):
    """A causal text tower, whose rows may be shorter."""
    return export_of(seeing(SHALLOW), "text", precision, **options)


def write(python):
    FOLDER.mkdir(parents=True, exist_ok=True)
    small = seeing(SPEC)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for module in small.modules():
            if isinstance(module, torch.nn.LayerNorm):
                # The converter multiplies the next layer's weight by it.
                module.weight.uniform_(0.5, 1.5)
    save_model(small, CHECKPOINT)
    spec = ExportSpec(output=EXPORT, target="litert", preprocess="uint8", features=(0, 1), converter=python)
    export_model(CHECKPOINT, spec, samples=few_samples(), calibration=bundled_samples(), overwrite=True)
    targets["litert"].export(int8_export(converter=python), INT8)
    targets["litert"].export(lengths_export(converter=python), LENGTHS)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
