"""Files that take pictures of any size, and resize them as the library does."""

import attrs
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from mobileclip.data import ImageTransform, load_image
from mobileclip.export import ExportSpec, bundled_samples, export_model, read_contract, targets, verify_export
from mobileclip.export.towers import resized
from mobileclip.export.verify import check_resizing
from mobileclip.inputs import ImageInput
from tests.errors import fails
from tests.export.models import LEAST, PIXELS, SHALLOW, few_samples, seeing

SIDES = [(288, 433), (433, 288), (180, 97), (97, 181), (64, 64), (65, 64), (63, 64), (2, 9), (1200, 801)]


def picture(width, height):
    """A real picture, of another shape."""
    return load_image(bundled_samples().images[0]).resize((width, height), Image.Resampling.LANCZOS)


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_pixels_are_pillows_within_a_level(sides, interpolation):
    image_input, image = ImageInput(size=64, interpolation=interpolation), picture(*sides)
    expected = torch.from_numpy(ImageTransform(image_input).pixels(image)).permute(2, 0, 1).float()
    difference = (resized(as_tensor(image), image_input)[0] - expected).abs()
    assert difference.max() <= 1


@pytest.fixture(scope="module")
def model():
    """A convolution would not see that the edges are rough."""
    return seeing(attrs.evolve(SHALLOW, text=LEAST.text))


@pytest.fixture(scope="module")
def pictures_onnx(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures") / "out"
    spec = ExportSpec(output=out, target="onnx", preprocess="picture", dynamic_batch=True)
    export_model(model, spec, samples=few_samples())
    return out


@torch.no_grad()
def test_pictures_of_any_size_give_the_models_embeddings(pictures_onnx, model):
    session = onnxruntime.InferenceSession(pictures_onnx / "image.onnx", providers=["CPUExecutionProvider"])
    transform = ImageTransform(PIXELS)
    for sides in SIDES:
        image = picture(*sides)
        (ours,) = session.run(None, {"pixels": as_tensor(image).numpy()})
        expected = model.encode_image(transform(image)[None], normalize=True)[0]
        assert float(torch.from_numpy(ours[0]) @ expected) > 0.9999, sides
    (several,) = session.run(None, {"pixels": as_tensor(picture(90, 70)).repeat(3, 1, 1, 1).numpy()})
    assert several.shape == (3, 12)


def test_the_contract_says_that_any_size_comes_in(pictures_onnx):
    contract = read_contract(pictures_onnx)
    image = next(file for file in contract.towers if file.tower == "image")
    assert contract.image.preprocess == "picture"
    assert (image.input_dtype, image.input_shape) == ("uint8", (None, 3, None, None))
    assert verify_export(pictures_onnx).passed


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda pixels: pixels[:, :, ::3, ::3], id="no antialiasing"),
        pytest.param(lambda pixels: pixels.flip(3), id="mirrored"),
    ],
)
def test_a_file_that_resizes_otherwise_is_told(pictures_onnx, change):
    file = next(file for file in read_contract(pictures_onnx).towers if file.tower == "image")
    run = targets.resolve("onnx").open(pictures_onnx / "image.onnx", file)
    crops = torch.stack([resized(as_tensor(picture(300, 200)), PIXELS)[0].byte()])
    check_resizing(run, crops, PIXELS, pictures_onnx)

    def other(pixels):
        return run(change(pixels).contiguous() if pixels.shape[-1] > PIXELS.size else pixels)

    with fails(ValueError, "190", "127"):
        check_resizing(other, crops, PIXELS, pictures_onnx)


@pytest.mark.parametrize("target", ["openvino", "litert"])
def test_a_target_that_does_not_resize_says_so(model, tmp_path, target):
    spec = ExportSpec(output=tmp_path / "out", target=target, preprocess="picture")
    with fails(ValueError, target):
        export_model(model, spec)
