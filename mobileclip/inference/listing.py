"""The table of models and towers that are known by name, which is kept: computing it takes seconds, and PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mobileclip.registry import has_others
from mobileclip.strict import split_lines

__all__ = ["FILE", "listed_rows"]

FILE = Path(__file__).with_name("models.jsonl")
"""What `mobileclip.inference.catalogue.rows` returns of the library's own models, a line each."""


def listed_rows() -> list[dict[str, str | None]]:
    """Return the rows of `mobileclip.inference.catalogue.rows`; those that are kept are not computed."""
    kept: list[dict[str, str | None]] = [json.loads(line) for line in split_lines(FILE.read_text(encoding="utf-8"))]
    # Whoever has added a model in this process has imported the registries.
    if not has_others("model", "image_encoder", "text_encoder") and "mobileclip.blocks" not in sys.modules:
        return kept
    from mobileclip.inference.catalogue import rows

    return [*kept, *rows(known={str(row["name"]) for row in kept})]
