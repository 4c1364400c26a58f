"""Our evaluation against CLIP_benchmark's own code: same files, same weights, same numbers."""

import builtins
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
from tests.evaluation.fitted_model import fitted_model
from tests.evaluation.scene_models import (
    COUNT,
    scene_images,
    scene_texts,
    small_spec,
    write_for_open_clip,
    write_scene_benchmarks,
)
from tests.lazily import lazily

open_clip = lazily("open_clip")

KS = (1, 5, 10)
CLASSIFICATION = ("acc1", "acc5", "mean_per_class_recall")
RETRIEVAL = tuple(f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in KS)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_scene_benchmarks(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(
    scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["bidirectional", "causal"]
)
def model(request):
    samples, labels = scene_images(COUNT)
    images = [sample.image for sample in samples]
    return fitted_model(small_spec(causal=request.param), images, scene_texts(samples, labels))


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "scenes.safetensors"
    save_model(model, path)
    return path


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
        return {
            "acc1": _close(scores, right, 1).mean(),
            "acc5": _close(scores, right, 5).mean(),
            "mean_per_class_recall": (_close(scores, right, 1) * weights).sum(),
        }
    owner = torch.arange(len(image)).repeat_interleave(features.num_captions)
    right = owner[:, None] == torch.arange(len(image))
    scores = text @ image.T
    return {f"image_retrieval_recall@{k}": _close(scores, right, k).mean() for k in KS} | {
        f"text_retrieval_recall@{k}": _close(scores.T, right.T, k).mean() for k in KS
    }


def _close(scores, right, k):
    best = scores.masked_fill(~right, -torch.inf).amax(1)
    kth_wrong = scores.masked_fill(right, -torch.inf).topk(k, dim=1).values[:, -1]
    return ((best - kth_wrong).abs() < 2e-6).double()


def require_equal(ours, theirs, allowed):
    for name, share in allowed.items():
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6 + float(share)), name


@pytest.fixture
def clip_benchmark_metrics(tmp_path, monkeypatch):
    """Run CLIP_benchmark's own command line on a folder and return the metrics that it writes."""

    def run(folder, *options):
        task = open_benchmark(folder).kind
        output = tmp_path / "metrics.json"
        arguments = ["eval", "--dataset", "wds/it", "--dataset_root", str(folder), "--task", f"zeroshot_{task}"]
        arguments += ["--output", str(output), "--no_amp", "--num_workers", "0", "--quiet", "--recall_k", *map(str, KS)]
        monkeypatch.setattr(sys, "argv", ["clip_benchmark", *arguments, *options])
        clip_benchmark.main()
        return json.loads(output.read_text())["metrics"]

    return run


def require_parity(folder, checkpoint, name, clip_benchmark_metrics, *, least, most_undecided=0.01):
    """Compare ours, folded; ours inside CLIP_benchmark; and, inside open_clip inside it, converted and not folded."""
    benchmark = open_benchmark(folder)
    clip = load(checkpoint, fold=False)
    features, _ = Session(clip, show_progress=False).features(benchmark)
    ours = score(benchmark, features).metrics
    allowed = undecided(features, benchmark)
    assert tuple(allowed) == (CLASSIFICATION if benchmark.kind == "classification" else RETRIEVAL)
    assert max(allowed.values()) < most_undecided  # or the comparison would say nothing
    # Far from chance, and with something left to rank wrongly.
    assert least < ours[next(iter(allowed))] < 0.9

    adapted = clip_benchmark_metrics(
        folder, "--model_type", "mobileclip", "--model", "auto", "--pretrained", str(checkpoint)
    )
    require_equal(ours, adapted, allowed)
    converted = clip_benchmark_metrics(folder, "--model", name, "--pretrained", "none")
    require_equal(ours, converted, allowed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_metrics_are_those_of_clip_benchmark(kind, folders, model, checkpoint, tmp_path, clip_benchmark_metrics):  # noqa: PLR0917
    name = write_for_open_clip(model, tmp_path / "open_clip")
    require_parity(folders[kind == "retrieval"], checkpoint, name, clip_benchmark_metrics, least=0.03)


def test_loads_what_it_is_asked_for(small_file):
    loaded, transform, tokenizer = clip_benchmark.load_mobileclip("auto", str(small_file), device="cpu")
    assert loaded.spec == SMALL
    assert (transform.image_input, tokenizer.text_input) == (SMALL.image.input, SMALL.text.input)
    assert not loaded.training
    with fails(ValueError, "/tmp/here"):
        clip_benchmark.load_mobileclip("auto", str(small_file), cache_dir="/tmp/here")
    with pytest.raises(FileNotFoundError):
        clip_benchmark.load_mobileclip("mobileclip_s0", "laion400m_e32")


def test_registering_twice_is_registering_once():
    from clip_benchmark import models

    clip_benchmark.register()
    clip_benchmark.register()
    assert models.MODEL_TYPES.count("mobileclip") == 1
    assert models.TYPE2FUNC["mobileclip"] is clip_benchmark.load_mobileclip


def test_its_accuracies_work_with_any_numpy():
    from clip_benchmark.metrics.zeroshot_classification import accuracy

    clip_benchmark.register()
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1], [1, 3, 2]])
    assert accuracy(logits, torch.tensor([0, 0, 0, 1]), topk=(1, 2)) == [0.5, 0.75]


def test_without_clip_benchmark_the_command_that_installs_it_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("clip_benchmark"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with fails(ImportError, install("clip-benchmark")):
        clip_benchmark.register()
