"""Pictures become RGB, and a tower's input as torchvision makes it: to the bit."""

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

from mobileclip.data import ImageError, ImageLimits, ImageTransform, load_image, normalize_pixels
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput
from tests.build.image_files import encoded, noise as plain_noise, png, turned_notes
from tests.errors import fails
from tests.lazily import lazily
from tests.odd_images import glass, stamp

transforms = lazily("torchvision.transforms")

PLAIN = ImageInput(size=32)
STATISTICS = [
    *(((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), (OPENAI_MEAN, OPENAI_STD)),
    *(((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
]
SALMON = (250, 128, 114)
# Every value in every channel.
PIXELS = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(4, 16, 16, 3)
FORMATS = (torch.contiguous_format, torch.channels_last)


def noise(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise with hard edges: every tap of the filter and every rounding shows."""
    pixels = np.array(plain_noise(width, height, seed=seed))
    pixels[pixels < 40] = 0
    pixels[pixels > 215] = 255
    return Image.fromarray(pixels).convert(mode)


def rgb(source: object, **options: object) -> np.ndarray:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def same(source: object, expected: Image.Image, **options: object) -> None:
    np.testing.assert_array_equal(rgb(source, **options), np.asarray(expected))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def same_as_torchvision(image: Image.Image, contract: ImageInput) -> None:
    steps = [
        transforms.Resize(contract.size, interpolation=transforms.InterpolationMode(contract.interpolation)),
        transforms.CenterCrop(contract.size),
    ]
    expected = transforms.Compose(steps)(image)
    result = ImageTransform(contract)(image)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(contract.mean, contract.std)])
    assert torch.equal(result, theirs(expected))
    pixels = ImageTransform(contract).pixels(image)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(expected))


@settings(max_examples=100, deadline=None)
@given(
    *(st.integers(1, 150) for _ in "wh"), st.integers(1, 80), st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from(STATISTICS),
)  # fmt: skip
def test_equals_torchvision(width, height, size, interpolation, statistics):
    assume(size * size * max(width, height) / min(width, height) < 300_000)
    contract = ImageInput(size=size, interpolation=interpolation, mean=statistics[0], std=statistics[1])
    same_as_torchvision(noise(width, height, seed=width * 151 + height), contract)


EDGES = [(1, 1), (1, 2), (2, 1), (1, 100), (100, 1), (3000, 3), (3, 3001), (31, 32), (33, 32)]
PHOTOS = [(640, 480), (480, 641), (1023, 767), (256, 256), (224, 224), (257, 255), (100, 75), (17, 33), (2048, 300)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("sizes", "side"), [(EDGES, 32), (PHOTOS, 256)])
def test_equals_torchvision_at_the_edges_and_at_a_model_s_size(sizes, side, interpolation):
    for size in sizes:
        same_as_torchvision(noise(*size), ImageInput(size=side, interpolation=interpolation))


@pytest.mark.parametrize(("mean", "std"), STATISTICS)
def test_normalising_a_batch_equals_torchvision_in_every_memory_format(mean, std):
    contract = ImageInput(size=16, mean=mean, std=std)
    expected = transforms.Normalize(mean, std)(PIXELS.permute(0, 3, 1, 2) / 255)
    for order in FORMATS:
        pixels = PIXELS.permute(0, 3, 1, 2).contiguous(memory_format=order)
        before = pixels.clone()
        for memory_format in FORMATS:
            images = normalize_pixels(pixels, contract, memory_format=memory_format)
            assert torch.equal(images, expected)
            assert (images.dtype, images.is_contiguous(memory_format=memory_format)) == (torch.float32, True)
        assert torch.equal(pixels, before)
    for pixels in (PIXELS, PIXELS.numpy(), PIXELS[None]):
        assert torch.equal(ImageTransform(contract).normalize(pixels).reshape(expected.shape), expected)


@pytest.mark.gpu
def test_a_gpu_normalises_alike(gpu):
    pixels = PIXELS.permute(0, 3, 1, 2)
    for mean, std in STATISTICS:
        contract = ImageInput(size=16, mean=mean, std=std)
        images = normalize_pixels(pixels.to(gpu), contract).cpu()
        torch.testing.assert_close(images, normalize_pixels(pixels, contract), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("normalize", "good", "shapes"),
    [
        (lambda pixels: normalize_pixels(pixels, PLAIN), (1, 3, 4, 4), [(3, 4), (4, 3, 3), (2, 4, 4, 3)]),
        (ImageTransform(PLAIN).normalize, (4, 4, 3), [(4, 3), (3, 4, 4), (4, 4, 4)]),
    ],
)
def test_what_is_no_batch_of_pixels_is_refused(normalize, good, shapes):
    for shape in shapes:
        with fails(ValueError, str(shape)):
            normalize(torch.zeros(shape, dtype=torch.uint8))
    with fails(ValueError, "float32"):
        normalize(torch.zeros(good))


def test_a_transform_is_a_value():
    transform = ImageTransform(ImageInput(size=32, mean=OPENAI_MEAN, std=OPENAI_STD))
    assert pickle.loads(pickle.dumps(transform)) == transform == copy.deepcopy(transform) != ImageTransform(PLAIN)
    with fails(TypeError, "image_input"):
        ImageTransform(256)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_every_kind_of_source_is_read_and_outlives_its_file(tmp_path, kind):
    image, path = noise(20, 10), tmp_path / "image"
    data, transform = encoded(image, kind), ImageTransform(PLAIN)
    path.write_bytes(data)
    held = [bytearray(data), memoryview(data), io.BytesIO(data), image, np.asarray(image)]
    with path.open("rb") as file:
        for source in (path, str(path), data, file, *held):
            for orient in (True, False):
                same(source, image, orient=orient)
            np.testing.assert_array_equal(transform.pixels(source), transform.pixels(data))
            assert torch.equal(transform(source), transform(data))
    read = load_image(path)
    path.unlink()
    same(pickle.loads(pickle.dumps(read)), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    image = noise(24, 16)
    data = encoded(image, "PNG", exif=b"Exif\0\0" + turned_notes(orientation))
    upright = ImageOps.exif_transpose(opened(data))
    assert upright.size == ((16, 24) if orientation >= 5 else (24, 16))
    for source in (data, opened(data), opened(data).convert("RGB")):
        same(source, upright)
    same(data, image, orient=False)
    for once in (load_image(data), load_image(data, orient=False), load_image(opened(data))):
        same(once, once)  # what was read is not turned again


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("exif", [b"garbage", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0", b"\xff" * 40])
def test_broken_orientation_turns_nothing(exif):
    data = encoded(noise(24, 16), "JPEG", exif=b"Exif\0\0" + exif)
    same(data, load_image(data, orient=False))
    same(opened(data), load_image(data, orient=False))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "TIFF"), ("1", "TIFF"), ("CMYK", "TIFF"), ("CMYK", "JPEG"), ("L", "JPEG"), ("YCbCr", "TIFF")],
)
def test_gray_and_print_colours_are_converted(mode, kind):
    image = noise(50, 40, mode=mode)
    same(image, image.convert("RGB"))
    transform = ImageTransform(PLAIN)
    assert torch.equal(transform(image), transform(image.convert("RGB")))
    if mode != "YCbCr" or int(PIL.__version__.partition(".")[0]) >= 13:  # Pillow 12 writes too little of it
        data = encoded(image, kind)
        same(data, opened(data).convert("RGB"))


def transparent_files():
    """A black disc on nothing in every mode that a file may have it in."""
    color = stamp()
    mask = np.asarray(color)[..., 3]
    keyed = Image.fromarray(np.where(mask > 0, 0, 200).astype(np.uint8))
    sixteen = Image.fromarray(np.where(mask > 0, 0, 51400).astype(np.uint16))
    return {
        "RGBA": encoded(color, "PNG"),
        "LA": encoded(color.convert("LA"), "PNG"),
        "P": encoded(color.quantize(4), "PNG"),
        "L, one grey transparent": encoded(keyed, "PNG", transparency=200),
        "RGB, one colour transparent": encoded(keyed.convert("RGB"), "PNG", transparency=(200, 200, 200)),
        "I;16, one grey transparent": encoded(sixteen, "PNG", transparency=51400),
        "GIF": encoded(color, "GIF"),
        "WebP": encoded(color, "WEBP", lossless=True),
    }


def test_a_background_shows_in_every_mode():
    disc = np.asarray(stamp())[..., 3] > 0
    for mode, data in transparent_files().items():
        for source in (data, opened(data)):
            found = rgb(source, background=SALMON)
            assert (found[~disc] == SALMON).all(), mode
            assert (found[disc] == 0).all(), mode


@pytest.mark.parametrize("name", ["white", "black", "#fa8072"])
def test_every_alpha_is_mixed_with_the_background_that_a_contract_names(name):
    contract = ImageInput(size=32, background=name)
    pixels, background = np.asarray(glass()).astype(float), np.array(contract.background_color)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + background * (1 - alpha)
    found = ImageTransform(contract).pixels(encoded(glass(), "PNG"))
    assert np.abs(found - expected).max() <= 0.51
    same(encoded(glass(), "PNG"), Image.fromarray(found), background=contract.background_color)


def test_without_a_background_transparency_is_dropped():
    for colour in (noise(20, 10), noise(20, 10, mode="L")):
        image = colour.copy()
        image.putalpha(noise(20, 10, seed=1, mode="L"))
        same(encoded(image, "PNG"), colour.convert("RGB"))
    palette = noise(20, 10).quantize(16)
    for transparency in (3, bytes([0, 128, 255, 7])):
        same(encoded(palette, "PNG", transparency=transparency), palette.convert("RGB"))


def test_first_frame_of_several():
    frames = [noise(20, 10, seed=seed).quantize(64) for seed in range(3)]
    same(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), frames[0].convert("RGB"))


def test_16_bits_are_scaled_to_8():
    values = np.array([[0, 127, 128, 129, 257, 32767, 32768, 40000, 65406, 65407, 65535]], dtype=np.uint16)
    expected = Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    big_endian = Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes())
    files = [encoded(Image.fromarray(values), kind) for kind in ("PNG", "TIFF")]
    for source in (*files, Image.fromarray(values.astype(np.int32)), big_endian):
        same(source, expected)
    assert rgb(Image.new("I", (4, 4))).max() == 0, "black is black in any range"


# What is refused.


def refused(source: object, reason: str, *words: str) -> None:
    with fails(ImageError, *words) as caught:
        load_image(source)
    assert caught.value.reason == reason


def half(kind: str) -> bytes:
    data = encoded(noise(64, 64), kind)
    return data[: len(data) // 2]


def with_a_wrong_byte() -> bytes:
    data = bytearray(encoded(noise(64, 64), "PNG"))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        *((data, "not_an_image") for data in (b"", b"<html>not found</html>", b"\xff\xd8", bytes(1000))),
        *((half(kind), "truncated") for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF")),
        (with_a_wrong_byte(), "corrupt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, data, reason):
    path = tmp_path / "page.jpg"
    refused(path, "missing_file", "page.jpg")
    refused(tmp_path, "unreadable", tmp_path.name)
    path.write_bytes(data)
    refused(data, reason, f"image of {len(data)} bytes")
    refused(path, reason, "page.jpg")
    with path.open("rb") as file:
        refused(file, reason, "page.jpg")


@pytest.mark.parametrize(
    ("source", "reason", "word"),
    [
        *((Image.new(mode, (4, 4), value), "unsupported_mode", "") for mode, value in (("F", 0.5), ("La", 0))),
        *((Image.new("I", (4, 4), value), "unsupported_mode", "") for value in (70_000, -1, 200)),
        *((np.zeros(shape, np.uint8), "unsupported_mode", str(shape)) for shape in ((3, 4, 5), (2, 4, 4, 3))),
        (np.zeros((4, 4, 3), np.float32), "unsupported_mode", "float32"),
        *((source, "not_an_image", type(source).__name__) for source in (None, 3, ["a.jpg"], torch.zeros(3, 4, 4))),
        (opened(half("JPEG")), "truncated", ""),  # which was not decoded yet
    ],
)
def test_what_is_no_picture_is_refused(source, reason, word):
    refused(source, reason, word)
    with fails(ImageError):
        ImageTransform(PLAIN)(source)


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (0, 10), (10, 0)])
def test_extreme_shapes_are_refused_before_memory_is_taken(size):
    with fails(ImageError, f"{size[0]} x {size[1]}") as caught:
        ImageTransform(ImageInput(size=256))(Image.new("RGB", size))
    assert caught.value.reason == "extreme_shape"


@pytest.mark.parametrize("num_limits", [1.01, 1.5, 3])
def test_files_that_are_too_large_are_refused_and_what_is_open_has_no_limit(num_limits):
    with warnings.catch_warnings():
        # Pillow warns of what is between its own limit and twice that.
        warnings.simplefilter("ignore")
        refused(png(10_000, int(num_limits * ImageLimits().num_pixels / 10_000), data=b""), "too_large")
    same(noise(40, 30), noise(40, 30), limits=ImageLimits(num_pixels=1))
