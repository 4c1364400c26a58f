from __future__ import annotations

import copy
import io
import pickle
import warnings

import numpy as np
import PIL
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from PIL import Image, ImageOps

from mobileclip.data import ImageError, ImageLimits, ImageTransform, load_image
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput
from tests.build.image_files import encoded, png
from tests.errors import fails
from tests.lazily import lazily

transforms = lazily("torchvision.transforms")

PILLOW = tuple(map(int, PIL.__version__.split(".")[:1]))
PLAIN = ImageInput(size=32)
NORMALIZED = ImageInput(size=32, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD)


def noise(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise with hard edges: every tap of the filter and every rounding shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[pixels < 40] = 0
    pixels[pixels > 215] = 255
    return Image.fromarray(pixels).convert(mode)


def torchvision_transform(contract: ImageInput) -> transforms.Compose:
    interpolation = transforms.InterpolationMode(contract.interpolation)
    steps = [
        transforms.Resize(contract.size, interpolation=interpolation),
        transforms.CenterCrop(contract.size),
        transforms.ToTensor(),
    ]
    if (contract.mean, contract.std) != ((0, 0, 0), (1, 1, 1)):
        steps.append(transforms.Normalize(contract.mean, contract.std))
    return transforms.Compose(steps)


def same_as_torchvision(image: Image.Image, contract: ImageInput) -> None:
    ours, theirs = ImageTransform(contract), torchvision_transform(contract)
    result, expected = ours(image), theirs(image)
    assert result.dtype == torch.float32
    assert result.shape == (3, contract.size, contract.size)
    assert result.is_contiguous()
    assert torch.equal(result, expected)
    pixels = ours.pixels(image)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(transforms.Compose(theirs.transforms[:2])(image)))


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    size=st.integers(1, 80),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    statistics=st.sampled_from([((0, 0, 0), (1, 1, 1)), (OPENAI_MEAN, OPENAI_STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]),
)
def test_equals_torchvision(width, height, size, interpolation, statistics):
    assume(size * size * max(width, height) / min(width, height) < 300_000)
    mean, std = statistics
    contract = ImageInput(size=size, interpolation=interpolation, mean=mean, std=std)
    same_as_torchvision(noise(width, height, seed=width * 151 + height), contract)


EDGES = [(1, 1), (1, 2), (2, 1), (1, 100), (100, 1), (3000, 3), (3, 3001), (31, 32), (33, 32)]
PHOTOS = [(640, 480), (480, 641), (1023, 767), (256, 256), (224, 224), (257, 255), (100, 75), (17, 33), (2048, 300)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "side"), [*((one, 32) for one in EDGES), *((one, 256) for one in PHOTOS)])
def test_equals_torchvision_at_the_edges_and_at_a_model_s_size(size, side, interpolation):
    same_as_torchvision(noise(*size), ImageInput(size=side, interpolation=interpolation))


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "CMYK", "YCbCr"])
def test_other_modes_become_rgb_first(mode):
    image = noise(50, 40, mode=mode)
    assert torch.equal(ImageTransform(PLAIN)(image), torchvision_transform(PLAIN)(image.convert("RGB")))


def test_normalize_takes_batches_and_tensors_and_leaves_them_alone():
    transform = ImageTransform(NORMALIZED)
    images = [noise(40, 30, seed=seed) for seed in range(3)]
    pixels = np.stack([transform.pixels(image) for image in images])
    before = pixels.copy()
    batch = transform.normalize(pixels)
    assert torch.equal(batch, torch.stack([transform(image) for image in images]))
    assert torch.equal(batch, transform.normalize(torch.from_numpy(pixels)))
    assert torch.equal(batch[None], transform.normalize(pixels[None]))
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 4, 3), np.float32), ((3, 4, 4), np.uint8), ((4, 4, 4), np.uint8), ((4, 3), np.uint8)],
)
def test_normalize_refuses_other_pixels(shape, dtype):
    with fails(ValueError):
        ImageTransform(PLAIN).normalize(np.zeros(shape, dtype))


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4, 3), np.float32), ((3, 4, 5), np.uint8), ((2, 4, 4, 3), np.uint8)])
def test_arrays_that_are_no_picture_are_refused(shape, dtype):
    with fails(ImageError, "float32" if dtype is np.float32 else str(shape)) as caught:
        ImageTransform(PLAIN)(np.zeros(shape, dtype))
    assert caught.value.reason in ("unsupported_mode", "not_an_image")


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (0, 10), (10, 0)])
def test_extreme_shapes_are_refused_before_memory_is_taken(size):
    with fails(ImageError, f"{size[0]} x {size[1]}") as caught:
        ImageTransform(ImageInput(size=256))(Image.new("RGB", size))
    assert caught.value.reason == "extreme_shape"


def test_transform_pickles_compares_and_shows_its_contract():
    transform = ImageTransform(NORMALIZED)
    twin = pickle.loads(pickle.dumps(transform))
    assert twin == transform == copy.deepcopy(transform)
    assert twin != ImageTransform(PLAIN)
    assert torch.equal(twin(noise(40, 30)), transform(noise(40, 30)))
    with pytest.raises(TypeError, match="image_input"):
        ImageTransform(256)


# What is read.


def rgb(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_every_kind_of_source(tmp_path, kind):
    image = noise(20, 10)
    data, transform, path = encoded(image, kind), ImageTransform(PLAIN), tmp_path / "image"
    path.write_bytes(data)
    held = [bytearray(data), memoryview(data), io.BytesIO(data), image, np.asarray(image)]
    with path.open("rb") as file:
        for source in (path, str(path), data, file, *held):
            for orient in (True, False):
                assert np.array_equal(rgb(load_image(source, orient=orient)), np.asarray(image))
            np.testing.assert_array_equal(transform.pixels(source), transform.pixels(data))
            assert torch.equal(transform(source), transform(data))


def test_what_is_read_outlives_its_file(tmp_path):
    path = tmp_path / "image.png"
    noise(20, 10).save(path)
    images = [load_image(path), load_image(path, orient=False)]
    path.unlink()
    for image in images:
        assert np.array_equal(rgb(pickle.loads(pickle.dumps(image))), np.asarray(noise(20, 10)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    image = noise(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    upright = rgb(load_image(data))
    assert np.array_equal(upright, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert upright.shape[:2] == ((24, 16) if orientation >= 5 else (16, 24))
    assert np.array_equal(rgb(load_image(data, orient=False)), np.asarray(image))
    assert np.array_equal(rgb(load_image(Image.open(io.BytesIO(data)))), upright), "an image that somebody opened"
    assert np.array_equal(rgb(load_image(Image.open(io.BytesIO(data)).convert("RGB"))), upright)
    for once in (load_image(data), load_image(data, orient=False), load_image(Image.open(io.BytesIO(data)))):
        assert np.array_equal(rgb(load_image(once)), rgb(once)), "what was read is not turned again"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0", b"Exif\0\0" + b"\xff" * 40]
)
def test_broken_orientation_turns_nothing(exif):
    data = encoded(noise(24, 16), "JPEG", exif=exif)
    assert np.array_equal(rgb(load_image(data)), rgb(load_image(data, orient=False)))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("L", "TIFF"), ("1", "TIFF"), ("CMYK", "TIFF"), ("CMYK", "JPEG")),
        pytest.param("YCbCr", "TIFF", marks=pytest.mark.skipif(PILLOW < (13,), reason="Pillow 12 writes too little")),
    ],
)
def test_gray_and_print_colours_are_converted(mode, kind):
    image = noise(20, 10, mode=mode)
    data = encoded(image, kind)
    assert np.array_equal(rgb(load_image(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.array_equal(rgb(load_image(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_dropped():
    colour, alpha = noise(20, 10), noise(20, 10, seed=1, mode="L")
    image = colour.copy()
    image.putalpha(alpha)
    assert np.array_equal(rgb(load_image(encoded(image, "PNG"))), np.asarray(colour))
    gray = colour.convert("L")
    gray.putalpha(alpha)
    assert np.array_equal(rgb(load_image(encoded(gray, "PNG"))), np.asarray(colour.convert("L").convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 7])])
def test_palette_with_transparency(transparency):
    image = noise(20, 10).quantize(16)
    data = encoded(image, "PNG", transparency=transparency)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert np.array_equal(rgb(load_image(data)), np.asarray(image.convert("RGB")))


def test_first_frame_of_several():
    frames = [noise(20, 10, seed=seed).quantize(64) for seed in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(rgb(load_image(data)), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8(kind):
    values = np.array([[0, 127, 128, 129, 257, 32767, 32768, 40000, 65406, 65407, 65535]], dtype=np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    wide = Image.fromarray(values.astype(np.int32))
    big_endian = Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes())
    for source in (encoded(Image.fromarray(values), kind), wide, big_endian):
        assert np.array_equal(rgb(load_image(source)), expected)
    assert np.asarray(load_image(Image.new("I", (4, 4)))).max() == 0, "black is black in any range"


@pytest.mark.parametrize(
    ("mode", "value"),
    [("F", 0.5), ("I", 70_000), ("I", -1), ("I", 200), ("La", 0)],
    ids=["float", "32 bits", "negative", "perhaps 8 bits", "premultiplied"],
)
def test_no_rgb_in_it(mode, value):
    refused(Image.new(mode, (4, 4), value), "unsupported_mode")


# What is refused.


def refused(source: object, reason: str, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(source)
    assert isinstance(caught.value, ValueError)
    assert caught.value.reason == reason
    for word in words:
        assert word in str(caught.value)


def half(kind: str) -> bytes:
    data = encoded(noise(64, 64), kind)
    return data[: len(data) // 2]


def with_a_wrong_byte() -> bytes:
    data = bytearray(encoded(noise(64, 64), "PNG"))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (None, "missing_file", ["does not exist"]),
        *((data, "not_an_image", []) for data in (b"", b"<html>not found</html>", b"\xff\xd8", bytes(1000))),
        *((half(kind), "truncated", ["fetch it again"]) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF")),
        (with_a_wrong_byte(), "corrupt", ["cannot be decoded"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, data, reason, words):
    path = tmp_path / "page.jpg"
    if data is not None:
        path.write_bytes(data)
        refused(data, reason, f"image of {len(data)} bytes", *words)
        with path.open("rb") as file:
            refused(file, reason, "page.jpg", *words)
    refused(path, reason, "page.jpg", *words)
    refused(tmp_path, "unreadable", tmp_path.name)


def test_truncated_pil_image_that_was_not_decoded_yet():
    refused(Image.open(io.BytesIO(half("JPEG"))), "truncated")
    with fails(ImageError):
        ImageTransform(PLAIN)(Image.open(io.BytesIO(half("JPEG"))))


@pytest.mark.parametrize("num_limits", [1.01, 1.5, 3])
def test_too_large(num_limits):
    with warnings.catch_warnings():
        # Pillow warns of what is between its own limit and twice that.
        warnings.simplefilter("ignore")
        height = int(num_limits * ImageLimits().num_pixels / 10_000)
        refused(png(10_000, height, data=b""), "too_large", "too large")


def test_an_image_that_is_open_has_no_limit():
    image = noise(40, 30)
    assert np.array_equal(rgb(load_image(image, limits=ImageLimits(num_pixels=1))), np.asarray(image))


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], torch.zeros(3, 4, 4)])
def test_not_a_source(source):
    with fails(ImageError, type(source).__name__) as caught:
        load_image(source)
    assert caught.value.reason == "not_an_image"
