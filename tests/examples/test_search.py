"""The search of each runtime, run as people run it, says what the model says."""

import json
import re
import shutil
from functools import partial

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

import mobileclip
from mobileclip.export import ExportSpec, export_model
from tests.examples.running import FORBIDDEN, refused, run_example, write_images
from tests.export.litert import EXPORT, model as litert_model
from tests.export.models import SHALLOW, few_samples, seeing, small_model

TEXTS = ("a cat", "two dogs on a beach", "a red wall")
PLAIN = {"normalize": False, "dynamic_batch": True}
SPECS = {
    "onnx": None,
    "openvino": ExportSpec(output="", target="openvino", preprocess="uint8"),
    "executorch": ExportSpec(output="", target="executorch"),
    "litert": None,
    "onnx in 8 bits": ExportSpec(output="", target="onnx", precision="int8", preprocess="uint8", **PLAIN),
}
SLOW = ("executorch", "onnx in 8 bits")
SCRIPTS = {"onnx": "onnxruntime_search.py"}
# What runtimes themselves say, and nobody else.
SAID = {"executorch": "[cpuinfo_utils.cpp", "litert": "INFO: Created TensorFlow Lite XNNPACK delegate for CPU."}


@attrs.frozen
class Example:
    """A script, an export that it takes, and the model of that."""

    name: str
    target: str
    folder: object
    clip: mobileclip.ImageTextModel

    @property
    def script(self):
        return SCRIPTS.get(self.target, f"{self.target}_search.py")


def mistaken(example, folder, *arguments):
    """Return what an example says to a mistake."""
    status, said = refused(folder, example.script, *arguments)
    assert status == 2
    return said


@pytest.fixture(scope="module", params=[pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in SPECS])
def example(request, small_export, tmp_path_factory):
    spec, model = SPECS[request.param], seeing(SHALLOW)
    if request.param == "onnx":
        folder, model = small_export("onnx"), small_model("onnx")
    elif request.param == "litert":
        import ai_edge_litert  # noqa: F401

        folder, model = EXPORT, litert_model()
    else:
        spec = attrs.evolve(spec, output=tmp_path_factory.mktemp("search") / "out")
        folder = export_model(model, spec, samples=few_samples() if spec.precision == "int8" else None)
    return Example(request.param, request.param.split()[0], folder, mobileclip.ImageTextModel(model))


def by(names, values):
    return dict(zip(names, values.tolist(), strict=True))


@torch.no_grad()
def test_it_says_what_the_model_says(example, tmp_path):
    pictures = write_images(tmp_path, 2)
    # ExecuTorch's bindings for Python take tensors of PyTorch, and bring it.
    forbidden = FORBIDDEN[1:] if example.target == "executorch" else FORBIDDEN
    asked = (example.folder, "--images", *pictures, "--texts", *TEXTS)
    done = run_example(example.script, *asked, forbidden=forbidden)
    own = SAID.get(example.target, "no such line")
    assert [line for line in done.stderr.splitlines() if not line.startswith(own)] == []
    assert done.returncode == 0
    cosines = example.clip.encode_image(pictures) @ example.clip.encode_text(list(TEXTS)).T
    likely = (example.clip.model.logit_scale.exp() * cosines).softmax(-1)
    # Embeddings within a cosine of 0.98 of the model's are within 0.2 of them.
    exact, near = example.name in ("onnx", "openvino"), 0.2 if "8 bits" in example.name else 2e-4
    first, *blocks = done.stdout.split("\n\n")
    least = r"golden vectors of the (\w+) tower: least cosine (1\.000000|0\.9)"
    assert [tower for tower, _ in re.findall(least, first)] == ["image", "text"]
    for path, block, of_texts, shares in zip(pictures, blocks[:2], cosines, likely, strict=True):
        assert block.startswith(f"{path}\n")
        scores = re.findall(r"^ +([\d.]+)%  cosine (-?[\d.]+)  (.+)$", block, re.MULTILINE)
        assert {text: float(cosine) for _, cosine, text in scores} == pytest.approx(by(TEXTS, of_texts), abs=near)
        if exact:
            assert [text for *_, text in scores] == [TEXTS[column] for column in of_texts.argsort(descending=True)]
            percents = {text: float(percent) for percent, _, text in scores}
            assert percents == pytest.approx(by(TEXTS, 100 * shares), abs=0.06)
    for text, block, of_pictures in zip(TEXTS, blocks[2:], cosines.T, strict=True):
        title, *lines = block.splitlines()
        assert title.startswith(f"images for {text!r}, nearest first")
        expected = [str(pictures[row]) for row in of_pictures.argsort(descending=True)]
        assert not exact or [line.split("  ")[-1] for line in lines] == expected


def test_mistakes_are_told(example, tmp_path):
    status, printed = refused(tmp_path, example.script, "--help")
    assert (status, f"mobileclip export --target {example.target}" in " ".join(printed.split())) == (0, True)
    asked, told = ("--images", *write_images(tmp_path, 1), "--texts", *TEXTS), partial(mistaken, example, tmp_path)
    assert f"make an export: mobileclip export MODEL --target {example.target}" in told(tmp_path, *asked)
    copied = shutil.copytree(example.folder, tmp_path / "copied")
    contract = json.loads((copied / "mobileclip.json").read_text())
    (copied / "mobileclip.json").write_text(json.dumps({**contract, "target": "torch"}))
    assert f"is for torch, expected {example.target}" in told(copied, *asked)
    (copied / "mobileclip.json").write_text(json.dumps(contract))
    file = copied / next(one["file"] for one in contract["towers"] if one["tower"] == "text")
    file.unlink()
    assert f"{file.name} is missing; copy the export again" in told(copied, *asked)


def test_a_file_that_computes_something_else_is_not_used(example, tmp_path):
    """Than its golden vectors, which are exchanged here."""
    copied = shutil.copytree(example.folder, tmp_path / "copied")
    vectors = load_file(copied / "golden.safetensors")
    save_file(vectors | {"text_embedding": vectors["text_embedding"].flip(0)}, copied / "golden.safetensors")
    said = mistaken(example, tmp_path, copied, "--images", *write_images(tmp_path, 1), "--texts", *TEXTS)
    assert "error: the text tower's embeddings of the golden inputs differ" in said
