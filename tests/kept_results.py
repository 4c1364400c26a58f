"""What pages have from kept results of benchmarks, `docs/NAME.json`: titles and rows of tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import cast

from benchmarks.harness import Machine, Results, Row, Value, text
from benchmarks.rivals import PUBLISHED, Size
from benchmarks.runtime_sides import REDUCED
from mobileclip.data import LAYOUTS
from mobileclip.serialization import from_json
from tests.targets import Table

DOCS = Path(__file__).parents[1] / "docs"
OF_BEST = "of the release's best"
# Of the fair table, no case in two.
FAIR = ("runtimes_images", "runtimes_texts", "runtimes_s2_b", "runtimes_one_thread")
FORMS = {"onnxruntime": "float32", "openvino": "float32", "openvino_bf16": "bfloat16"}
FORMS |= {"openvino_tuned": "tuned int8", "openvino_int8": "int8"}

_PAIRS = {"12M": "12.8M", "1B": "1.28B"}
_INPUTS = {"image": "image", "random text": "text", "short text": "text of ten tokens"}


@cache
def kept(name: str) -> Results:
    """Return what a benchmark measured when its page was written."""
    return from_json((DOCS / f"{name}.json").read_text("utf-8"), Results)


def found(name: str, **case: str) -> Iterable[Row]:
    """Yield the kept rows of a case, failures left out."""
    return (row for row in kept(name).rows if row.failure is None and case.items() <= row.case.items())


def runtimes_table() -> Table:
    """Return both sides in their best forms with two threads, tower by tower."""
    titles = ("", "the release's best form that passes, ms", "**ours / that, in our best that passes**")
    titles += ("both in bfloat16", "tuned int8 / the release's bfloat16")
    titles += ("from JPEG, ours / the release", 'the same with `decode="fast"`')
    rows = []
    for name, whole in _fair_cases(threads="2"):
        source = _source(whole)
        best = whole[source, "ours", "best"]
        ours, theirs = best.notes["chosen"].split(" against ")
        tuned = whole[source, "ours", "openvino_tuned"]
        cells = [f"{FORMS[theirs]}, {text(whole[source, 'release', theirs].values['time'].number)}"]
        cells += [f"**{spread(best.values[OF_BEST])}**, {FORMS[ours]}"]
        cells += [f"{whole[source, 'ours', 'openvino_bf16'].values['ratio'].number:.2f}"]
        of_bf16 = tuned.values["time"].number / whole[source, "release", "openvino_bf16"].values["time"].number
        cells += [f"{of_bf16:.2f}" + ("" if tuned.notes["gates"] == "passed" else ", refused")]
        for side in ("ours", REDUCED):
            read = whole.get(("bytes", side, "best"))
            cells.append("" if read is None else spread(read.values[OF_BEST]))
        rows.append((name, *cells))
    return titles, rows


def _fair_cases(threads: str) -> Iterator[tuple[str, dict[tuple[str, ...], Row]]]:
    """Yield what a case is called, and its rows by what it computes from, side and form."""
    for model, tower, batch in product(("s0", "s2", "b"), ("image", "text"), ("1", "32")):
        case = {"model": model, "tower": tower, "batch": batch, "threads": threads}
        rows = [row for name in FAIR for row in found(name, **case)]
        if rows:
            name = f"{model.upper()}, {'one ' + tower if batch == '1' else f'{batch} {tower}s'}"
            yield name, {(row.case["from"], row.case["side"], row.case["form"]): row for row in rows}


def _source(whole: Mapping[tuple[str, ...], Row]) -> str:
    return next(source for source, *_ in whole if source != "bytes")


def measured_table() -> Table:
    """Return what the loss, a training step and a data worker take."""
    rows = []

    def add(what: str, name: str, result: str) -> None:
        rows.append((what, result, _where(kept(name).machine), f"`python -m benchmarks {name}`"))

    (loss,), (large,) = (list(found("loss", batch=batch)) for batch in ("8192", "32768"))
    dense = f"with every matrix held {_number(loss.values['dense memory'])}"
    add(
        "**the loss**, memory at batch 8,192, over the embeddings",
        "loss",
        f"{_number(loss.values['tiled memory'])}; {dense}",
    )
    add("the loss, memory at batch 32,768", "loss", _number(large.values["tiled memory"]))
    of_dense = spread(loss.values["tiled / dense"])
    add("the loss, time at batch 8,192", "loss", f"{of_dense} of the time with every matrix held")
    for row in found("train"):
        faster = f"{spread(row.values['ratio'])} times open_clip's samples/s, same weights"
        add(f"**a training step**, {_name(row.case['model'])}, float32", "train", faster)
    for decode, what in (("exact", "exact decoding, equal pixels"), ("fast", 'a megapixel, `decode="fast"`')):
        ratios = [row.values["ratio"].number for row in found("data", decode=decode)]
        reading = f"{min(ratios):.2f} to {max(ratios):.2f} times the samples of the release's way, by layout"
        add(f"**one data worker**, {what}", "data", reading)
    return ("what", "result", "processor", "command"), rows


def latency_table() -> Table:
    """Return one image or text of each model, divided by the eager release's time."""
    ways = {
        "eager": "eager",
        "ONNX Runtime": "onnxruntime",
        "OpenVINO": "openvino",
        "OpenVINO bfloat16": "openvino_bf16",
    }
    cases: dict[tuple[str, str], dict[str, Mapping[str, Value]]] = {}
    for row in found("latency", batch="1"):
        cases.setdefault((row.case["model"], row.case["inputs"]), {})[row.case["way"]] = row.values
    rows = []
    for (model, inputs), values in cases.items():
        cells = [text(values["release"]["time"].number)]
        cells += [f"{values[way]['ratio'].number:.2f}" for way in ways.values()]
        cells += [f"{values[way]['ratio in its runtime'].number:.2f}" for way in list(ways.values())[-3:]]
        rows.append((f"{_name(model)}, {_INPUTS[inputs]}", *cells))
    same = (f"same runtime: {title}" for title in list(ways)[-3:])
    return ("", "the release, ms", *ways, *same), rows


def costs_table() -> Table:
    """Return the terabytes that reinforcement adds, as `benchmarks cost_reinforce` has them; the paper's beside."""
    paper = {("12M", "30"): "1.0", ("1B", "10"): "50"}
    rows = []
    for names in (("12M", "30"), ("12M", "10"), ("1B", "10"), ("1B", "2")):
        (row,) = found("costs", **{"data set": names[0], "augmentations": names[1], "captions": "5"})
        sizes = (text(row.values[layout].number) for layout in LAYOUTS)
        rows.append((f"{_PAIRS[names[0]]} pairs", names[1], "5", *sizes, paper.get(names, "")))
    return ("", "augmentations", "captions", *(f"`{one}`" for one in LAYOUTS), "the paper's growth"), rows


def spread(value: Value) -> str:
    """Return a ratio with its quartiles."""
    return f"{value.number:.2f} ({value.low:.2f} to {value.high:.2f})"


def _name(model: str) -> str:
    return PUBLISHED[cast("Size", model)].open_clip


def _number(value: Value) -> str:
    return f"{value.number:.2f} {value.unit}"


def _where(machine: Machine) -> str:
    return f"{machine.processor}, {machine.threads} thread{'s' if machine.threads > 1 else ''}"
