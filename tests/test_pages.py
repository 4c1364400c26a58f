"""What pages tell people to type is there, and runs as it stands there: imports, modules, commands, notebooks."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
from pathlib import Path

import attrs
import pytest
from PIL import Image

from mobileclip import build_model
from mobileclip.blocks import models
from mobileclip.data import datacompdr_augmentation, write_shards
from tests.data.made_samples import encoded, make_sample
from tests.encoders.small import SMALL
from tests.pages import pages

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "docs/**/*.md", "examples/**/README.md", "studies/*/README.md")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(path for place in PLACES for path in ROOT.glob(place))
    if path.name not in ("CHANGELOG.md", "changes.md") and "node_modules" not in path.parts
}
PARTS = ("mobileclip", "benchmarks", "examples", "studies", "tests")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, the empty one for commands."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for named, code in fences if named == language]


def imports(code: str) -> set[tuple[str, str]]:
    """Return what code imports from the library, as modules and names; no name where a module is imported."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
    return {(module, name) for module, name in found if module.partition(".")[0] == "mobileclip"}


PYTHON = [page for page, text in PAGES.items() if any(imports(code) for code in blocks(text, "python"))]


@pytest.mark.parametrize("page", PYTHON)
def test_what_a_page_imports_is_there(page):
    for module, name in sorted(set().union(*map(imports, blocks(PAGES[page], "python")))):
        found = importlib.import_module(module)
        assert not name or hasattr(found, name) or importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("page", PAGES)
def test_modules_scripts_and_files_that_a_page_names_are_there(page):
    commands = "\n".join(blocks(PAGES[page], "")) + "\n".join(re.findall(r"`([^`\n]+)`", PAGES[page]))
    for module in re.findall(r"python -m ([\w.]+)", commands):
        if module.partition(".")[0] in PARTS:
            place = ROOT.joinpath(*module.split("."))
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
    for script in re.findall(r"(?<![\w/])((?:recipes|examples)/[\w/]+\.py)\b", commands):
        assert (ROOT / script).is_file(), script
    for path in re.findall(r"`((?:mobileclip|tests|docs|requirements)/[\w./-]+)`", PAGES[page]):
        assert (ROOT / path).exists(), path


def test_what_the_program_writes_stands_in_the_pages():
    """`python -m tests.pages` renews them."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what python -m tests.pages writes"


def ran(page: str, *codes: str) -> dict:
    """Run Python of a page, one part after another, and return its names."""
    names: dict = {"__name__": "__main__"}
    for code in codes:
        exec(compile(code, page, "exec"), names)
    return names


def photographs(number: int):
    return make_sample(number, image=encoded(40, 30, number, "jpeg"), image_extension="jpg", dim=768 + 768)


# Each part that `docs/extending.md` shows, on shards that were written here.

PARTS = blocks(PAGES["docs/extending.md"].partition("\n## Use one part in your own code\n")[2], "python")


def test_parts_in_other_code(tmp_path, monkeypatch):
    """With a small model of the same contract behind the name of the model."""
    write_shards(tmp_path / "DataCompDR", map(photographs, range(8)), samples_per_shard=4)
    monkeypatch.chdir(tmp_path)
    whole = models["mobileclip_s0"]
    image, text = (attrs.evolve(getattr(SMALL, one), input=getattr(whole, one).input) for one in ("image", "text"))
    monkeypatch.setitem(models._values, "mobileclip_s0", attrs.evolve(SMALL, image=image, text=text))
    replay, decoder, loss, fabric = (lambda code=code: ran("docs/extending.md", code) for code in PARTS)
    views = [sample["view"] for sample in replay()["samples"]]
    assert [view.size for view in views] == [(256, 256)] * 8
    sample = photographs(0)
    expected = datacompdr_augmentation(256).apply(Image.open(io.BytesIO(sample.image)), sample.augmentations[0])
    assert views[0].tobytes() == expected.tobytes()
    names = decoder()
    (batch,) = names["batches"]
    assert batch.image.shape == (8, 3, 256, 256)
    assert batch.teacher_image.shape == (8, 768 + 768)
    assert names["report"].num_skipped == 0
    terms = loss()["terms"]
    assert terms.total == terms.contrastive + terms.distillation
    assert terms.distillation > 0
    before = build_model("mobileclip_s0").logit_scale.item()
    names = fabric()
    assert names["batch"].image.shape == (8, 3, 256, 256)
    assert names["model"].logit_scale.item() != before


# The cells of the notebooks of docs/tutorials.

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
# Of a notebook, a line that it prints, as far as it is the same everywhere, and its marks.
LAST = {
    "compose_a_block": ("[(1, 128, 8, 8), (1, 256, 4, 4)]", ()),
    "export": ("'a clock'", (pytest.mark.extra("onnx"), pytest.mark.slow)),
    "finetune": ("'finetuned.safetensors', 'interpolated.safetensors', 'report.md', 'results.json'", pytest.mark.slow),
    "search": ("gravel.jpg\n0.98 grass.jpg\n0.94 brick.jpg\n", (pytest.mark.extra("collections"), pytest.mark.slow)),
}


@pytest.mark.parametrize("path", [pytest.param(one, marks=LAST[one.stem][1], id=one.stem) for one in NOTEBOOKS])
def test_the_cells_of_a_notebook_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    ran(path.name, *("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    assert LAST[path.stem][0] in capsys.readouterr().out
