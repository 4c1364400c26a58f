"""The notebooks of docs/tutorials: their cells run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Of a notebook, a line that it prints, as far as it is the same everywhere, and the extras that it needs.
LAST = {
    "compose_a_block": "[(1, 128, 8, 8), (1, 256, 4, 4)]",
    "export": "'a clock'",
    "finetune": "'finetuned.safetensors', 'interpolated.safetensors', 'report.md', 'results.json'",
    "search": "gravel.jpg\n0.98 grass.jpg\n0.94 brick.jpg\n",
}
EXTRAS = {"export": ("onnx",), "search": ("collections",)}
QUICK = ("compose_a_block",)


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def marks(path):
    return [pytest.mark.extra(*EXTRAS.get(path.stem, ())), *([] if path.stem in QUICK else [pytest.mark.slow])]


@pytest.mark.parametrize("path", [pytest.param(one, marks=marks(one), id=one.stem) for one in NOTEBOOKS])
def test_its_cells_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict = {"__name__": "__main__"}
    for cell in cells(path, "code"):
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
    assert LAST[path.stem] in capsys.readouterr().out
