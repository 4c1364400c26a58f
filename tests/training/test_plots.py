from __future__ import annotations

import builtins

import numpy as np
import pytest
from PIL import Image

from mobileclip.training import MetricLog, plot_curves


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
    both, one = tmp_path / "both.png", tmp_path / "plots" / "one.png"
    plot_curves(runs, both, metrics=("contrastive", "logit_scale"))
    plot_curves({"plain": runs["plain"]}, one, metrics=("contrastive", "logit_scale"))
    first, second = (np.asarray(Image.open(path).convert("RGB")) for path in (both, one))
    assert first.shape == second.shape
    assert first.std() > 5
    orange = (first[..., 0] > 200) & (first[..., 2] < 80)
    assert orange.sum() > 100
    assert not ((second[..., 0] > 200) & (second[..., 2] < 80)).any()


def test_mistakes_are_named(tmp_path, runs):
    with pytest.raises(ValueError, match="no run has logged 'accuracy'; logged are: contrastive, logit_scale, step"):
        plot_curves(runs, tmp_path / "no.png", metrics=("accuracy",))
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_curves({}, tmp_path / "no.png")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, runs, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mobileclip\[quickstart\]'"):
        plot_curves(runs, tmp_path / "no.png")
