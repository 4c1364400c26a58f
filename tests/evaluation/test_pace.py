"""How long the rest of a suite takes: by images, of data sets whose number is known and that are encoded here."""

import io
import shutil
from itertools import count
from types import SimpleNamespace

import pytest
from rich.console import Console

from mobileclip.evaluation import EvaluationSpec, evaluate_models

# Beside the the last two, of 21,100 and 15,000 images, they have 10,000.
KEYS = ("vtab/cifar100", "cifar10", "mnist", "imagenetv2", "country211", "vtab/clevr_count_all")


@pytest.mark.parametrize(
    ("seconds", "others", "expected"),
    [
        (100, (), ["", "", "", "", ", about 6:01 left", ", about 2:30 left"]),
        (100, ("ours",), ["", "", "", "", ", at least 6:01 left", ", at least 2:30 left", ""]),
        (0.5, (), [""] * 6),
    ],
    ids=["known", "one of unknown size", "the first seconds"],
)
def test_time_left_goes_with_the_images_that_are_encoded_here(root, monkeypatch, seconds, others, expected):
    for key in KEYS:
        shutil.copytree(root / "wds_vtab-pets_test", root / f"wds_{key.replace('/', '-')}_test")
    shutil.copytree(root / "wds_vtab-pets_test", root / "ours")
    monkeypatch.setitem(evaluate_models.__globals__, "time", SimpleNamespace(monotonic=count(0, seconds).__next__))
    datasets = (*KEYS, *(str(root / one) for one in others))
    spec = EvaluationSpec(data=str(root), output=root / "out", datasets=datasets)
    for told in (expected, [""] * len(expected)):  # the second time, all of it is kept
        console = Console(file=(said := io.StringIO()), width=200)
        assert evaluate_models([str(root / "model0.safetensors")], spec, console=console).failures == ()
        titles = [line for line in said.getvalue().splitlines() if line.startswith("[")]
        assert [", ".join(["", *line.split(", ")[1:]]) for line in titles] == told
