"""Full-size models with the golden weights: exported files give the embeddings and tokens of the public code."""

import onnxruntime
import pytest
import tokenizers
import torch

from mobileclip.export import ExportSpec, export_model, read_contract, read_report, verify_export
from mobileclip.export.parity import LEAST_COSINE
from mobileclip.export.targets.mil import read_program
from mobileclip.export.targets.openvino_quiet import import_quietly
from tests.golden.checkpoints import golden, golden_images, golden_texts, golden_tokens

# What the tokenizer of another language does not repair; the library's own does.
NEEDS_REPAIR = {"&lt;b&gt;html &amp; entities&lt;/b&gt;", "ÀÉÎÕÜ ß ﬁ ﬂ", "ＦＵＬＬ ｗｉｄｔｈ", "SchrÃ¶dinger mojibake"}


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.cat([torch.from_numpy(session.run(None, {name: row[None].numpy()})[0]) for row in inputs])


def run_torch(path, inputs):
    module = torch.export.load(path).module()
    with torch.no_grad():
        return torch.cat([module(row[None]) for row in inputs])


def run_openvino(path, inputs):
    compiled = import_quietly("openvino").Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.cat([torch.from_numpy(compiled([row[None].numpy()])[0].copy()) for row in inputs])


def run_coreml(path, inputs):
    """What our reading of the program gives; Core ML itself runs on Macs alone."""
    program = read_program(path)
    (name,) = (feature.name for feature in program.description.input)
    taken = inputs.int() if name == "tokens" else inputs
    return torch.cat([program.run({name: row[None]})[0] for row in taken])


def least_cosine(ours, theirs):
    return float(torch.nn.functional.cosine_similarity(ours.double(), torch.as_tensor(theirs).double()).min())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "precision"),
    [
        ("apple_mobileclip_s0", "onnx", "fp32"),
        ("apple_mobileclip_s0", "onnx", "fp16"),
        ("apple_mobileclip_s0", "onnx", "bf16"),
        ("apple_mobileclip_s0", "onnx", "int8"),
        ("apple_mobileclip_s0", "torch", "fp32"),
        ("apple_mobileclip_s1", "onnx", "fp32"),
        ("apple_mobileclip_s2", "onnx", "fp32"),
        ("apple_mobileclip_b", "onnx", "fp32"),
        ("apple_mobileclip_b", "onnx", "int8"),
        ("openclip_MobileCLIP2-S0", "onnx", "fp32"),
        ("openclip_MobileCLIP2-S0", "onnx", "fp16"),
        ("apple_mobileclip_s0", "openvino", "fp32"),
        ("apple_mobileclip_s0", "openvino", "fp16"),
        ("apple_mobileclip_s0", "openvino", "int8"),
        ("apple_mobileclip_s1", "openvino", "fp32"),
        ("apple_mobileclip_s2", "openvino", "fp32"),
        ("apple_mobileclip_b", "openvino", "fp32"),
        ("apple_mobileclip_b", "openvino", "int8"),
        ("openclip_MobileCLIP2-S0", "openvino", "fp32"),
        ("apple_mobileclip_s0", "coreml", "fp32"),
        ("apple_mobileclip_s0", "coreml", "fp16"),
        ("apple_mobileclip_s0", "coreml", "int8"),
        ("apple_mobileclip_b", "coreml", "fp16"),
        ("openclip_MobileCLIP2-S0", "coreml", "fp32"),
    ],
)
def test_embeddings_of_the_public_code(name, target, precision, tmp_path):
    torch.save(golden(name).state(), tmp_path / "checkpoint.pt")
    spec = ExportSpec(out=tmp_path / "out", target=target, precision=precision)
    folder = export_model(tmp_path / "checkpoint.pt", spec)
    report = verify_export(folder)
    if precision == "fp32":
        assert report.passed, report.failures
    else:
        # Random weights hardly tell captions apart (a spread of 0.001), so that rounding swaps some of 36 results.
        assert {gate.name for gate in report.gates if not gate.passed} <= {"ranking agreement"}, report.failures
        assert report.ranking.agreement > 0.9 or precision == "int8"
    assert report == read_report(folder)
    run, suffix = {
        "onnx": (run_onnx, "onnx"),
        "openvino": (run_openvino, "xml"),
        "coreml": (run_coreml, "mlpackage"),
        "torch": (run_torch, "pt2"),
    }[target]
    outputs, images, tokens = (
        golden(name).outputs(),
        golden_images(read_contract(folder).image.input.size),
        golden_tokens()[:5],
    )
    least = LEAST_COSINE[precision]
    assert least_cosine(run(folder / f"image.{suffix}", images), outputs["image_embedding"]) > least
    assert least_cosine(run(folder / f"text.{suffix}", tokens), outputs["text_embedding"]) > least
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, expected in zip(golden_texts(), golden_tokens().tolist(), strict=True):
        if text not in NEEDS_REPAIR:
            assert whole.encode(text).ids == expected, text
