"""Write `models.json` in this folder: towers, inputs, sizes and weights of every named model.

    PYTHONPATH=. python docs/site/count_models.py

Multiply-accumulates are for one image and one text of full length in the folded model, as in `mobileclip info`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobileclip.blocks import models
from mobileclip.encoders.checkpoints.published import PUBLISHED
from mobileclip.inference.catalogue import describe

FILE = Path(__file__).with_name("models.json")


def model_values(name: str) -> dict[str, Any]:
    """Return the towers of a named model with inputs and sizes, and the location and licence of its weights."""
    described = describe(name)
    return {
        "weights": described["published weights"],
        "licence": PUBLISHED[name].licence,
        "towers": {
            tower: {
                "kind": described["spec"][tower]["kind"],
                "embedding_dim": described["spec"][tower]["embedding_dim"],
                "input": described["input"][tower],
                "parameters": described["parameters"][tower],
                "macs": described["multiply-accumulates"][tower],
            }
            for tower in ("image", "text")
        },
    }


if __name__ == "__main__":
    values = {name: model_values(name) for name in models}
    FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
