"""A small export for LiteRT and the checkpoint that it was made of, kept with the tests: the converter is elsewhere.

python -m tests.export.litert litert-converter/bin/python     # writes them anew
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import attrs
import torch

from mobileclip.encoders import DualEncoderSpec, load_model, save_model
from mobileclip.export import ExportSpec, bundled_samples, export_model
from tests.export.models import MCI, MCT, few_samples, seeing

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "golden" / "litert"
CHECKPOINT, EXPORT = FOLDER / "checkpoint.safetensors", FOLDER / "export"
SPEC = DualEncoderSpec(image=attrs.evolve(MCI, input=attrs.evolve(MCI.input, size=32)), text=MCT)


def converter():
    """The Python of an environment with LiteRT's converter: of LITERT_PYTHON, or what `make litert` makes; or None."""
    found = Path(os.environ.get("LITERT_PYTHON", ROOT / ".venv-litert" / "bin" / "python"))
    return found if found.is_file() else None


def model():
    """What the export was made of."""
    return load_model(CHECKPOINT)


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
    spec = ExportSpec(out=EXPORT, target="litert", preprocess="uint8", features=(0, 1), converter=python)
    export_model(CHECKPOINT, spec, samples=few_samples(), calibration=bundled_samples(), overwrite=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
