"""The OpenVINO example, run as people run it, on a small export."""

import json
import re
import shutil

import pytest
import torch

from mobileclip.data import ImageTransform, Tokenizer, load_image
from mobileclip.export import ExportSpec, export_model
from tests.examples.running import run_example, write_pictures
from tests.export.models import TRANSFORMERS, seeing

TEXTS = ("a cat", "two dogs on a beach", "a red bus")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("openvino_search") / "out"
    return export_model(seeing(TRANSFORMERS), ExportSpec(out=out, target="openvino", preprocess="uint8"))


@torch.no_grad()
def test_scores_are_the_models(folder, tmp_path):
    pictures = write_pictures(tmp_path, 2)
    done = run_example("openvino_search.py", folder, "--pictures", *pictures, "--texts", *TEXTS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    model = seeing(TRANSFORMERS)
    transform = ImageTransform(TRANSFORMERS.image.input)
    images = model.encode_image(torch.stack([transform(load_image(path)) for path in pictures]), normalize=True)
    texts = model.encode_text(Tokenizer(TRANSFORMERS.text.input)(TEXTS), normalize=True)
    cosines = images @ texts.T
    likely = (model.logit_scale.exp() * cosines).softmax(-1)
    blocks = done.stdout.split("\n\n")
    assert re.findall(r"golden vectors of the (\w+) tower: least cosine 1\.000000", blocks[0]) == ["image", "text"]
    assert len(blocks) == 1 + len(pictures) + len(TEXTS)
    for row, (path, block) in enumerate(zip(pictures, blocks[1:3], strict=True)):
        title, *lines = block.splitlines()
        assert title == str(path)
        scores = [re.fullmatch(r" +([\d.]+)%  cosine (-?[\d.]+)  (.+)", line).groups() for line in lines]
        assert [text for *_, text in scores] == [TEXTS[column] for column in cosines[row].argsort(descending=True)]
        for percent, cosine, text in scores:
            column = TEXTS.index(text)
            assert float(percent) == pytest.approx(100 * float(likely[row, column]), abs=0.06)
            assert float(cosine) == pytest.approx(float(cosines[row, column]), abs=1e-4)
    for column, (text, block) in enumerate(zip(TEXTS, blocks[3:], strict=True)):
        title, *lines = block.splitlines()
        assert text in title
        expected = [str(pictures[row]) for row in cosines[:, column].argsort(descending=True)]
        assert [line.split("  ")[-1] for line in lines] == expected


def test_help_says_how_to_run_it():
    done = run_example("openvino_search.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "mobileclip export --target openvino" in " ".join(done.stdout.split())


def test_a_file_that_computes_something_else_is_not_used(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "out")
    spec = ExportSpec(out=tmp_path / "other", target="openvino", tower="text")
    shutil.copy(export_model(seeing(TRANSFORMERS, seed=1), spec) / "text.bin", copied / "text.bin")
    (picture,) = write_pictures(tmp_path, 1)
    done = run_example("openvino_search.py", copied, "--pictures", picture, "--texts", *TEXTS)
    assert done.returncode == 2
    assert "error: the text tower gives other embeddings of the golden inputs" in done.stderr
    contract = json.loads((folder / "mobileclip.json").read_text())
    (copied / "mobileclip.json").write_text(json.dumps({**contract, "target": "onnx"}))
    done = run_example("openvino_search.py", copied, "--pictures", picture, "--texts", *TEXTS)
    assert done.returncode == 2
    assert "was made for onnx, expected openvino" in done.stderr
