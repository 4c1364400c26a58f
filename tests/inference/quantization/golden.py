"""int8 of full-size models with the golden weights, emulated in float64, so that every machine gives the same.

python -m tests.inference.quantization.golden     # writes the stored numbers anew
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mobileclip import reparameterize
from mobileclip.encoders import load_model
from mobileclip.inference.quantization import observed_ranges, rounded
from tests.golden.checkpoints import golden, golden_images, golden_tokens

STORED = Path(__file__).parents[2] / "golden" / "int8.json"
CASES = [("apple_mobileclip_s0", "image"), ("apple_mobileclip_s0", "text"), ("apple_mobileclip_s2", "image")]
_NUM_VALUES = 12


@torch.no_grad()
def emulated(name, tower):
    """What a tower in int8, all layers and their outputs, gives for one input: its cosine to float64, and values."""
    inputs = golden_images(256)[:1].double() if tower == "image" else golden_tokens()[:1]
    with TemporaryDirectory() as folder:
        model = load_model(golden(name).write(Path(folder) / "model.safetensors"), golden(name).name, tower=tower)
    encoder = reparameterize(model).double()
    ranges = observed_ranges(encoder, lambda: [inputs], whole=True)
    found, expected = rounded(encoder, ranges)(inputs)[0], encoder(inputs)[0]
    cosine = torch.cosine_similarity(found, expected, dim=0)
    return {"cosine": cosine.item(), "values": (found / found.norm())[:_NUM_VALUES].tolist()}


if __name__ == "__main__":
    numbers = {f"{name}, {tower}": emulated(name, tower) for name, tower in CASES}
    STORED.write_text(f"{json.dumps(numbers, indent=1)}\n", encoding="utf-8")
