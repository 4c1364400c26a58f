"""What pages have from the program: `python -m tests.pages` writes it anew.

A page has it between two comments, the first of which names a function of `BLOCKS`.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness
from mobileclip.evaluation import SUITE, SUITES, evaluation_tasks
from mobileclip.export import layouts, presets, targets
from mobileclip.export.verify import LEAST_SPREAD, MOST_LENGTH_ERROR
from mobileclip.hardware import PRECISIONS
from mobileclip.inference.comparison import LEAST_AGREEMENT, LEAST_COSINE
from mobileclip.recipes import header_of, recipe_files

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
            ratio = found["ours", form]["values"]["ratio"]
            cells.append(harness.text(found["release", form]["values"]["time"]["number"]))
            cells.append(f"**{ratio['number']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})**")
        for side in ("release", "ours"):
            notes = found[side, "openvino_bf16"]["notes"]
            verdict = "passed" if notes["checks"] == "passed" else "failed"
            cells.append(f"{verdict}: {notes['least cosine']}, {notes['first results']}")
        lines.append(tuple(cells))
    titles = ("", "release float32, ms", "**ratio**", "release bfloat16, ms", "**ratio**")
    return _table(*titles, "release's bfloat16 check", "our bfloat16 check", rows=lines)


def _code(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def targets_table() -> str:
    """Return what each export target writes."""
    titles, rows = ("`--target`", "file", "precisions", "token ids", "threads", "opens a stranger's file"), []
    for name, one in sorted(targets.items()):
        threads = "any number at once" if one.concurrent else "one at a time"
        stranger = "yes" if one.validates_files else "with `--trust`"
        rows.append((f"`{name}`", f"`{one.suffix}`", _code(one.precisions), one.text_dtype, threads, stranger))
    return _table(*titles, rows=rows)


def presets_table() -> str:
    """Return what each preset sets."""
    titles, rows = ("`--for`", "target", "layout", "precisions", "image input", "batches"), []
    for name, one in presets.items():
        batches = "any size" if one.dynamic_batch else "one input"
        target, layout, preprocess = (f"`{value}`" for value in (one.target, one.layout, one.preprocess))
        rows.append((f"`{name}`", target, layout, _code(one.precisions), preprocess, batches))
    return _table(*titles, rows=rows)


def layouts_table() -> str:
    """Return what files, inputs and outputs are called; endings of files are the targets'."""
    rows = []
    for name, one in layouts.items():
        precisions = "all" if {*one.endings} == {*PRECISIONS} else _code(one.endings)
        for tower, names in one.names.items():
            rows.append((f"`{name}`", tower, f"`{names.stem}`", f"`{names.input}`", f"`{names.output}`", precisions))
    return _table("`--layout`", "tower", "file", "input", "output", "precisions", rows=rows)


def acceptance_table() -> str:
    """Return what an export must show, by precision."""
    rows = [
        ("least cosine with float32", *(f"> {LEAST_COSINE[one]:g}" for one in PRECISIONS)),
        ("largest relative error of an embedding's length", *(f"{MOST_LENGTH_ERROR[one]:g}" for one in PRECISIONS)),
        ("embeddings that are not finite, or zero", *("none" for _ in PRECISIONS)),
        ("spread, as a share of the model's", *(f"{LEAST_SPREAD:g}" for _ in PRECISIONS)),
        ("queries with the same first result", *(f"{LEAST_AGREEMENT:.0%}, but for chance" for _ in PRECISIONS)),
    ]
    return _table("check", *(f"`{one}`" for one in PRECISIONS), rows=rows)


_ALL = (tasks, registries, recipes, models, runtimes, targets_table, presets_table, layouts_table, acceptance_table)
BLOCKS: dict[str, Callable[[], str]] = {one.__name__: one for one in _ALL}


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
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith("Registry["):
                name, parts = ast.unparse(node.target), path.relative_to(ROOT).with_suffix("").parts
                registry = getattr(importlib.import_module(".".join(parts)), name)
                # The outermost package or module that lists it as public.
                homes = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
                if (home := next((one for one in homes if _lists(one, name, registry)), None)) is not None:
                    yield registry.label, f"`{home}.{name}`", f"`mobileclip.{registry.kind}`"


def _lists(home: str, name: str, registry: object) -> bool:
    package = importlib.import_module(home)
    return name in getattr(package, "__all__", vars(package)) and getattr(package, name) is registry


def _table(*titles: str, rows: list[tuple[str, ...]]) -> str:
    cells = [titles, ["---"] * len(titles), *rows]
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(row)} |") for row in cells) + "\n"


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
