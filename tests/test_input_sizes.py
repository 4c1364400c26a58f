"""Images of another size and shorter texts, from the command line and the release's entry points."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import mobileclip
from mobileclip.blocks import models
from mobileclip.data import load_image
from mobileclip.encoders import load_model, save_model
from mobileclip.evaluation import open_candidate
from mobileclip.export import ExportSpec, bundled_samples, export_model
from tests.build.commands import refused, worked
from tests.encoders.small import SMALL, SMALL_VIT, embeddings, randomised
from tests.errors import fails

SIZES = {"image_size": 96, "context_length": 8}
OPTIONS = ("--image-size", 96, "--context-length", 8)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_model(randomised(SMALL_VIT), path)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(bundled_samples().images[0])
    return path


def test_convert_writes_the_model_of_another_size(vit_file, tmp_path, capsys):
    """From then on, the file is a model of that size, for every command."""
    other = tmp_path / "other.safetensors"
    worked(capsys, "convert", vit_file, "-o", other, *OPTIONS)
    expected = load_model(vit_file, fold=False, **SIZES)
    converted = load_model(other, fold=False)
    assert converted.spec == expected.spec
    assert (converted.spec.image.input.size, converted.spec.text.input.context_length) == (96, 8)
    torch.testing.assert_close(embeddings(converted), embeddings(expected))
    none = ("-o", tmp_path / "none.safetensors", "--context-length", 13)
    refused(capsys, "context_length is at most 12, not 13", "convert", vit_file, *none)


def test_classify_and_embed(vit_file, picture, tmp_path, capsys):
    clip = mobileclip.load(vit_file, **SIZES)
    out = worked(capsys, "classify", picture, "a cat", "a dog", "-m", vit_file, "--json", *OPTIONS)
    assert json.loads(out) == pytest.approx(clip.classify(picture, ["a cat", "a dog"]))
    (tmp_path / "texts.txt").write_text("a cat\nthree people ride bicycles on a long road at night\n")
    archive, texts = tmp_path / "e.npz", ("--texts", tmp_path / "texts.txt")
    worked(capsys, "embed", picture, *texts, "-o", archive, "-m", vit_file, *OPTIONS)
    with np.load(archive) as stored:
        np.testing.assert_allclose(stored["image_embedding"], clip.encode_image(picture).numpy(), atol=1e-5)
        lines = (tmp_path / "texts.txt").read_text().splitlines()
        np.testing.assert_allclose(stored["text_embedding"], clip.encode_text(lines).numpy(), atol=1e-5)
    refused(capsys, "cannot be compared", "embed", picture, "-o", archive, "-m", vit_file, "--append")


def test_export_takes_a_size_for_what_it_loads_alone(tmp_path):
    """That it exports at that size is tested beside feature maps, `tests/export/test_features.py`."""
    spec = ExportSpec(output=tmp_path / "none", target="torch", image_size=96)
    with fails(ValueError):
        export_model(randomised(SMALL), spec)


def test_eval(vit_file, tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(2):
            image = bundled_samples().images[number + 2 * (name == "dog")]
            (tmp_path / "classes" / name / f"{number}.jpg").write_bytes(image)
    output = ("--output", tmp_path / "results", "--device", "cpu")
    worked(capsys, "eval", vit_file, tmp_path / "classes", *output, *OPTIONS)
    candidate = open_candidate(str(vit_file), **SIZES)
    assert (candidate.clip.image_input.size, candidate.published) == (96, None)
    assert candidate.fingerprint != open_candidate(str(vit_file)).fingerprint


def test_the_filter_that_resizes_pictures(tmp_path):
    """The spec says it, so that it is saved; the pixels are Pillow's."""
    save_model(randomised(SMALL), tmp_path / "small.safetensors")
    file = tmp_path / "small.safetensors"
    clips = {one: mobileclip.load(file, interpolation=one) for one in (None, "bilinear", "bicubic")}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 240, 3), dtype=np.uint8))
    pixels = {one: clip.transform(picture) for one, clip in clips.items()}
    side = SMALL.image.input.size
    for one, clip in clips.items():
        assert clip.model.spec.image.input.interpolation == (one or "bilinear")
        kind = Image.Resampling.BICUBIC if one == "bicubic" else Image.Resampling.BILINEAR
        expected = np.asarray(picture.resize((side, side), kind), np.float32) / 255
        np.testing.assert_allclose(pixels[one].permute(1, 2, 0), expected, atol=1e-6)
        batch = torch.from_numpy(clip.transform.pixels(picture))[None]
        assert torch.equal(clip.encode_image(picture), clip.encode_pixels(batch))
    assert (pixels["bilinear"] - pixels["bicubic"]).abs().max() > 0.01
    save_model(clips["bicubic"].model, tmp_path / "saved.safetensors")
    assert mobileclip.load(tmp_path / "saved.safetensors").model.spec.image.input.interpolation == "bicubic"


@pytest.mark.parametrize("is_pretrained", [True, False])
def test_the_releases_entry_points(vit_file, is_pretrained, monkeypatch):
    monkeypatch.setitem(models._values, "small", SMALL_VIT)
    file = str(vit_file) if is_pretrained else None
    model, _, preprocess = mobileclip.create_model_and_transforms("small", file, **SIZES)
    assert (model.spec.image.input.size, model.spec.text.input.context_length) == (96, 8)
    picture = preprocess(load_image(bundled_samples().images[0]))[None]
    tokens = mobileclip.get_tokenizer("small", context_length=8)(["a cat"])
    with torch.inference_mode():
        assert model.encode_image(picture).shape == model.encode_text(tokens).shape == (1, 24)
