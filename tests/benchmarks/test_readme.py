"""Figures of the README and of the page on latency are those of the kept rows, one row each."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def kept(file):
    return json.loads((ROOT / "docs" / file).read_text(encoding="utf-8"))["rows"]


def number(file, value, **case):
    """Return a value of the one row that has a case."""
    (row,) = [one for one in kept(file) if case.items() <= one["case"].items()]
    return row["values"][value]["number"]


def runtime(model, tower, form, file, batch="1"):
    source = "pixels" if tower == "image" else "ids"
    labels = {"model": model, "tower": tower, "form": form, "batch": batch, "threads": "2", "from": source}
    return number(file, "ratio", side="ours", **labels)


def quickstart(file, kind, name):
    found = json.loads((ROOT / "docs" / file).read_text(encoding="utf-8"))["differences"][kind]
    return found["all unseen pictures"][name]


# The words around the figures of a claim, and where each comes from.
CLAIMS = {
    "{:.2f} (MobileCLIP2-S0) and {:.2f} (S2) times open_clip's samples/s": lambda: (
        number("train.json", "ratio", model="s0"),
        number("train.json", "ratio", model="s2"),
    ),
    "The loss takes {:.2f} GiB at batch 8,192; with whole similarity matrices it takes {:.2f} GiB": lambda: (
        number("loss.json", "tiled memory", batch="8192"),
        number("loss.json", "dense memory", batch="8192"),
    ),
    "one image takes {:.2f} (S0) and {:.2f} (S2) of the time": lambda: (
        runtime("s0", "image", "openvino", "runtimes_images.json"),
        runtime("s2", "image", "openvino", "runtimes_s2_b.json"),
    ),
    "a top-5 of {:.1f} % on all {} unseen pictures": lambda: (
        quickstart("quickstart.json", "reinforced - captions", "later"),
        quickstart("quickstart.json", "reinforced - captions", "num_pictures"),
    ),
    "with synthetic captions they reach {:.1f} %, plain {:.1f} %": lambda: (
        quickstart("quickstart.json", "captions - plain", "later"),
        quickstart("quickstart.json", "captions - plain", "earlier"),
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_of_the_readme_has_the_figures_of_its_rows(claim):
    assert claim.format(*CLAIMS[claim]()) in " ".join(README.split())


@pytest.mark.parametrize("file", ["runtimes_images.json", "runtimes_texts.json", "runtimes_s2_b.json"])
def test_kept_rows_of_a_tower_are_of_one_digest_and_no_case_is_there_twice(file):
    rows, digests = kept(file), {}
    cases = [json.dumps(row["case"], sort_keys=True) for row in rows]
    assert len(set(cases)) == len(cases)
    for row in (one for one in rows if "time" in one["values"]):
        tower = row["case"]["model"], row["case"]["tower"]
        digests.setdefault(tower, set()).add((row["notes"].get("weights"), row["notes"].get("data")))
    assert all(len(found) == 1 for found in digests.values())


def test_the_table_of_latency_has_the_ratios_of_its_rows():
    page = (ROOT / "docs" / "latency.md").read_text(encoding="utf-8")
    files = {"S0 image": "runtimes_images.json", "S0 text": "runtimes_texts.json"}
    lines = re.findall(r"^\| (S0|S2|B), (one|32) (image|text)s? \|(.*)\|$", page, re.MULTILINE)
    assert len(lines) == 10
    for model, count, tower, cells in lines:
        file = files.get(f"{model} {tower}", "runtimes_s2_b.json")
        told = re.findall(r"\*\*(\d\.\d\d) \(", cells)
        batch = "1" if count == "one" else count
        forms = ("openvino", "openvino_bf16")
        assert told == [f"{runtime(model.lower(), tower, form, file, batch):.2f}" for form in forms]
