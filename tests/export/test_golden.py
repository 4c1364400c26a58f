"""Full-size models with the golden weights: exported files give the embeddings and tokens of the public code."""

import onnxruntime
import pytest
import tokenizers
import torch

from mobileclip.export import ExportSpec, export_model, read_contract, read_report, verify_export
from mobileclip.export.targets.base import quiet
from mobileclip.export.targets.torch import register_operations
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inference.openvino_backend import import_quietly
from tests.export.litert import converter
from tests.golden.checkpoints import golden, golden_images, golden_texts, golden_tokens

# What the tokenizer of another language does not repair; the library's own does.
NEEDS_REPAIR = {"&lt;b&gt;html &amp; entities&lt;/b&gt;", "ÀÉÎÕÜ ß ﬁ ﬂ", "ＦＵＬＬ ｗｉｄｔｈ", "SchrÃ¶dinger mojibake"}

MODELS = (*(f"apple_mobileclip_{size}" for size in ("s0", "s1", "s2", "b")), "openclip_MobileCLIP2-S0")
LARGE = ("openclip_MobileCLIP2-S3", "openclip_MobileCLIP2-S4", "openclip_MobileCLIP2-L-14")
IN_FEW_BITS = ("apple_mobileclip_s0", "apple_mobileclip_s2")
# Their random weights take a step in bfloat16 worse than trained ones would: the report says that they fail.
FAILS_BFLOAT16, LEAST_THERE = {"apple_mobileclip_s1", "apple_mobileclip_s2"}, 0.997
WRITTEN = [
    *((target, "float32") for target in ("onnx", "openvino", "executorch", "torch")),
    *((target, "float16") for target in ("onnx", "openvino", "executorch")),
    *((target, "bfloat16") for target in ("onnx", "openvino", "torch")),
    *((target, "int8") for target in ("onnx", "openvino", "executorch", "torch")),
]
ROWS = [
    *((name, *written) for name in MODELS for written in WRITTEN),
    *((name, "litert", bits) for name in IN_FEW_BITS for bits in ("float32", "float16", "int8", "int8-weights")),
    *((name, "litert", "float32") for name in (*MODELS, *LARGE) if name not in IN_FEW_BITS),
]


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.cat([torch.from_numpy(session.run(None, {name: row[None].numpy()})[0]) for row in inputs])


def run_torch(path, inputs):
    register_operations()
    module = torch.export.load(path).module()
    with torch.no_grad():
        return torch.cat([module(row[None]) for row in inputs])


def run_openvino(path, inputs):
    compiled = import_quietly("openvino").Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.cat([torch.from_numpy(compiled([row[None].numpy()])[0].copy()) for row in inputs])


def run_executorch(path, inputs):
    with quiet():
        from executorch.runtime import Runtime
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    return torch.cat([method.execute([row[None]])[0].clone() for row in inputs])


def run_litert(path, inputs):
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    (name,) = run.get_input_details()
    taken = inputs.int() if name == "tokens" else inputs
    return torch.cat([torch.from_numpy(next(iter(run(**{name: row[None].numpy()}).values()))) for row in taken])


RUNTIMES = {
    "onnx": (run_onnx, "onnx"),
    "openvino": (run_openvino, "xml"),
    "executorch": (run_executorch, "pte"),
    "litert": (run_litert, "tflite"),
    "torch": (run_torch, "pt2"),
}


def least_cosine(ours, theirs):
    return float(torch.nn.functional.cosine_similarity(ours.double(), torch.as_tensor(theirs).double()).min())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "precision"), ROWS)
def test_embeddings_of_the_public_code(name, target, precision, tmp_path):
    if target == "litert" and converter() is None:
        pytest.skip("no LiteRT converter: make litert")
    torch.save(golden(name).state(), tmp_path / "checkpoint.pt")
    spec = ExportSpec(output=tmp_path / "out", target=target, precision=precision, converter=converter())
    folder = export_model(tmp_path / "checkpoint.pt", spec)
    report = verify_export(folder, trust=True)
    least, may_fail = LEAST_COSINE[precision], {"ranking agreement"}
    if precision == "bfloat16" and name in FAILS_BFLOAT16:
        least, may_fail = LEAST_THERE, may_fail | {"image cosine, minimum"}
    # The page's first command, among others: one of 36 results changes by chance.
    if precision == "float32" or (name, target, precision) == ("apple_mobileclip_s0", "onnx", "float16"):
        assert report.passed, report.failures
    else:
        # Random weights hardly tell captions apart (a spread of 0.001): rounding swaps some of 36 results, how many
        # depends on the number of threads. By chance three would agree.
        assert {check.name for check in report.checks if not check.passed} <= may_fail, report.failures
        assert report.ranking.agreement > 0.8 or precision != "float16"
    assert report == read_report(folder)
    run, suffix = RUNTIMES[target]
    outputs, images = golden(name).outputs(), golden_images(read_contract(folder).image.input.size)
    assert least_cosine(run(folder / f"image.{suffix}", images), outputs["image_embedding"]) > least
    assert least_cosine(run(folder / f"text.{suffix}", golden_tokens()[:5]), outputs["text_embedding"]) > least
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, expected in zip(golden_texts(), golden_tokens().tolist(), strict=True):
        if text not in NEEDS_REPAIR:
            assert whole.encode(text).ids == expected, text
