"""The fair table of the page is what the kept rows of the benchmark say, its own choice of the best among them."""

from pathlib import Path

import pytest

from benchmarks.harness import Results
from benchmarks.runtimes import REDUCED
from mobileclip.serialization import from_json

DOCS = Path(__file__).parents[2] / "docs"
NAMES = {"openvino_bf16": "bfloat16", "openvino_tuned": "tuned int8", "openvino_int8": "int8"}
WHOLE = "of the release's best"


def table():
    """Return the cells of the page's first table, by row and column."""
    lines = (DOCS / "latency.md").read_text("utf-8").split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("| | S0, one image |"))
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : lines.index("", start)]
    ]
    return {row[0].strip("* "): dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.fixture(scope="module")
def kept():
    """Rows of two threads, by what was measured: each was measured in one of the files."""
    files = (DOCS / "runtimes.json", DOCS / "runtimes_taught.json")
    rows = [row for file in files for row in from_json(file.read_text("utf-8"), Results).rows]
    two = [row for row in rows if row.case["threads"] == "2"]
    found = {tuple(row.case[key] for key in ("model", "tower", "batch", "from", "side", "form")): row for row in two}
    assert len(found) == len(two) > 70
    return found


def spread(row):
    value = row.values[WHOLE]
    return f"{value.number:.2f} ({value.low:.2f} to {value.high:.2f})"


def test_every_cell_is_what_was_kept(kept):
    cells = table()
    for column, written in cells["the release's best form that passes, ms"].items():
        size, inputs = column.lower().split(", ")
        count, kind = inputs.split(" ")
        case = (size, kind.removesuffix("s"), "1" if count == "one" else count)
        raw = "pixels" if case[1] == "image" else "ids"
        best = kept[(*case, raw, "ours", "best")]
        ours, theirs = best.notes["chosen"].split(" against ")
        release = kept[(*case, raw, "release", theirs)]
        assert written == f"{NAMES[theirs]}, {release.values['time'].number:.3g}"
        assert cells["ours / that, in our best that passes"][column] == f"**{spread(best)}**, {NAMES[ours]}"
        tuned = kept[(*case, raw, "ours", "openvino_tuned")]
        refused = "" if tuned.notes["gates"] == "passed" else ", refused"
        assert cells["int8 tuned by the model, / that"][column] == spread(tuned) + refused
        for title, side in (
            ("from JPEG, ours in our best / the release in its", "ours"),
            ('the same with `decode="fast"`', REDUCED),
        ):
            row = kept.get((*case, "bytes", side, "best"))
            assert cells[title][column] == ("" if row is None else spread(row))


def test_the_claims_of_the_readme_are_those_of_the_table(kept):
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    one, many, other = (
        spread(kept[model, "image", batch, "pixels", "ours", "best"])
        for model, batch in (("s0", "1"), ("s0", "32"), ("s2", "1"))
    )
    first, _, ends = one.partition(" (")
    assert (
        f"**Images take {first}** ({ends[:-1]}, S0; 32: **{many[:4]}**) **and {other[:4]}** (S2) of the time" in readme
    )
