"""Our evaluation against CLIP_benchmark's own code: same files, same weights, same numbers."""

import json
import sys

import pytest
import torch
from torch.nn import functional as F

from mobileclip import load
from mobileclip.encoders import save_model
from mobileclip.evaluation import Session, clip_benchmark, open_benchmark, score
from mobileclip.extras import install
from tests.encoders.small import SMALL
from tests.errors import fails
from tests.evaluation import scene_models
from tests.evaluation.fitted_model import fitted_model

KS = (1, 5, 10)
pytestmark = pytest.mark.usefixtures("one_thread")


def undecided(features, benchmark):
    """Return, by metric, what the queries weigh that rounding decides: a right and a wrong answer are as good as equal.

    Computed in double precision, query by query, from our embeddings.
    """
    image = F.normalize(features.image.double(), dim=-1)
    text = F.normalize(features.text.double(), dim=-1)
    if benchmark.kind == "classification":
        classes = text.reshape(len(benchmark.class_names), len(benchmark.templates), -1).mean(1)
        scores = image @ F.normalize(classes, dim=-1).T
        right = F.one_hot(features.labels, len(classes)).bool()
        counts = features.labels.bincount()
        weights = 1 / (counts[features.labels] * (counts > 0).sum())
        shares = {f"acc{k}": _close(scores, right, k).mean() for k in (1, 5)}
        return {**shares, "mean_per_class_recall": (_close(scores, right, 1) * weights).sum()}
    owner = torch.arange(len(image)).repeat_interleave(features.num_captions)
    right, scores = owner[:, None] == torch.arange(len(image)), text @ image.T
    images = {f"image_retrieval_recall@{k}": _close(scores, right, k).mean() for k in KS}
    return images | {f"text_retrieval_recall@{k}": _close(scores.T, right.T, k).mean() for k in KS}


def _close(scores, right, k):
    best = scores.masked_fill(~right, -torch.inf).amax(1)
    kth_wrong = scores.masked_fill(right, -torch.inf).topk(k, dim=1).values[:, -1]
    return ((best - kth_wrong).abs() < 2e-6).double()


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_metrics_are_those_of_clip_benchmark(causal, tmp_path, monkeypatch):
    """Ours, folded; ours inside CLIP_benchmark; and, inside open_clip inside it, converted and not folded."""
    samples, labels = scene_models.scene_images(scene_models.COUNT)
    spec, texts = scene_models.small_spec(causal=causal), scene_models.scene_texts(samples, labels)
    model, checkpoint = fitted_model(spec, [one.image for one in samples], texts), tmp_path / "scenes.safetensors"
    save_model(model, checkpoint)
    converted = ("--model", scene_models.write_for_open_clip(model, tmp_path / "open_clip"), "--pretrained", "none")
    adapted = ("--model_type", "mobileclip", "--model", "auto", "--pretrained", str(checkpoint))
    for folder in scene_models.write_scene_benchmarks(tmp_path):
        benchmark, output = open_benchmark(folder), tmp_path / "metrics.json"
        features, _ = Session(load(checkpoint, fold=False), show_progress=False).features(benchmark)
        ours, allowed = score(benchmark, features).metrics, undecided(features, benchmark)
        assert max(allowed.values()) < 0.01, "or the comparison would say nothing"
        assert 0.03 < ours[next(iter(allowed))] < 0.9, "far from chance, and with something left to rank wrongly"
        arguments = ["eval", "--dataset", "wds/it", "--dataset_root", str(folder), "--output", str(output), "--no_amp"]
        arguments += ["--task", f"zeroshot_{benchmark.kind}", "--num_workers", "0", "--quiet"]
        arguments += ["--recall_k", *map(str, KS)]
        for options in (adapted, converted):
            monkeypatch.setattr(sys, "argv", ["clip_benchmark", *arguments, *options])
            clip_benchmark.main()
            theirs = json.loads(output.read_text())["metrics"]
            for name, share in allowed.items():
                assert ours[name] == pytest.approx(theirs[name], abs=1e-6 + float(share)), name
            output.unlink()


def test_loads_what_it_is_asked_for(small_file):
    loaded, transform, tokenizer = clip_benchmark.load_mobileclip("auto", str(small_file), device="cpu")
    assert (loaded.spec, loaded.training) == (SMALL, False)
    assert (transform.image_input, tokenizer.text_input) == (SMALL.image.input, SMALL.text.input)
    with fails(ValueError, "/tmp/here"):
        clip_benchmark.load_mobileclip("auto", str(small_file), cache_dir="/tmp/here")
    with fails(FileNotFoundError):
        clip_benchmark.load_mobileclip("mobileclip_s0", "laion400m_e32")


def test_registering_twice_is_registering_once_and_accuracies_work_with_any_numpy():
    from clip_benchmark import models
    from clip_benchmark.metrics.zeroshot_classification import accuracy

    clip_benchmark.register()
    clip_benchmark.register()
    assert models.MODEL_TYPES.count("mobileclip") == 1
    assert models.TYPE2FUNC["mobileclip"] is clip_benchmark.load_mobileclip
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1], [1, 3, 2]])
    assert accuracy(logits, torch.tensor([0, 0, 0, 1]), topk=(1, 2)) == [0.5, 0.75]


def test_without_clip_benchmark_the_command_that_installs_it_is_named(monkeypatch):
    for name in [one for one in sys.modules if one.partition(".")[0] == "clip_benchmark"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with fails(ImportError, install("clip-benchmark")):
        clip_benchmark.register()
