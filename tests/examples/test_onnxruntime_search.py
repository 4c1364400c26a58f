"""`onnxruntime_search.py`, run as people run it, says what the model says."""

import re
import shutil

import pytest
import torch

from mobileclip.data import ImageTransform, Tokenizer, load_image
from mobileclip.export import ExportSpec, export_model
from tests.examples.running import run_example, write_pictures
from tests.export.models import SHALLOW, few_samples, seeing

SCRIPT = "onnxruntime_search.py"
TEXTS = ("a cat", "two dogs on a beach", "a red wall")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_model(seeing(SHALLOW), ExportSpec(out=tmp_path_factory.mktemp("search") / "onnx"))


def cosines_of(printed):
    """Every picture's texts with their cosines, in the order in which they come."""
    found, texts = {}, {}
    for line in printed.splitlines():
        row = re.fullmatch(r" +([\d.]+)% +cosine (-?[\d.]+) +(.+)", line)
        if row:
            texts[row[3]] = float(row[2])
        elif line.endswith(".jpg") and not line.startswith(" "):
            texts = found.setdefault(line, {})
    return found


@torch.no_grad()
def expected_cosines(paths, spec):
    model = seeing(spec)
    transform = ImageTransform(spec.image.input)
    images = torch.stack([transform(load_image(path.read_bytes())) for path in paths])
    tokens = Tokenizer(spec.text.input)(TEXTS)
    return model.encode_image(images, normalize=True) @ model.encode_text(tokens, normalize=True).T


def test_it_says_what_the_model_says(folder, tmp_path):
    paths = write_pictures(tmp_path, 2)
    done = run_example(SCRIPT, folder, "--pictures", *paths, "--texts", *TEXTS)
    assert (done.returncode, done.stderr) == (0, "")
    found = cosines_of(done.stdout)
    assert list(found) == [str(path) for path in paths]
    for path, row in zip(paths, expected_cosines(paths, SHALLOW), strict=True):
        for text, cosine in zip(TEXTS, row.tolist(), strict=True):
            assert found[str(path)][text] == pytest.approx(cosine, abs=2e-4)
        shown = list(found[str(path)].values())
        assert shown == sorted(shown, reverse=True)
    assert "pictures for 'a cat', nearest first" in done.stdout


@pytest.mark.slow
def test_int8_with_pixels_as_they_are(tmp_path):
    spec = ExportSpec(out=tmp_path / "int8", precision="int8", preprocess="uint8", normalize=False, dynamic_batch=True)
    folder = export_model(seeing(SHALLOW), spec, samples=few_samples())
    paths = write_pictures(tmp_path, 2)
    done = run_example(SCRIPT, folder, "--pictures", *paths, "--texts", *TEXTS)
    assert (done.returncode, done.stderr) == (0, "")
    for path, row in zip(paths, expected_cosines(paths, SHALLOW), strict=True):
        for text, cosine in zip(TEXTS, row.tolist(), strict=True):
            # Embeddings within a cosine of 0.98 of the model's are within 0.2 of them.
            assert cosines_of(done.stdout)[str(path)][text] == pytest.approx(cosine, abs=0.2)


def test_mistakes_are_told(folder, tmp_path):
    (path,) = write_pictures(tmp_path, 1)
    done = run_example(SCRIPT, tmp_path, "--pictures", path, "--texts", "a cat")
    assert done.returncode == 2
    assert "make an export: mobileclip export MODEL --target onnx" in done.stderr
    swapped = shutil.copytree(folder, tmp_path / "swapped")
    golden = export_model(seeing(SHALLOW, seed=1), ExportSpec(out=tmp_path / "other")) / "image.onnx"
    shutil.copy(golden, swapped / "image.onnx")
    done = run_example(SCRIPT, swapped, "--pictures", path, "--texts", "a cat")
    assert done.returncode == 2
    assert "the image tower gives other embeddings of the golden inputs" in done.stderr
    done = run_example(SCRIPT, "--help")
    assert done.returncode == 0
    assert "with ONNX Runtime" in done.stdout
