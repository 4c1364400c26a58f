"""Files that take pictures of any size, and resize them as the library does."""

import attrs
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from mobileclip.data import ImageTransform, load_image
from mobileclip.export import bundled_samples, read_contract, targets, verify_export
from mobileclip.export.towers import resized
from mobileclip.export.verify import check_resizing
from mobileclip.inputs import ImageInput
from tests.errors import fails
from tests.export.models import LEAST, PIXELS, SHALLOW, exported, seeing

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
    assert (resized(as_tensor(image), image_input)[0] - expected).abs().max() <= 1


@pytest.fixture(scope="module")
def model():
    """A convolution would not see that the edges are rough."""
    return seeing(attrs.evolve(SHALLOW, text=LEAST.text))


@pytest.fixture(scope="module")
def pictures_onnx(model, tmp_path_factory):
    return exported(model, tmp_path_factory.mktemp("pictures") / "out", preprocess="picture", dynamic_batch=True)


@torch.no_grad()
def test_pictures_of_any_size_give_the_models_embeddings(pictures_onnx, model):
    session = onnxruntime.InferenceSession(pictures_onnx / "image.onnx", providers=["CPUExecutionProvider"])
    for sides in SIDES:
        image = picture(*sides)
        (ours,) = session.run(None, {"pixels": as_tensor(image).numpy()})
        expected = model.encode_image(ImageTransform(PIXELS)(image)[None], normalize=True)[0]
        assert float(torch.from_numpy(ours[0]) @ expected) > 0.9999, sides
    (several,) = session.run(None, {"pixels": as_tensor(picture(90, 70)).repeat(3, 1, 1, 1).numpy()})
    assert several.shape == (3, 12)
    contract = read_contract(pictures_onnx)
    image, _ = contract.towers
    assert contract.image.preprocess == "picture"
    assert (image.input_dtype, image.input_shape) == ("uint8", (None, 3, None, None))
    assert verify_export(pictures_onnx).passed


def test_a_file_that_resizes_otherwise_is_told(pictures_onnx):
    image, _ = read_contract(pictures_onnx).towers
    run = targets.resolve("onnx").open(pictures_onnx / "image.onnx", image)
    crops = torch.stack([resized(as_tensor(picture(300, 200)), PIXELS)[0].byte()])
    check_resizing(run, crops, PIXELS, pictures_onnx)
    for change in (lambda pixels: pixels[:, :, ::3, ::3], lambda pixels: pixels.flip(3)):

        def other(pixels, change=change):
            return run(change(pixels).contiguous() if pixels.shape[-1] > PIXELS.size else pixels)

        with fails(ValueError, "190", "127"):
            check_resizing(other, crops, PIXELS, pictures_onnx)


def test_a_target_that_does_not_resize_says_so(model, tmp_path):
    for target in ("openvino", "litert"):
        with fails(ValueError, target):
            exported(model, tmp_path / "out", target=target, preprocess="picture")
