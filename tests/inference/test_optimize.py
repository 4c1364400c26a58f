"""The fastest form of a model: its embeddings, what is used and what is refused, and what the report says."""

import json
import pickle
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

from mobileclip import ImageTextModel, optimize, reparameterize
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.extras import install
from mobileclip.inference import Form, OptimizedDualEncoder, OptimizedTower, processor
from mobileclip.inference.comparison import (
    LARGEST_ERROR,
    LEAST_COSINE,
    largest_error,
    median_ratio,
    orders,
    smallest_cosine,
    times_in_turn,
    turn,
)
from mobileclip.inference.forms import ReadyDualEncoder
from mobileclip.inference.openvino_backend import import_quietly, openvino_core, openvino_program
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD
from mobileclip.reparam import is_folded
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, inputs, randomised
from tests.errors import fails, told
from tests.preloaded import preloaded

# Torch's tracer imports parts of torch that warn of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]
CAUSAL = attrs.evolve(SMALL_VIT, text=attrs.evolve(SMALL.text, causal=True))
OPENVINO = Form(engine="openvino", precision="float32", max_batch_size=1)
TEXTS = ["a", "a dog", "a cat on the grass", "b", "many words"]


def example(spec, batch):
    return inputs(spec, batch)[0], Tokenizer(spec.text.input)((TEXTS * batch)[:batch])


@pytest.mark.parametrize("spec", [SMALL, SMALL_MCT, CAUSAL], ids=["base", "mct", "causal"])
def test_the_embeddings_are_those_of_the_model(spec, capsys):
    model = randomised(spec)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = optimize(model, example(spec, 4), compiled=False, rounds=2)
    assert isinstance(fast, OptimizedDualEncoder)
    assert not fast.training
    assert fast.logit_scale == model.logit_scale
    for batch in (1, 6, 13):
        images, tokens = example(spec, batch)
        with torch.inference_mode():
            torch.testing.assert_close(fast.encode_image(images), model.encode_image(images), rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(fast(images, tokens), model(images, tokens), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not is_folded(model)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    told(capsys.readouterr().err, "trying the image tower: 1/1", "trying the text tower: 1/1")
    expected = ImageTextModel(model).encode_text(TEXTS, batch_size=2)
    torch.testing.assert_close(ImageTextModel(fast).encode_text(TEXTS, batch_size=2), expected, rtol=1e-4, atol=1e-4)
    for encode, given in (
        (fast.encode_image, torch.zeros(1, 3, 32, 32)),
        (fast.encode_text, torch.zeros(1, 5, dtype=torch.long)),
    ):
        with fails(ValueError):
            encode(given)


def test_the_report_has_every_form_and_uses_the_fastest():
    report = optimize(randomised(SMALL), example(SMALL, 6), precision="bfloat16", compiled=False, rounds=3).report
    forms = [Form(engine="eager", precision=p, max_batch_size=most) for p in ("float32", "bfloat16") for most in (6, 4)]
    for tower in (report.image, report.text):
        assert [trial.form for trial in tower.trials] == forms
        assert tower.batch_size == 6
        timed = [trial for trial in tower.trials if not trial.refused]
        assert all(trial.milliseconds > 0 and trial.speed_up > 0 for trial in timed)
        best = max(timed, key=lambda trial: trial.speed_up)
        assert tower.used == (best if best.speed_up > 1 else None)
        assert max(trial.error for trial in tower.trials[:2]) < 1e-5 < min(trial.error for trial in tower.trials[2:])
        assert "*" in str(tower)
        assert "eager bfloat16, 4 at once" in str(tower)
    read = json.loads(report.to_json())
    assert read["image"]["trials"][0]["form"] == {"engine": "eager", "precision": "float32", "max_batch_size": 6}
    assert read["threads"] == torch.get_num_threads()
    assert report.processor in str(report)


def test_what_is_not_exact_enough_is_not_used(monkeypatch):
    """bfloat16 is refused by a check of one, float32 by a check of zero; then the folded towers stay as they are."""
    monkeypatch.setitem(LEAST_COSINE, "bfloat16", 1.1)
    monkeypatch.setitem(LARGEST_ERROR, "float32", -1.0)
    model = randomised(SMALL)
    fast = optimize(model, precision="bfloat16", compiled=False, rounds=1)
    for tower in (fast.report.image, fast.report.text):
        assert tower.used is None
        assert [trial.refused.split()[1] for trial in tower.trials] == ["error", "cosine"]
        assert all(trial.milliseconds is None for trial in tower.trials)
        assert "not usable: the cosine is below 1.1" in str(tower)
        assert "* none of these is faster" in str(tower)
    assert is_folded(fast)
    images, tokens = example(SMALL, 2)
    torch.testing.assert_close(fast.encode_image(images), model.encode_image(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.encode_text(tokens), model.encode_text(tokens), rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_finite_fit_no_check():
    model = randomised(SMALL)
    with torch.no_grad():
        model.text_encoder.project.weight[0] = torch.nan
    report = optimize(model, compiled=False, rounds=1).report
    assert [trial.refused for trial in report.text.trials] == ["the error is above 1e-05"]
    assert [trial.refused for trial in report.image.trials] == [""]


WITHOUT = """
import sys
sys.modules["openvino"] = None
import torch
from mobileclip import optimize
from tests.encoders.small import SMALL, randomised
torch.set_num_threads(1)
for precision in ("float32", "bfloat16", "int8"):
    print(optimize(randomised(SMALL), precision=precision, rounds=1).report.to_json().replace("\\n", " "))
"""


@pytest.fixture(scope="module")
def reports_without_programs(tmp_path_factory):
    """Those of each precision, from a process of its own: OpenVINO stays where it was once imported."""
    folder = tmp_path_factory.mktemp("without")
    done = preloaded().call("tests.preloaded:python", "-c", WITHOUT, folder=folder, seconds=120)
    assert done.status == 0, done.output
    reports = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    return dict(zip(("float32", "bfloat16", "int8"), reports, strict=True))


@pytest.mark.parametrize(
    ("precision", "tried"),
    [
        ("float32", ["eager float32", "openvino float32"]),
        ("bfloat16", ["eager float32", "eager bfloat16", "openvino bfloat16"]),
        ("int8", ["eager float32", "openvino float32", "eager bfloat16", "openvino bfloat16", "openvino int8"]),
    ],
)
def test_a_lower_precision_is_tried_beside_what_needs_no_program(precision, tried, reports_without_programs):
    """Who asks for int8 may be left with what OpenVINO computes in more; who asks for bfloat16 waits for that alone."""
    report = reports_without_programs[precision]
    for tower in (report["image"], report["text"]):
        forms = [trial["form"] for trial in tower["trials"]]
        assert [f"{form['engine']} {form['precision']}" for form in forms] == tried
        for trial in tower["trials"]:
            assert bool(trial["refused"]) == (trial["form"]["engine"] != "eager")
            assert (trial["milliseconds"] is None) == bool(trial["refused"])
            if trial["refused"]:
                told(trial["refused"], "cannot be compiled", f"needs openvino: `{install('openvino')}`")
        assert tower["used"] in (None, *(trial for trial in tower["trials"] if trial["form"]["engine"] == "eager"))


def test_the_processor_has_a_name_on_every_system(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    assert processor() not in ("", "CPU")
    monkeypatch.setattr(Path, "read_text", missing)
    for of_processor, of_machine, name in (("i9", "x86", "i9"), ("", "arm64", "arm64"), ("", "", "CPU")):
        monkeypatch.setattr(platform, "processor", lambda said=of_processor: said)
        monkeypatch.setattr(platform, "machine", lambda said=of_machine: said)
        assert processor() == name


@pytest.mark.slow
def test_a_precision_that_the_processor_lacks_is_not_used(monkeypatch):
    core = type(openvino_core())
    monkeypatch.setattr(core, "get_property", lambda *_: ["FP32", "INT8"])
    tower = reparameterize(randomised(SMALL).image_encoder)
    with fails(RuntimeError, "bfloat16"):
        openvino_program(tower, example(SMALL, 1)[0], lengths=False, precision="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "name"),
    [(SMALL, "image_encoder"), (SMALL_MCT, "text_encoder"), (CAUSAL, "text_encoder"), (CAUSAL, "image_encoder")],
)
def test_programs_are_one_for_each_model(spec, name):
    """Weights are frozen into a program, so another model's must not run in its place."""
    plain = [getattr(randomised(spec, seed=seed), name) for seed in (0, 1)]
    towers = [OptimizedTower(reparameterize(tower), form=attrs.evolve(OPENVINO, max_batch_size=2)) for tower in plain]
    which = 0 if name == "image_encoder" else 1
    for tower in towers:
        tower.compile_for(example(spec, 3)[which])
    for batch in (1, 2, 5):
        tensors = example(spec, batch)[which]
        for fast, tower in zip(towers, plain, strict=True):
            expected = tower(tensors)
            torch.testing.assert_close(fast(tensors), expected, rtol=1e-4, atol=1e-4)
            with torch.inference_mode():
                torch.testing.assert_close(fast(tensors.clone()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_computes_texts_of_any_length_in_any_batch(threads):
    """With its own fusing of operations, release 2026.4 ends the process here."""
    torch.set_num_threads(threads)
    plain = randomised(CAUSAL).text_encoder
    fast = OptimizedTower(reparameterize(plain), form=attrs.evolve(OPENVINO, max_batch_size=6))
    tokens = example(CAUSAL, 6)[1]
    fast.compile_for(tokens)
    torch.testing.assert_close(fast(tokens), plain(tokens), rtol=1e-4, atol=1e-4)
    with ThreadPoolExecutor(4) as pool:  # threads that call it at once get their own embeddings
        torch.testing.assert_close(
            torch.cat(list(pool.map(fast, tokens.split(1)))), plain(tokens), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_everything_is_compiled(precision):
    capabilities = import_quietly("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if {"float32": "FP32", "bfloat16": "BF16"}[precision] not in (*capabilities, "FP32"):
        pytest.skip(f"OpenVINO does not compute in {precision} on this processor")
    model = randomised(CAUSAL)
    fast = optimize(model, example(CAUSAL, 6), precision=precision, rounds=3)
    for tower in (fast.report.image, fast.report.text):
        assert [trial.refused for trial in tower.trials] == [""] * len(tower.trials)
        assert sum(trial.form.engine == "openvino" for trial in tower.trials) == 2


@pytest.mark.parametrize(
    ("change", "arguments", "error"),
    [
        (nn.Module.train, {}, (ValueError,)),
        (nn.Module.half, {}, (ValueError, "torch.float16 on cpu")),
        (nn.Module.eval, {"precision": "float16"}, (ValueError, "float32, bfloat16, int8", "float16")),
        (nn.Module.eval, {"rounds": 0}, (ValueError,)),
        (nn.Module.eval, {"example": example(SMALL, 0)}, (ValueError, "image")),
    ],
)
def test_what_cannot_be_optimized_is_said(change, arguments, error):
    with fails(*error):
        optimize(change(randomised(SMALL)), **arguments)


def test_nobody_has_turns_in_a_row_more_often_than_others():
    drawn = list(orders(5, rounds=1000))
    assert drawn == list(orders(5, rounds=1000))
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in drawn)
    in_a_row = [this[-1] for this, following in pairwise(drawn) if this[-1] == following[0]]
    assert all(20 < in_a_row.count(which) < 60 for which in range(5)), "about 1000 / 25 each"
    assert all(150 < sum(order[place] == 0 for order in drawn) < 250 for place in range(5))


def test_measures():
    calls = []
    times = times_in_turn([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3)
    assert "".join(calls[:2]) == "ab"
    turns = ["".join(calls[start : start + 4]) for start in (2, 6, 10)]
    assert turns == ["".join(2 * "ab"[which] for which in order) for order in orders(2, rounds=3)]
    assert len(calls) == 14
    assert [len(each) for each in times] == [3, 3]
    assert turn(lambda: time.sleep(0.51))[0] > 510
    computed = turn(lambda: sum(range(2_000_000)))
    assert 0 < computed[1] < 10
    assert median_ratio([1, 9, 4], [2, 3, 4]) == 1
    ours, theirs = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert smallest_cosine(ours, theirs) == pytest.approx(0.5**0.5)
    assert largest_error(ours, theirs) == pytest.approx(0.5**0.5)
    assert not smallest_cosine(ours * torch.nan, theirs) > -2


def test_pixels_give_the_embeddings_of_images():
    contract = attrs.evolve(SMALL.image.input, mean=OPENAI_MEAN, std=OPENAI_STD)
    plain = randomised(attrs.evolve(SMALL.image, input=contract))
    fast = OptimizedTower(reparameterize(plain), form=attrs.evolve(OPENVINO, engine="eager", max_batch_size=2))
    transform, pixels = ImageTransform(contract), random_pixels(5)
    images = transform.normalize(pixels)
    torch.testing.assert_close(fast(transform.as_images(pixels)), plain(images), rtol=1e-4, atol=1e-4)


def random_pixels(count):
    shape = (count, SMALL.image.input.size, SMALL.image.input.size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.extra("openvino")
def test_a_program_takes_pixels_where_they_lie(monkeypatch):
    """Nothing is made of floats on the way into it, and the model's own preprocessing is what it computes."""
    model = randomised(SMALL)
    tower = OptimizedTower(reparameterize(model.image_encoder), form=OPENVINO)
    tower.compile_for(example(SMALL, 1)[0])
    tower = pickle.loads(pickle.dumps(tower))
    ready = ReadyDualEncoder(tower, model.text_encoder, max_logit_scale=model.max_logit_scale).eval()
    pixels = random_pixels(3)
    expected = ImageTextModel(model).encode_pixels(pixels)
    clip, given, program = ImageTextModel(ready), [], tower._program
    monkeypatch.setattr(tower, "_program", lambda inputs: (given.append(inputs), program(inputs))[1])
    torch.testing.assert_close(clip.encode_pixels(pixels), expected, rtol=1e-4, atol=1e-4)
    assert [(one.dtype, one.data_ptr()) for one in given] == [(torch.uint8, one.data_ptr()) for one in pixels]
