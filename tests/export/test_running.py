"""An export is a model: whatever takes a model takes its folder, and gives what the model itself gives."""

import re
import shutil

import attrs
import pytest
import torch

import mobileclip
from mobileclip.data import read_text_input
from mobileclip.encoders import save_model
from mobileclip.evaluation import BenchmarkSample, EvaluationSpec, evaluate_models, open_candidate
from mobileclip.export import bundled_samples, load_export
from mobileclip.export.running import as_pixels, require_exported_from
from tests.build.commands import worked
from tests.data.tokenizer_files import KINDS
from tests.errors import fails
from tests.evaluation.public_layout import write_benchmark
from tests.export.hostile_folders import change
from tests.export.models import PIXELS, SHALLOW, exported, pixels, raw_pixels, seeing

IMAGES, CAPTIONS = bundled_samples().images, bundled_samples().captions


@pytest.fixture(scope="module")
def checkpoint(shallow, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_model(shallow, path)
    return path


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """The bundled pictures as a data set of three classes."""
    folder = tmp_path_factory.mktemp("data") / "wds_mine_test"
    samples = [BenchmarkSample(key=str(row), image=image, label=row % 3) for row, image in enumerate(IMAGES)]
    write_benchmark(folder, samples, class_names=["cat", "dog", "cup"], templates=["a photo of a {}"])
    return folder


def test_embeddings_and_answers_are_the_models(shallow, plain_torch):
    export, model = mobileclip.load(plain_torch), mobileclip.ImageTextModel(shallow)
    torch.testing.assert_close(export.encode_image(IMAGES), model.encode_image(IMAGES), atol=1e-5, rtol=0)
    torch.testing.assert_close(export.encode_text(CAPTIONS), model.encode_text(CAPTIONS), atol=1e-5, rtol=0)
    labels = CAPTIONS[:4]
    found, expected = (one.classify(IMAGES[0], labels) for one in (export, model))
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-4)


def test_pixels_come_back_exactly():
    assert torch.equal(as_pixels(pixels(PIXELS), PIXELS), raw_pixels(PIXELS).to(torch.uint8))


def test_eval_measures_an_export(plain_torch, checkpoint, pets, tmp_path):
    candidate, model = open_candidate(str(plain_torch)), open_candidate(str(checkpoint))
    assert candidate.name == plain_torch.name
    assert candidate.fingerprint != model.fingerprint
    assert candidate.num_parameters == model.num_parameters - 1  # the logit scale
    spec = EvaluationSpec(datasets=(str(pets),), output=tmp_path)
    one, other = evaluate_models([f"model={checkpoint}", f"export={plain_torch}"], spec).models
    assert one.results.keys() == other.results.keys()
    (key,) = one.results
    assert one.results[key].metrics == other.results[key].metrics


def test_verify_says_what_is_lost_on_a_data_set(capsys, plain_torch, checkpoint, pets, tmp_path):
    options = ("--data", pets, "-m", checkpoint, "--output", tmp_path / "out")
    line = worked(capsys, "verify", plain_torch, *options).splitlines()[-1]
    assert "+0.00 (95 %:" in line
    before, after = re.findall(r"(\d+\.\d\d) (?:->|%)", line)
    assert before == after
    assert f"{len(IMAGES)} images" in line


def test_what_an_export_cannot_be_is_refused(shallow, plain_torch, tmp_path):
    other = ({"interpolation": "bicubic"}, {"device": "cuda"}, {"num_threads": 0})
    for asked in ({"dtype": torch.bfloat16}, {"image_size": 32}, *other):
        with fails(ValueError):
            mobileclip.load(plain_torch, **asked)
    with fails(ValueError):
        mobileclip.load("mobileclip_s0", plain_torch)
    save_model(seeing(SHALLOW, seed=3), tmp_path / "other.safetensors")
    with fails(ValueError):
        require_exported_from(plain_torch, tmp_path / "other.safetensors")
    with fails(ValueError, "text"):
        load_export(exported(shallow, tmp_path / "text", target="torch", tower="text"))
    damaged = shutil.copytree(plain_torch, tmp_path / "damaged")
    change(damaged, lambda contract: contract["spec"]["text"]["input"].update(context_length=13))
    with fails(ValueError):
        load_export(damaged)


@pytest.mark.slow
def test_a_tokenizer_of_its_own_comes_with_the_export(tmp_path):
    KINDS["bert"]().save(str(tmp_path / "tokenizer.json"))
    text_input = read_text_input(tmp_path / "tokenizer.json", context_length=12)
    model = seeing(attrs.evolve(SHALLOW, text=attrs.evolve(SHALLOW.text, input=text_input)))
    folder = exported(model, tmp_path / "out", target="torch")
    texts = ["a cat", "two dogs"]
    found, expected = (one.encode_text(texts) for one in (mobileclip.load(folder), mobileclip.ImageTextModel(model)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
