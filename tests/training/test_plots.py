import sys

import numpy as np
import pytest
from PIL import Image

from mobileclip.extras import install
from mobileclip.training import MetricLog, plot_curves
from tests.errors import fails


@pytest.fixture
def runs(tmp_path):
    paths = {}
    for name, factor in (("plain", 1.0), ("reinforced", 0.5)):
        paths[name] = tmp_path / f"{name}.jsonl"
        log = MetricLog(paths[name])
        for step in range(10):
            log.write(step, {"contrastive": factor * 5 / (step + 1), "logit_scale": 14 + step})
    return paths


def test_the_picture_shows_every_run(tmp_path, runs):
    pictures = []
    for shown in (runs, {"plain": runs["plain"]}):
        path = tmp_path / "plots" / f"{len(shown)}.png"
        plot_curves(shown, path, metrics=("contrastive", "logit_scale"))
        pictures.append(np.asarray(Image.open(path).convert("RGB")))
    first, second = pictures
    # The legend stands below the axes, with a line for each run.
    assert first.shape[1] == second.shape[1] >= 2 * 500
    assert first.shape[0] > second.shape[0]
    assert first.std() > 5
    orange = [((one[..., 0] > 200) & (one[..., 2] < 80)).sum() for one in pictures]
    assert orange[0] > 100
    assert orange[1] == 0
    assert 200 < first[0, 0].min() < 250  # neither glares on a dark page nor hides its letters on a light one


def texts_of(monkeypatch):
    """Note what would be saved, which takes longest."""
    from matplotlib.figure import Figure

    found = {}

    def noting(figure, *_, **__):
        drawn = [axes for axes in figure.axes if axes.axison]
        found["y_labels"] = [axes.get_ylabel() for axes in drawn]
        found["titles"] = [axes.get_title() for axes in drawn]
        found["columns"] = drawn[0].get_gridspec().ncols
        found["ticks"] = [tick for axes in drawn for tick in axes.get_xticks()]

    monkeypatch.setattr(Figure, "savefig", noting)
    return found


VALUES = {"loss": 1.0, "contrastive": 0.0, "distillation": 1.0, "logit_scale": 14, "learning_rate": 1e-3}


def test_what_is_drawn_is_what_is_computed_and_what_was_evaluated(tmp_path, monkeypatch):
    found, recall = texts_of(monkeypatch), "validation_image_to_text_recall_at_1"
    log = MetricLog(tmp_path / "metrics.jsonl")
    for step in range(8):
        log.write(step, VALUES)
        if step % 2:
            log.write(step, {recall: 0.5 - abs(step - 3) / 10, "a/num_skipped": 3})
    plot_curves({"run": log.path}, tmp_path / "curves.png")
    assert found["y_labels"] == ["distillation", recall.replace("_", " "), "logit scale", "learning rate"]
    assert found["titles"] == ["run has 1 at step 7", "run has 0.5 at step 3", "", ""]
    assert found["columns"] == 2
    assert all(float(one).is_integer() for one in found["ticks"])


def test_more_panels_than_fit_beside_each_other_leave_no_empty_one(tmp_path, monkeypatch):
    found = texts_of(monkeypatch)
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.write(0, {**VALUES, "contrastive": 0.5, "distillation": 0.5})
    log.write(0, {f"set{index}/acc1": 0.1 for index in range(9)})
    plot_curves({"run": log.path}, tmp_path / "curves.png")
    sets = [f"set{index}/acc1" for index in range(4)]
    assert found["y_labels"] == ["contrastive", "distillation", *sets, "logit scale", "learning rate"]


def test_mistakes_are_named(tmp_path, runs):
    with fails(ValueError, "accuracy", "contrastive, logit_scale, step"):
        plot_curves(runs, tmp_path / "no.png", metrics=("accuracy",))
    with fails(ValueError):
        plot_curves({}, tmp_path / "no.png")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, runs, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] or ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with fails(ModuleNotFoundError, install("report")):
        plot_curves(runs, tmp_path / "no.png")
