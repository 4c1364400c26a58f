"""Figures of the README and of the page on latency are those of the kept rows, one row each."""

import json
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


def runtime(model):
    labels = {"model": model, "tower": "image", "form": "openvino", "batch": "1", "from": "pixels", "side": "ours"}
    return number("runtimes.json", "ratio", **labels)


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
        runtime("s0"),
        runtime("s2"),
    ),
    "all {} unseen images is {:.1f} % with plain CLIP training, {:.1f} % with synthetic captions": lambda: (
        quickstart("quickstart.json", "captions - plain", "num_pictures"),
        quickstart("quickstart.json", "captions - plain", "earlier"),
        quickstart("quickstart.json", "captions - plain", "later"),
    ),
    "and {:.1f} % with captions and teachers": lambda: (
        quickstart("quickstart.json", "reinforced - captions", "later"),
    ),
    "a gain of {:.1f} ± {:.1f} points (five seeds)": lambda: (
        quickstart("quickstart.json", "reinforced - captions", "later")
        - quickstart("quickstart.json", "reinforced - captions", "earlier"),
        quickstart("quickstart.json", "reinforced - captions", "error"),
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_of_the_readme_has_the_figures_of_its_rows(claim):
    assert claim.format(*CLAIMS[claim]()) in " ".join(README.split())


def test_kept_rows_of_a_tower_have_one_digest_of_weights_and_of_data_and_no_case_twice():
    rows, digests = kept("runtimes.json"), {}
    cases = [json.dumps(row["case"], sort_keys=True) for row in rows]
    assert len(set(cases)) == len(cases)
    for row in (one for one in rows if "time" in one["values"]):
        tower = row["case"]["model"], row["case"]["tower"]
        digests.setdefault(tower, set()).add((row["notes"]["weights"], row["notes"]["data"]))
    assert digests
    assert all(len(found) == 1 for found in digests.values())
