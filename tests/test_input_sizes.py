"""Images of another size and shorter texts, from the command line and the release's entry points."""

import hashlib
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
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, tokenizer_sha256
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
    archive, texts, lines = tmp_path / "e.npz", tmp_path / "texts.txt", ["a cat", "three people ride bicycles at night"]
    texts.write_text("\n".join(lines))
    worked(capsys, "embed", picture, "--texts", texts, "-o", archive, "-m", vit_file, *OPTIONS)
    with np.load(archive) as stored:
        np.testing.assert_allclose(stored["image_embedding"], clip.encode_image(picture).numpy(), atol=1e-5)
        np.testing.assert_allclose(stored["text_embedding"], clip.encode_text(lines).numpy(), atol=1e-5)
    refused(capsys, "cannot be compared", "embed", picture, "-o", archive, "-m", vit_file, "--append")


def test_eval_and_export(vit_file, tmp_path, capsys):
    """That an export has that size is tested beside feature maps, `tests/export/test_features.py`."""
    for number, image in enumerate(bundled_samples().images[:4]):
        folder = tmp_path / "classes" / ("cat", "dog")[number // 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(image)
    worked(capsys, "eval", vit_file, folder.parent, "--output", tmp_path / "results", "--device", "cpu", *OPTIONS)
    candidate = open_candidate(str(vit_file), **SIZES)
    assert (candidate.clip.image_input.size, candidate.published) == (96, None)
    assert candidate.fingerprint != open_candidate(str(vit_file)).fingerprint
    with fails(ValueError):  # it has a size for what it loads alone
        export_model(randomised(SMALL), ExportSpec(output=tmp_path / "none", target="torch", image_size=96))


def test_the_filter_that_resizes_pictures(tmp_path):
    """The spec says it, so that it is saved; the pixels are Pillow's."""
    file, side = tmp_path / "small.safetensors", SMALL.image.input.size
    save_model(randomised(SMALL), file)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 240, 3), dtype=np.uint8))
    for one in (None, "bilinear", "bicubic"):
        clip = mobileclip.load(file, interpolation=one)
        assert clip.model.spec.image.input.interpolation == (one or "bilinear")
        expected = picture.resize((side, side), Image.Resampling[(one or "bilinear").upper()])
        assert np.array_equal(clip.transform.pixels(picture), np.asarray(expected))
        pixels = torch.from_numpy(clip.transform.pixels(picture))[None]
        assert torch.equal(clip.encode_image(picture), clip.encode_pixels(pixels))
    save_model(clip.model, tmp_path / "saved.safetensors")
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


def test_the_published_contract(tmp_path):
    """Pixels are normalised as open_clip does it; a tokenizer's name is what `sha256sum` says of its file."""
    import open_clip

    assert (OPENAI_MEAN, OPENAI_STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    text = '{"model": "Käfer"}'
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert tokenizer_sha256(text) == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
