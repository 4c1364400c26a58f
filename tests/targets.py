"""Tables of pages on exports, from the registries: `python -m tests.targets` renews them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mobileclip.export import layouts, places, targets
from mobileclip.export.verification.parity import LEAST_SPREAD, MOST_LENGTH_ERROR
from mobileclip.hardware.precision import PRECISIONS
from mobileclip.inference.comparison import LEAST_AGREEMENT, LEAST_COSINE

DOCS = Path(__file__).parents[1] / "docs"


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = [*titles]
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _code(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def targets_table() -> str:
    """Return what each target writes."""
    return _table(
        ("`--target`", "file", "precisions", "token ids", "threads", "opens a stranger's file"),
        (
            (
                f"`{name}`",
                f"`{one.suffix}`",
                _code(one.precisions),
                one.text_dtype,
                "any number at once" if one.concurrent else "one at a time",
                "yes" if one.vouched else "with `--trust`",
            )
            for name, one in sorted(targets.items())
        ),
    )


def places_table() -> str:
    """Return what each place expects."""
    return _table(
        ("`--for`", "target", "layout", "precisions", "image input", "batches"),
        (
            (
                f"`{name}`",
                f"`{one.target}`",
                f"`{one.layout}`",
                _code(one.precisions),
                f"`{one.preprocess}`",
                "any size" if one.dynamic_batch else "one input",
            )
            for name, one in places.items()
        ),
    )


def layouts_table() -> str:
    """Return what files, inputs and outputs are called; endings of files are the targets'."""
    return _table(
        ("`--set layout`", "tower", "file", "input", "output", "precisions"),
        (
            (
                f"`{name}`",
                tower,
                f"`{names.stem}`",
                f"`{names.input}`",
                f"`{names.output}`",
                "all" if {*one.endings} == {*PRECISIONS} else _code(one.endings),
            )
            for name, one in layouts.items()
            for tower, names in one.names.items()
        ),
    )


def checks_table() -> str:
    """Return what an export must show, by precision."""
    return _table(
        ("check", *(f"`{one}`" for one in PRECISIONS)),
        (
            ("least cosine with float32", *(f"> {LEAST_COSINE[one]:g}" for one in PRECISIONS)),
            ("largest relative error of an embedding's length", *(f"{MOST_LENGTH_ERROR[one]:g}" for one in PRECISIONS)),
            ("embeddings that are not finite, or zero", *("none" for _ in PRECISIONS)),
            ("spread, as a share of the model's", *(f"{LEAST_SPREAD:g}" for _ in PRECISIONS)),
            ("queries with the same first result", *(f"{LEAST_AGREEMENT:.0%}, but for chance" for _ in PRECISIONS)),
        ),
    )


TABLES = {
    "targets.md": {"targets": targets_table, "places": places_table, "layouts": layouts_table},
    "precision.md": {"checks": checks_table},
}


def renewed(page: str) -> str:
    """Return the text of a page with its tables as the registries have them."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, table in TABLES[page].items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, table=table: f"{found[1]}{table()}{found[2]}", text)
        if count != 1:
            raise ValueError(f"docs/{page} has {count} places for the table {name!r}, expected 1")
    return text


if __name__ == "__main__":
    for page in TABLES:
        (DOCS / page).write_text(renewed(page), encoding="utf-8")
