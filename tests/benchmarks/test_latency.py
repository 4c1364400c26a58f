"""The comparison of latencies: same weights, same inputs, honest ratios; the small run, whole."""

import json
import os
import platform
import subprocess
import sys

import attrs
import pytest
import torch

from benchmarks.latency import (
    Case,
    Latency,
    LatencyBenchSpec,
    Setting,
    Side,
    captions,
    cases,
    compare,
    draw_accuracy,
    measure_apart,
    memory,
    read_results,
    write_results,
)
from benchmarks.latency.__main__ import run
from benchmarks.latency.exported import exported
from benchmarks.latency.plot import accuracies
from mobileclip import reparameterize, specs
from mobileclip.evaluation.report import LIGHT, to_png
from mobileclip.inference.comparison import largest_error
from tests.export.models import CONVOLUTIONAL, PIXELS, pixels, seeing


def test_short_captions_for_causal_towers_alone():
    named = [(str(case), case.batch_size) for case in cases(LatencyBenchSpec(models=("s2", "b"), batch_sizes=(1, 32)))]
    assert named == [
        *(("s2 image", 1), ("s2 image", 32), ("s2 random text", 1), ("s2 random text", 32)),
        *(("b image", 1), ("b image", 32), ("b random text", 1), ("b random text", 32)),
        *(("b short text", 1), ("b short text", 32)),
    ]
    assert {case.tower for case in cases(LatencyBenchSpec(towers=("text",)))} == {"text"}


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
    case = Case(model="s0", tower="image", texts="", batch_size=1)
    first, second = compare(case, contestants, x, rounds=9)
    assert first.ratio == first.cpu_ratio == 1
    assert first.error == 0
    assert second.ratio > 0
    assert second.cpu_ratio > 0
    assert second.ratio_quartiles[0] <= second.ratio <= second.ratio_quartiles[1]
    assert second.error == pytest.approx(0.25, rel=1e-4)
    assert second.cosine == pytest.approx(1)


def test_exports_are_compared_within_their_runtime():
    x = torch.rand(4, 4)
    ways = ("release", "release_openvino", "onnxruntime", "openvino")
    contestants = [Side(way=way, encode=lambda inputs: inputs + 0) for way in ways]
    results = compare(Case(model="s0", tower="image", texts="", batch_size=1), contestants, x, rounds=5)
    assert [result.runtime_ratio is None for result in results] == [True, True, True, False]


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_memory_that_is_freed_stays_with_the_process():
    """Counted in pages that the system has to give, in a process of its own."""
    code = (
        "import resource, runpy, sys, numpy as np\n"
        "pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "assert sys.argv[2] == 'given back' or runpy.run_path(sys.argv[1])['keep_memory']()\n"
        "np.ones(2**25); before = pages()\n"
        "for _ in range(3): np.ones(2**25)\n"
        "print(pages() - before)"
    )
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", code, memory.__file__, word]))
        for word in ("kept", "given back")
    )
    assert 10 * kept < given_back


def latency(way, model, tower, milliseconds, *, texts="", batch_size=1):
    case = Case(model=model, tower=tower, texts=texts, batch_size=batch_size)
    figures = {"ratio": 1, "ratio_quartiles": (1, 1), "cpu_ratio": 1, "cosine": 1, "error": 0}
    return Latency(case=case, way=way, form="", milliseconds=milliseconds, **figures)


def test_the_picture_is_of_single_inputs_and_published_accuracies():
    latencies = [
        latency("release", "s0", "image", 40),
        latency("release", "s0", "text", 20, texts="random"),
        latency("release", "b", "text", 5, texts="short"),
        latency("release", "b", "text", 20, texts="random"),
        latency("release", "b", "image", 90),
        latency("release", "s0", "image", 900, batch_size=32),
        latency("optimized_bf16", "s0", "image", 10),
    ]
    assert accuracies(latencies) == {
        "release": [
            ("MobileCLIP2-S0", 60, pytest.approx(0.5967, abs=5e-5)),
            ("MobileCLIP2-B", 110, pytest.approx(0.6576, abs=5e-5)),
        ]
    }
    assert to_png(draw_accuracy(latencies, title="a processor", theme=LIGHT)).startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_small_run_writes_what_it_prints_and_goes_on(tmp_path, capsys):
    spec = LatencyBenchSpec(tiny=True, output=tmp_path, threads=1, runtimes=(), towers=("image",))
    run(spec)
    of_images = (tmp_path / "latency.jsonl").read_text(encoding="utf-8")
    assert "from before" not in capsys.readouterr().out
    run(attrs.evolve(spec, towers=("image", "text")))
    text = (tmp_path / "latency.jsonl").read_text(encoding="utf-8")
    assert text.startswith(of_images), "images are not measured again"
    lines = [json.loads(line)["latency"] for line in text.splitlines()]
    ways = ["release", "eager", "optimized_fp32", "optimized_bf16"]
    assert [(line["case"]["tower"], line["way"]) for line in lines] == [
        (tower, way) for tower in ("image", "text") for way in ways
    ]
    for line in lines:
        assert line["milliseconds"] > 0
        assert line["error"] < (0.05 if line["way"] == "optimized_bf16" else 2e-5)
        assert attrs.fields_dict(Case).keys() == line["case"].keys()
    shown = capsys.readouterr().out
    assert "has 1 cases from before: 1 are left" in shown
    assert "s0 image" in shown
    assert "s0 random text" in shown
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_that_is_ended_is_told_with_its_case():
    case = Case(model="s0", tower="image", texts="", batch_size=1)
    with pytest.raises(RuntimeError, match=r"s0 image, 1 at once, was ended.*--no-compiled take less"):
        measure_apart(Ending(), case)


class Ending:
    """What ends the process that it is sent to."""

    def __reduce__(self):
        return os._exit, (9,)


def test_results_are_read_back_and_others_refused(tmp_path):
    path, setting = tmp_path / "latency.jsonl", Setting.of(LatencyBenchSpec())
    assert read_results(path, setting) == []
    latencies = [latency("release", "s0", "image", 40), latency("openvino", "b", "text", 5, texts="short")]
    write_results(path, setting, latencies)
    assert read_results(path, setting) == latencies
    with pytest.raises(ValueError, match="measured otherwise: rounds was 15 and is 9; remove the file, or choose"):
        read_results(path, attrs.evolve(setting, rounds=9))
    path.write_text(path.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 3: this JSON is not a valid Line.*remove the file"):
        read_results(path, setting)


def test_a_picture_of_images_alone_is_empty_and_has_no_legend():
    figure = draw_accuracy([latency("release", "s0", "image", 40)], title="a processor", theme=LIGHT)
    assert figure.axes[0].get_legend() is None
