"""What pages say of export targets, places, layouts and checks, from the registries: titles and rows of tables."""

from __future__ import annotations

from collections.abc import Iterable

from mobileclip.export import layouts, places, targets
from mobileclip.export.verify import LEAST_SPREAD, MOST_LENGTH_ERROR
from mobileclip.hardware import PRECISIONS
from mobileclip.inference.comparison import LEAST_AGREEMENT, LEAST_COSINE

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _code(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def targets_table() -> Table:
    """Return what each target writes."""
    return ("`--target`", "file", "precisions", "token ids", "threads", "opens a stranger's file"), [
        (
            f"`{name}`",
            f"`{one.suffix}`",
            _code(one.precisions),
            one.text_dtype,
            "any number at once" if one.concurrent else "one at a time",
            "yes" if one.vouched else "with `--trust`",
        )
        for name, one in sorted(targets.items())
    ]


def places_table() -> Table:
    """Return what each place expects."""
    return ("`--for`", "target", "layout", "precisions", "image input", "batches"), [
        (
            f"`{name}`",
            f"`{one.target}`",
            f"`{one.layout}`",
            _code(one.precisions),
            f"`{one.preprocess}`",
            "any size" if one.dynamic_batch else "one input",
        )
        for name, one in places.items()
    ]


def layouts_table() -> Table:
    """Return what files, inputs and outputs are called; endings of files are the targets'."""
    return ("`--layout`", "tower", "file", "input", "output", "precisions"), [
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
    ]


def acceptance_table() -> Table:
    """Return what an export must show, by precision."""
    return ("check", *(f"`{one}`" for one in PRECISIONS)), [
        ("least cosine with float32", *(f"> {LEAST_COSINE[one]:g}" for one in PRECISIONS)),
        ("largest relative error of an embedding's length", *(f"{MOST_LENGTH_ERROR[one]:g}" for one in PRECISIONS)),
        ("embeddings that are not finite, or zero", *("none" for _ in PRECISIONS)),
        ("spread, as a share of the model's", *(f"{LEAST_SPREAD:g}" for _ in PRECISIONS)),
        ("queries with the same first result", *(f"{LEAST_AGREEMENT:.0%}, but for chance" for _ in PRECISIONS)),
    ]
