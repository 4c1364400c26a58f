"""Packages of Core ML: what an app for iPhones takes, what is in them, and what they cannot hold."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mobileclip
from mobileclip import reparameterize
from mobileclip.blocks import models
from mobileclip.export import load_export, read_contract, read_report, verify_export
from mobileclip.export.int8 import weighted_layers
from mobileclip.export.targets.coreml import LARGEST_BATCH
from tests.errors import fails
from tests.export.models import AUTHOR, CONVOLUTIONAL, TOKENS, exported
from tests.export.stored import IS_MAC, coreml_function, coreml_operations
from tests.preloaded import preloaded

pytestmark = pytest.mark.extra("coreml")


@pytest.fixture(scope="module")
def iphone(convolutional, tmp_path_factory):
    """A small model under the name of a published one, as one that was fine-tuned, for an app for iPhones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_values", {**models, "mobileclip_s0": CONVOLUTIONAL})
        return exported(convolutional, tmp_path_factory.mktemp("coreml") / "out", preset="iphone")


def described(path):
    from coremltools.models.utils import load_spec

    return load_spec(str(path))


def test_an_iphone_gets_apples_names_shapes_and_types(iphone):
    contract = read_contract(iphone)
    image, text = contract.towers
    assert (image.file, text.file) == ("mobileclip_s0_image.mlpackage", "mobileclip_s0_text.mlpackage")
    assert (contract.precision, contract.state) == ("float16", "run" if IS_MAC else "written, not run")
    from coremltools.proto import FeatureTypes_pb2 as Types

    found = {file.tower: described(iphone / file.file).description for file in contract.towers}
    (pixels,), (ids,) = found["image"].input, found["text"].input
    assert (pixels.name, ids.name) == ("image", "text")
    assert (pixels.type.imageType.width, pixels.type.imageType.colorSpace) == (64, Types.ImageFeatureType.RGB)
    array = ids.type.multiArrayType
    assert ([*array.shape], array.dataType) == ([1, TOKENS.context_length], Types.ArrayFeatureType.INT32)
    for description in found.values():
        (output,) = description.output
        assert (output.name, output.type.multiArrayType.dataType) == ("final_emb_1", Types.ArrayFeatureType.FLOAT32)
        assert description.metadata.author == AUTHOR
        assert description.metadata.license
        told = json.loads(description.metadata.userDefined["mobileclip"])
        assert told["image"]["input"]["size"] == 64
    golden = load_file(iphone / "golden.safetensors")
    assert set(golden) == {"image", "text", "image.final_emb_1", "text.final_emb_1"}
    assert (golden["image"].dtype, golden["text"].dtype) == (torch.uint8, torch.int32)


@pytest.mark.skipif(IS_MAC, reason="Core ML runs here")
def test_what_core_ml_alone_computes_is_written_and_not_run(iphone):
    contract, report = read_contract(iphone), read_report(iphone)
    assert contract.state == report.runtime == "written, not run"
    assert (report.towers, report.passed) == ((), False)
    for opened in (verify_export, load_export, mobileclip.load):
        with fails(ValueError, "written, not run", "Core ML"):
            opened(iphone)


def test_core_ml_takes_a_picture_and_computes_in_half_precision(iphone, convolutional):
    image, _ = read_contract(iphone).towers
    assert (image.input_dtype, image.input_shape) == ("uint8", (1, 3, 64, 64))
    path = iphone / image.file
    for kind in ("conv", "gelu"):
        assert {one.outputs[0].dtype.__name__ for one in coreml_operations(path, kind)} == {"fp16"}
    # Scaling of pixels and lengths of embeddings.
    assert coreml_operations(path, "mul")[0].outputs[0].dtype.__name__ == "fp32"
    assert {one.outputs[0].dtype.__name__ for one in coreml_operations(path, "reduce_l2_norm")} == {"fp32"}
    spec = described(path)
    taken = spec.description.input[0].type.imageType
    assert (taken.width, taken.height, spec.specificationVersion) == (64, 64, 8), "iOS 17 and macOS 14"
    assert {one.name for one in path.iterdir()} == {"Manifest.json", "Data"}
    # Every weight is in it, rounded to half precision.
    held = [one.outputs[0].val for one in coreml_function(path).operations if one.op_type == "const"]
    arrays = [array.astype(np.float32).ravel() for array in held if isinstance(array, np.ndarray) and array.ndim]
    for name, weight in reparameterize(convolutional).image_encoder.named_parameters():
        expected = weight.detach().numpy().ravel()
        near = [np.allclose(one, expected, rtol=2**-11, atol=2**-25) for one in arrays if one.size == expected.size]
        assert any(near), name


def test_what_core_ml_cannot_hold(convolutional, tmp_path):
    with fails(ValueError):
        exported(convolutional, tmp_path / "out", target="coreml", preprocess="uint8", dynamic_batch=True)
    assert not list(tmp_path.iterdir())


_TWO_LIBRARIES = """
import sys
sys.path.insert(0, ".")
from mobileclip.export import targets
finders = list(sys.meta_path)
targets["coreml"].check()
import coremltools, transformers
print(coremltools.transformers, transformers.__name__, sys.meta_path == finders)
"""


def test_coremltools_does_without_the_other_libraries_that_it_converts_from(tmp_path):
    """It imports them for seconds, wherever they are installed; to everybody else they are there."""
    asking = "try:\n    import transformers\nexcept ImportError:\n    transformers = None\n"
    (tmp_path / "coremltools.py").write_text(asking)
    (tmp_path / "transformers.py").write_text("")
    done = preloaded().call("tests.preloaded:python", "-c", _TWO_LIBRARIES, folder=tmp_path)
    assert (done.status, done.output) == (0, "None transformers True\n")


@pytest.mark.slow
def test_core_ml_bounds_its_batches_and_keeps_what_it_cannot_measure_wider(convolutional, tmp_path):
    folder = exported(convolutional, tmp_path / "out", target="coreml", precision="int8", dynamic_batch=True)
    image, text = read_contract(folder).towers
    layers = weighted_layers(reparameterize(convolutional).image_encoder)
    grouped = {name for name, layer in layers if getattr(layer, "groups", 1) > 1}
    assert IS_MAC or set(image.float32) == grouped
    bounds = described(folder / text.file).description.input[0].type.multiArrayType.shapeRange.sizeRanges[0]
    assert (bounds.lowerBound, bounds.upperBound) == (1, LARGEST_BATCH)
