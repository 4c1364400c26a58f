"""The comparison of latencies: same weights, same inputs, honest ratios."""

import platform
import subprocess
import sys

import attrs
import pytest
import torch

from benchmarks.harness import Row, Value, memory, run
from benchmarks.latency import LatencyBenchSpec, captions, compare
from benchmarks.latency_exported import exported
from benchmarks.latency_plot import accuracies, draw_accuracy
from benchmarks.latency_ways import Side
from mobileclip import reparameterize, specs
from mobileclip.data import Tokenizer
from mobileclip.evaluation.report import LIGHT, to_png
from mobileclip.export.towers import cut_to_length
from mobileclip.inference.comparison import largest_error
from tests.export.models import CONVOLUTIONAL, PIXELS, SHALLOW, TOKENS, pixels, seeing


def test_short_captions_for_causal_towers_alone():
    named = [
        " ".join(case.labels.values()) for case in LatencyBenchSpec(models=("s2", "b"), batch_sizes=(1, 32)).cases()
    ]
    assert named == [
        *("s2 image 1", "s2 image 32", "s2 random text 1", "s2 random text 32"),
        *("b image 1", "b image 32", "b random text 1", "b random text 32", "b short text 1", "b short text 32"),
    ]
    only = LatencyBenchSpec(towers=("text",)).cases()
    assert {case.labels["inputs"] for case in only} == {"random text", "short text"}


def test_captions_of_ten_ids():
    spec = specs.mobileclip_b()
    tokens = captions(spec, batch_size=3)
    assert tokens.shape == (3, 77)
    assert tokens.argmax(-1).tolist() == [9, 9, 9]
    assert tokens[:, 0].tolist() == [spec.text.input.start_id] * 3
    assert tokens[:, 10:].unique().tolist() == [spec.text.input.pad_id]


def test_ratios_and_errors_are_against_the_first():
    x = torch.rand(200, 200)

    def slow(inputs):
        for _ in range(20):
            y = inputs @ inputs
        return y

    contestants = [Side(way="release", encode=slow), Side(way="eager", encode=lambda inputs: 1.25 * inputs @ inputs)]
    first, second = (row.values for row in compare(contestants, x, rounds=9))
    assert first["ratio"].number == first["CPU ratio"].number == 1
    assert first["error"].number == 0
    assert min(second["ratio"].low, second["CPU ratio"].number) > 0
    assert second["error"].number == pytest.approx(0.25, rel=1e-4)
    assert second["cosine"].number == pytest.approx(1)


def test_exports_are_compared_within_their_runtime():
    x = torch.rand(4, 4)
    ways = ("release", "release_openvino", "onnxruntime", "openvino")
    contestants = [Side(way=way, encode=lambda inputs: inputs + 0) for way in ways]
    rows = compare(contestants, x, rounds=5)
    assert ["ratio in its runtime" in row.values for row in rows] == [False, False, False, True]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("runtime", "batch_size", "error"),
    [
        ("onnxruntime", 1, 1e-4),
        ("onnxruntime", 3, 1e-4),
        ("openvino_bf16", 1, 0.03),
    ],
)
def test_the_rival_is_exported_as_ours_is(tmp_path, runtime, batch_size, error):
    mine = reparameterize(seeing(CONVOLUTIONAL)).image_encoder
    other = reparameterize(seeing(CONVOLUTIONAL, seed=1)).image_encoder
    images = pixels(PIXELS)[:batch_size]
    options = {"tower": "image", "runtime": runtime, "batch_size": batch_size}
    ours = exported(mine, **options, rival=None, folder=tmp_path / "ours")
    theirs = exported(mine, **options, rival=other, folder=tmp_path / "theirs")
    assert largest_error(ours(images), mine(images)) < error
    assert largest_error(theirs(images), other(images)) < error


@torch.no_grad()
def test_exported_texts_of_causal_towers_come_without_the_padding_that_a_file_need_not_see(tmp_path, monkeypatch):
    mine = reparameterize(seeing(SHALLOW)).text_encoder
    tokens = Tokenizer(TOKENS)(["a cat", "a dog"])
    lengths = []

    def cut(*given):
        part = cut_to_length(*given)
        lengths.append(part.shape[1])
        return part

    monkeypatch.setattr("benchmarks.latency_exported.cut_to_length", cut)
    options = {"tower": "text", "runtime": "openvino", "batch_size": 2}
    ours = exported(mine, **options, rival=None, folder=tmp_path / "ours")
    theirs = exported(mine, **options, rival=mine, folder=tmp_path / "theirs")
    assert largest_error(ours(tokens), mine(tokens)) < 1e-4
    assert largest_error(theirs(tokens), mine(tokens)) < 1e-4
    assert lengths == [8]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_memory_that_is_freed_stays_with_the_process():
    """Counted in pages that the system has to give, in a process of its own."""
    code = (
        "import resource, runpy, sys, numpy as np\n"
        "pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "assert sys.argv[2] == 'given back' or runpy.run_path(sys.argv[1])['keep_memory']()\n"
        "np.ones(2**23); before = pages()\n"
        "for _ in range(3): np.ones(2**23)\n"
        "print(pages() - before)"
    )
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", code, memory.__file__, word]))
        for word in ("kept", "given back")
    )
    assert 10 * kept < given_back


def latency(way, model, inputs, milliseconds, *, batch_size=1):
    case = {"model": model, "inputs": inputs, "batch": str(batch_size), "way": way}
    return Row(case=case, values={"time": Value(number=milliseconds, unit="ms")})


def test_the_picture_is_of_single_inputs_and_published_accuracies():
    latencies = [
        latency("release", "s0", "image", 40),
        latency("release", "s0", "random text", 20),
        latency("release", "b", "short text", 5),
        latency("release", "b", "random text", 20),
        latency("release", "b", "image", 90),
        latency("release", "s0", "image", 900, batch_size=32),
        latency("optimized_bf16", "s0", "image", 10),
        Row(case={"model": "s1", "inputs": "image", "batch": "1"}, failure="it fell over"),
    ]
    assert accuracies(latencies) == {
        "release": [
            ("MobileCLIP2-S0", 60, pytest.approx(0.5967, abs=5e-5), None),
            ("MobileCLIP2-B", 110, pytest.approx(0.6576, abs=5e-5), None),
        ]
    }
    assert to_png(draw_accuracy(latencies, title="a processor", theme=LIGHT)).startswith(b"\x89PNG")
    empty = draw_accuracy(latencies[:1], title="a processor", theme=LIGHT)
    assert empty.axes[0].get_legend() is None


@pytest.mark.slow
def test_the_small_run_goes_on(tmp_path, capsys):
    spec = LatencyBenchSpec(tiny=True, output=tmp_path / "latency.json", threads=1, runtimes=(), towers=("image",))
    images = run(spec, "latency")
    both = run(attrs.evolve(spec, towers=("image", "text")), "latency")
    assert both.rows[: len(images.rows)] == images.rows, "images are not measured again"
    assert "has 1 cases from before: 1 are left" in capsys.readouterr().err
    ways = ["release", "eager", "optimized_fp32", "optimized_bf16"]
    assert [(row.case["inputs"], row.case["way"]) for row in both.rows] == [
        (inputs, way) for inputs in ("image", "random text") for way in ways
    ]
    for row in both.rows:
        assert row.values["error"].number < (0.05 if row.case["way"] == "optimized_bf16" else 2e-5)
