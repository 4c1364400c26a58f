"""Decoding no more than an augmentation looks at: the same pixels, or for `fast` nearly the same, sooner."""

from __future__ import annotations

import io
import itertools
from functools import cache
from pathlib import Path

import attrs
import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from mobileclip.data import (
    AugmentationParams,
    BadSampleError,
    augmentation_rng,
    crop_augmentation,
    datacompdr_augmentation,
    decode_image,
)
from mobileclip.data.images.jpeg import decode_jpeg, read_jpeg
from mobileclip.data.loading.replay import SourceImage
from mobileclip.inputs import DECODES
from tests.build.image_files import encoded as file_of, resized_frame
from tests.errors import fails

PICTURES = sorted((Path(__file__).parents[2] / "golden" / "augment" / "images").glob("*.png"))
# Modes, formats and options.
FORMS = {
    "jpeg": ("RGB", "JPEG", {}),
    "progressive": ("RGB", "JPEG", {"progressive": True}),
    "grey": ("L", "JPEG", {}),
    "cmyk": ("CMYK", "JPEG", {}),
    "png": ("RGB", "PNG", {}),
    "webp": ("RGB", "WEBP", {}),
}


@cache
def picture(place: int = 0, mode: str = "RGB") -> Image.Image:
    with Image.open(PICTURES[place]) as image:
        return image.convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    return file_of(image, kind, **({"quality": 90} if kind == "JPEG" else {}), **options)


def of_form(form: str, place: int = 0, size: tuple[int, int] | None = None) -> bytes:
    mode, kind, options = FORMS[form]
    image = picture(place, mode)
    return encoded(image.resize(size or image.size), kind, **options)


class TestHeader:
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    @pytest.mark.parametrize("restart", [{}, {"restart_marker_rows": 1}])
    def test_rows_above_the_cut_stay_the_same(self, mode, subsampling, restart):
        data = encoded(picture(1, mode), subsampling=subsampling, **restart)
        frame, whole = read_jpeg(data), np.asarray(Image.open(io.BytesIO(data)))
        assert frame.size == picture(1).size
        for bottom in range(1, frame.height + 1, 3):
            made, height = frame.above(bottom)
            cut = np.asarray(Image.open(io.BytesIO(made)))
            assert len(cut) == height
            assert bottom <= height <= bottom + 1.5 * frame.row_group + 1
            np.testing.assert_array_equal(cut[:bottom], whole[:bottom])

    def test_several_scans_are_not_cut(self):
        frame = read_jpeg(of_form("progressive"))
        assert frame.size == picture().size
        assert frame.above(10) == (frame.data, frame.height)

    def test_what_is_no_frame(self):
        for data in (of_form("png"), b"", of_form("jpeg")[:30], resized_frame(of_form("jpeg"), 0, 10)):
            assert read_jpeg(data) is None
        two = encoded(picture(), "MPO", save_all=True, append_images=[picture(1)])
        assert not any(read_jpeg(data).is_plain for data in (of_form("cmyk"), two))


class TestExact:
    @pytest.mark.parametrize("place", range(3))
    @pytest.mark.parametrize("form", FORMS)
    def test_the_pixels_of_the_augmentation(self, place, form):
        data, sizes = of_form(form, place), [datacompdr_augmentation(size) for size in (64, 48)]
        for index in range(6):
            source = SourceImage(data)
            assert source.size == picture(place).size
            params = sizes[0].sample(augmentation_rng(0, form, index), source.size)
            for augmentation, made in zip(sizes, source.replay(sizes, params), strict=True):
                np.testing.assert_array_equal(made, np.asarray(augmentation.apply(decode_image(data), params)))
                assert made.flags.writeable

    @pytest.mark.parametrize("missing", [1, 2, 3, 500])
    def test_truncated_files_are_found_even_where_the_crop_is_whole(self, missing):
        with fails(BadSampleError) as caught:
            SourceImage(of_form("jpeg")[:-missing]).replay(
                [crop_augmentation(16)], AugmentationParams(crop=(0, 0, 20, 20))
            )
        assert caught.value.reason == "image_truncated"


class TestSimplejpeg:
    """The same pixels, and the same refusals, as Pillow alone."""

    @pytest.fixture
    @staticmethod
    def without(monkeypatch):
        """Return what decodes without simplejpeg."""

        def refused(*_, **__):
            raise ValueError("none of its own")

        def decode(data, *arguments):
            with monkeypatch.context() as context:
                context.setattr(simplejpeg, "decode_jpeg", refused)
                return SourceImage(data).replay(*arguments)

        return decode

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    @pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
    @pytest.mark.parametrize("size", [(360, 360), (301, 197), (33, 71)])
    def test_equal_pixels(self, without, mode, options, size):
        data = encoded(picture(1, mode).resize(size), **options)
        for side, decode, index in itertools.product((16, 200), DECODES, range(3)):
            augmentation = datacompdr_augmentation(side)
            arguments = [augmentation], augmentation.sample(augmentation_rng(0, "x", index), size), decode
            (made,) = SourceImage(data).replay(*arguments)
            np.testing.assert_array_equal(made, without(data, *arguments)[0])
            assert made.flags.writeable

    @pytest.mark.parametrize("reduce", [1, 2, 4, 8])
    def test_equal_pixels_at_a_part_of_the_size(self, reduce):
        data = of_form("jpeg", size=(301, 197))
        made = decode_jpeg(data, (301, 197), reduce=reduce, strict=True)
        np.testing.assert_array_equal(made, np.asarray(decode_image(data, reduce=reduce)))

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_damage(self, without, data):
        changed = bytearray(of_form("jpeg", size=(80, 60)))
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        damaged = bytes(changed[: len(changed) - data.draw(st.sampled_from((0, 0, 1, 200)))])
        arguments = [crop_augmentation(32)], AugmentationParams(crop=(2, 3, 30, 40))

        def outcome(decode):
            try:
                return decode(damaged, *arguments)[0].tolist()
            except BadSampleError as error:
                return error.reason

        try:
            arguments[1].check_fits(SourceImage(damaged).size)
        except BadSampleError:
            pass
        except ValueError:
            return  # of another size than the crop was made for: refused before it is replayed
        made, expected = outcome(lambda one, *others: SourceImage(one).replay(*others)), outcome(without)
        # Pillow goes on reading behind the rows that are needed, and refuses some files for what it finds there.
        assert made == expected or (expected == "image_corrupt" and isinstance(made, list))


def differences(data: bytes, augmentation: object, params: AugmentationParams) -> np.ndarray:
    """Return how far the pixels of `fast` are from the exact ones."""
    exact, fast = (SourceImage(data).replay([augmentation], params, decode)[0] for decode in DECODES)
    assert fast.shape == (augmentation.size, augmentation.size, 3)
    return np.abs(exact.astype(float) - fast)


class TestFast:
    @pytest.fixture(scope="class")
    @staticmethod
    def large() -> bytes:
        return encoded(picture().resize((1400, 1400), Image.Resampling.BICUBIC))

    @pytest.mark.parametrize(
        ("side", "factor"), [(1400, 4), (1024, 4), (1023, 2), (512, 2), (511, 1), (256, 1), (100, 1)]
    )
    def test_no_more_is_left_out_than_the_output_can_miss(self, large, side, factor, monkeypatch):
        reductions, decode = [], simplejpeg.decode_jpeg

        def noted(*arguments, min_width, **options):
            reductions.append(1400 // min_width)
            return decode(*arguments, min_width=min_width, **options)

        monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
        params = AugmentationParams(crop=(0, 0, side, 1400))
        (made,) = SourceImage(large).replay([crop_augmentation(256)], params, "fast")
        assert (reductions, made.shape) == ([factor], (256, 256, 3))

    def test_near_the_exact_pixels_at_every_offset(self, large):
        """A crop that starts between the reduced pixels would be seen as an edge that moved."""
        for offset in range(8):
            params = AugmentationParams(crop=(offset, 2 * offset + 1, 1100 + offset, 1090 - offset))
            difference = differences(large, crop_augmentation(256), params)
            assert difference.mean() < 2
            assert 10 * np.log10(255**2 / (difference**2).mean()) > 36

    @pytest.mark.parametrize("form", ["jpeg", "png", "webp", "grey"])
    def test_what_is_not_reduced_is_exact_but_for_the_rounding_of_the_filter(self, form):
        params = AugmentationParams(crop=(11, 0, 240, 255))
        difference = differences(of_form(form), crop_augmentation(192), params)
        assert difference.max() <= 3
        assert difference.mean() < 0.3

    @pytest.mark.parametrize("form", ["progressive", "grey"])
    def test_other_jpegs(self, form):
        augmentation = datacompdr_augmentation(128)
        params = augmentation.sample(augmentation_rng(0, "a", 1), (700, 700))
        assert 0 < differences(of_form(form, size=(700, 700)), augmentation, params).mean() < 2

    def test_several_sizes_and_the_operations(self, large):
        augmentations = [datacompdr_augmentation(size) for size in (96, 64)]
        params = AugmentationParams(crop=(3, 5, 900, 800), operations=[(11, 100.0)])
        made = SourceImage(large).replay(augmentations, params, "fast")
        for augmentation, fast in zip(augmentations, made, strict=True):
            without = SourceImage(large).replay([augmentation], attrs.evolve(params, operations=()), "fast")[0]
            assert fast.shape == (augmentation.size, augmentation.size, 3)
            assert fast.flags.writeable
            np.testing.assert_array_equal(fast, np.where(without < 100, without, 255 - without))
