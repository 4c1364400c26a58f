"""Pages with the text and code of the notebooks in docs/tutorials, and a link to download the notebook."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "tutorials"
# From common to rare tasks.
_ORDER = ("search", "finetune", "export", "compose_a_block")


def notebook_pages() -> dict[str, str]:
    """Return the pages by path below `docs/`."""
    return {f"tutorials/{name}.md": _page(FOLDER / f"{name}.ipynb") for name in _ORDER}


def _page(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [_part(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join([*parts, f"[This page as a notebook]({path.name})."]) + "\n"


def _part(kind: str, text: str) -> str:
    return f"```python\n{text}\n```" if kind == "code" else text
