"""Images of another size and shorter texts, from the command line and the release's entry points."""

import json

import numpy as np
import pytest
import torch

import mobileclip
from mobileclip.data.image import load_image
from mobileclip.encoders import load_model, save_model
from mobileclip.evaluation.candidates import open_candidate
from mobileclip.export import ExportSpec, bundled_samples, export_model, read_contract
from tests.encoders.small import SMALL, SMALL_VIT, embeddings, randomised
from tests.export.models import CONVOLUTIONAL, seeing
from tests.test_cli import run

SIZES = {"image_size": 96, "context_length": 8}
OPTIONS = ("--image-size", 96, "--context-length", 8)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_model(randomised(SMALL_VIT), path)
    return path


@pytest.fixture(scope="module")
def seeing_file(tmp_path_factory):
    """Embeddings of pictures differ by enough for an export to be measured."""
    path = tmp_path_factory.mktemp("seeing") / "mci.safetensors"
    save_model(seeing(CONVOLUTIONAL), path)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(bundled_samples().images[0])
    return path


def test_convert_writes_the_model_of_another_size(vit_file, tmp_path, capsys):
    """From then on, the file is a model of that size, for every command."""
    other = tmp_path / "other.safetensors"
    status, _, err = run(capsys, "convert", vit_file, other, *OPTIONS)
    assert status == 0, err
    expected = load_model(vit_file, fold=False, **SIZES)
    converted = load_model(other, fold=False)
    assert converted.spec == expected.spec
    assert (converted.spec.image.input.size, converted.spec.text.input.context_length) == (96, 8)
    torch.testing.assert_close(embeddings(converted), embeddings(expected))
    status, _, err = run(capsys, "convert", vit_file, tmp_path / "none.safetensors", "--context-length", 13)
    assert status == 2
    assert "context_length is at most 12, not 13" in err


def test_classify_and_embed(vit_file, picture, tmp_path, capsys):
    clip = mobileclip.load(vit_file, **SIZES)
    status, out, err = run(capsys, "classify", picture, "a cat", "a dog", "-c", vit_file, "--json", *OPTIONS)
    assert status == 0, err
    assert json.loads(out) == pytest.approx(clip.classify(picture, ["a cat", "a dog"]))
    (tmp_path / "texts.txt").write_text("a cat\nthree people ride bicycles on a long road at night\n")
    archive, texts = tmp_path / "e.npz", ("--texts", tmp_path / "texts.txt")
    status, _, err = run(capsys, "embed", picture, *texts, "-o", archive, "-c", vit_file, *OPTIONS)
    assert status == 0, err
    with np.load(archive) as stored:
        np.testing.assert_allclose(stored["image_embedding"], clip.encode_image(picture).numpy(), atol=1e-5)
        lines = (tmp_path / "texts.txt").read_text().splitlines()
        np.testing.assert_allclose(stored["text_embedding"], clip.encode_text(lines).numpy(), atol=1e-5)
    status, _, err = run(capsys, "embed", picture, "-o", archive, "-c", vit_file, "--append")
    assert status == 2, "embeddings of two sizes are never mixed"


def test_export(seeing_file, tmp_path, capsys):
    status, _, err = run(
        capsys, "export", seeing_file, "--target", "torch", "--tower", "image", "--out", tmp_path / "out", *OPTIONS[:2]
    )
    assert status == 0, err
    (tower,) = read_contract(tmp_path / "out").towers
    assert tower.input_shape == (1, 3, 96, 96)
    spec = ExportSpec(out=tmp_path / "none", target="torch", image_size=96)
    with pytest.raises(ValueError, match="built already has its size; give that where it is loaded"):
        export_model(randomised(SMALL), spec)


def test_eval(vit_file, tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(2):
            image = bundled_samples().images[number + 2 * (name == "dog")]
            (tmp_path / "classes" / name / f"{number}.jpg").write_bytes(image)
    output = ("--output", tmp_path / "results", "--device", "cpu")
    status, _, err = run(capsys, "eval", vit_file, tmp_path / "classes", *output, *OPTIONS)
    assert status == 0, err
    candidate = open_candidate(str(vit_file), **SIZES)
    assert (candidate.image_size, candidate.published) == (96, None)
    assert candidate.fingerprint != open_candidate(str(vit_file)).fingerprint
    with pytest.raises(ValueError, match="is evaluated by open_clip at its own size"):
        open_candidate("open_clip:ViT-B-32/openai", image_size=96)


@pytest.mark.parametrize("pretrained", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_releases_entry_points(s0_file, pretrained):
    sizes = {"image_size": 128, "context_length": 32}
    file = str(s0_file) if pretrained else None
    model, _, preprocess = mobileclip.create_model_and_transforms("mobileclip_s0", file, **sizes)
    assert (model.spec.image.input.size, model.spec.text.input.context_length) == (128, 32)
    picture = preprocess(load_image(bundled_samples().images[0]))
    assert picture.shape == (3, 128, 128)
    tokens = mobileclip.get_tokenizer("mobileclip_s0", context_length=32)(["a cat"])
    with torch.inference_mode():
        assert model.encode_image(picture[None]).shape == model.encode_text(tokens).shape == (1, 512)
