"""The notebooks of docs/tutorials: short, without stored outputs, and their cells run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_WORDS = 300
# Of a notebook, a line that it prints, as far as it is the same everywhere, and the extras that it needs.
LAST = {
    "compose_a_block": "[(1, 128, 8, 8), (1, 256, 4, 4)]",
    "export": "'a clock'",
    "finetune": "'finetuned.safetensors', 'interpolated.safetensors', 'report.md', 'results.json'",
    "search": "gravel.jpg\n0.98 grass.jpg\n0.94 brick.jpg\n",
}
EXTRAS = {"export": ("onnx",), "search": ("collections",)}


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_each_has_its_expectation():
    assert [path.stem for path in NOTEBOOKS] == sorted(LAST)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_short_and_links_to_what_is_there(path):
    prose = "".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert len(prose.split()) <= MOST_WORDS
    for target in (part.split(")")[0] for part in prose.split("](")[1:]):
        assert (FOLDER / target).is_file(), target
    assert f"tutorials/{path.stem}.ipynb" in (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells(path, "code"))


@pytest.mark.parametrize(
    "path", [pytest.param(one, marks=pytest.mark.extra(*EXTRAS.get(one.stem, ())), id=one.stem) for one in NOTEBOOKS]
)
def test_its_cells_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict = {"__name__": "__main__"}
    for cell in cells(path, "code"):
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
    assert LAST[path.stem] in capsys.readouterr().out
