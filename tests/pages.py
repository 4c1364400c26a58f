"""What pages have from the program: `python -m tests.pages` writes it anew.

A page has it between two comments, the first of which names a function of `BLOCKS`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import harness
from mobileclip.evaluation import SUITE, SUITES, evaluation_tasks
from mobileclip.recipes import header_of, recipe_files
from mobileclip.registry import Registry
from tests.targets import Table, acceptance_table, layouts_table, places_table, targets_table

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mobileclip"
_BLOCK = re.compile(r"(<!-- written by python -m tests\.pages: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tasks() -> str:
    """Return every data set that is known by a key, with its metric and the suites that have it."""
    entries = {entry.key: entry for entry in SUITE}
    rows = []
    for key, task in evaluation_tasks.items():
        entry = entries.get(key)
        suites = ", ".join(f"`{suite}`" for suite, keys in SUITES.items() if key in keys)
        metric, images = (f"`{entry.main_metric}`", f"{entry.num_images:,}") if entry else ("", "")
        rows.append((f"`{key}`", task.name, images, metric, suites))
    return _table("key", "data set", "images", "main metric", "suites", rows=rows)


def registries() -> str:
    """Return every public registry, with the group of its entry points."""
    rows = sorted(_registries(), key=lambda row: row[1])
    return _table("a name of", "registry", "entry point", rows=rows)


def recipes() -> str:
    """Return every recipe, as its header says."""
    rows = []
    for name, file in recipe_files().items():
        header = header_of(file)
        rows.append((f"[{name}]({file.name})", header.title, header.entries["Hardware"], header.entries["Result"]))
    return _table("recipe", "what it does", "hardware", "expected result", rows=rows)


def models() -> str:
    """Return every published model, as the site's overview has it, without links and what is counted."""
    sys.path.append(str(ROOT / "docs" / "site"))
    from model_pages import model_pages

    lines = [line for line in model_pages()["models/index.md"].split("\n") if line.startswith("| ")]
    titles, *rows = [
        [cell.strip() for cell in re.sub(r"\[(.+?)\]\(.*?\)", r"\1", line).strip("|").split("|")] for line in lines
    ]
    shown = [titles.index(one) for one in titles if one != "GMACs" and "licence" not in one]
    return _table(*(titles[one] for one in shown), rows=[tuple(row[one] for one in shown) for row in rows])


def runtimes() -> str:
    """Return the towers of `docs/runtimes.json`: the release's times, this library's ratios, both sides' checks."""
    rows = json.loads((ROOT / "docs" / "runtimes.json").read_text(encoding="utf-8"))["rows"]
    towers: dict[tuple[str, ...], dict[tuple[str, str], Any]] = {}
    for row in rows:
        labels = tuple(row["case"].get(name, "") for name in ("model", "tower", "batch", "ids"))
        towers.setdefault(labels, {})[row["case"]["side"], row["case"]["form"]] = row
    lines = []
    for (model, tower, batch, ids), found in towers.items():
        count = f"one {tower}" if batch == "1" else f"{batch} {tower}s"
        cells = [f"{model.upper()}, {count}" + (f" of {ids} ids" if ids else "")]
        for form in ("openvino", "openvino_bf16"):
            time, ratio = found["release", form]["values"]["time"], found["ours", form]["values"]["ratio"]
            cells.append(harness.text(time["number"]))
            cells.append(f"**{ratio['number']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})**")
        for side in ("release", "ours"):
            notes = found[side, "openvino_bf16"]["notes"]
            verdict = "passed" if notes["checks"] == "passed" else "failed"
            cells.append(f"{verdict}: {notes['least cosine']}, {notes['first results']}")
        lines.append(tuple(cells))
    titles = ("", "release float32, ms", "**ratio**", "release bfloat16, ms", "**ratio**")
    return _table(*titles, "release's bfloat16 check", "our bfloat16 check", rows=lines)


def _written(table: Callable[[], Table]) -> Callable[[], str]:
    def text() -> str:
        titles, rows = table()
        return _table(*titles, rows=rows)

    return text


_OWN = (tasks, registries, recipes, models, runtimes)
BLOCKS: dict[str, Callable[[], str]] = {one.__name__: one for one in _OWN} | {
    one.__name__: _written(one)
    for one in (
        targets_table,
        places_table,
        layouts_table,
        acceptance_table,
    )
}


def pages() -> dict[Path, str]:
    """Return every page with something written by the program, by its path."""
    found = {}
    for path in sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "recipes" / "README.md"]):
        text = path.read_text(encoding="utf-8")
        if _BLOCK.search(text):
            found[path] = _BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]]()}\n{block[3]}", text)
    return found


def _registries() -> Iterator[tuple[str, str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "= Registry(" in text else ():
            if not (isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith("Registry[")):
                continue
            name = ast.unparse(node.target)
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            registry = getattr(module, name)
            home = _home(name, registry, module)
            if home:
                yield registry.label, f"`{home}.{name}`", f"`mobileclip.{registry.kind}`"


def _home(name: str, registry: Registry[object], module: ModuleType) -> str | None:
    """Return the outermost package or module that lists a registry as public."""
    packages = module.__name__.split(".")
    for depth in range(1, len(packages) + 1):
        home = ".".join(packages[:depth])
        package = importlib.import_module(home)
        if name in getattr(package, "__all__", vars(package)) and getattr(package, name) is registry:
            return home
    return None


def _first_line(value: object) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _table(*titles: str, rows: list[tuple[str, ...]]) -> str:
    cells = [titles, ["---"] * len(titles), *rows]
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(row)} |") for row in cells) + "\n"


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
