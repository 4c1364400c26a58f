"""Samples in memory: what is refused, whose image it is, and how images are decoded."""

import numpy as np
import pytest
import torch

from mobileclip.data import (
    AugmentationParams,
    BadSampleError,
    ImageLimits,
    ImageTextSample,
    check_source_image,
    decode_image,
    drop_blank,
    hash_image,
)
from tests.build.image_files import exif_segment, turned_notes, with_segments
from tests.data.made_samples import encoded, make_sample
from tests.errors import fails

TWO_SIZES = [AugmentationParams(crop=(0, 0, 1, 1), image_size=(9, height)) for height in (9, 9, 8)]


class TestConstruction:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"augmentations": ()}, "bad_augmentation"),
            ({"augmentations": TWO_SIZES}, "bad_augmentation"),
            *(({"image_sha256": value}, "bad_json") for value in ("", "0" * 63, "A" * 64, "g" * 64)),
            ({"image_extension": "psd"}, None),
            ({"captions": "a cat"}, None),  # one string is not a sequence of captions
            ({"image_emb": np.ones((2, 6))}, "row_count"),
            ({"text_emb": np.ones((1, 7))}, "wrong_dim"),
            ({"syn_captions": {}}, "missing_member"),
            ({"syn_captions": {"other": ("a",)}, "syn_text_emb": {"other": np.ones((1, 6))}}, "bad_json"),
        ],
    )
    def test_a_sample_that_disagrees_with_itself_is_refused(self, changes, reason):
        with fails(ValueError) as caught:
            make_sample(0, **changes)
        assert getattr(caught.value, "reason", None) == reason

    def test_tensors_are_taken_in_any_precision(self):
        emb = torch.randn(3, 6, dtype=torch.bfloat16)
        sample = make_sample(0, image_emb=emb)
        assert sample.image_emb.dtype == np.float32
        np.testing.assert_array_equal(sample.image_emb, emb.float().numpy())

    def test_synthetic_captions_need_no_embeddings(self):
        sample = ImageTextSample(key="k", captions=("a",), syn_captions={"syn_text": ["b", "c"], "syn_text_x": ()})
        assert sample.syn_captions == {"syn_text": ("b", "c"), "syn_text_x": ()}

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            *(({"captions": captions}, "no_caption") for captions in ((), ("a", " \n"), ("",))),
            ({"captions": ("\ud800",)}, "bad_text"),
            *(({"key": key}, "bad_key") for key in ("a.b", "", "__meta", "\ud800", "é" * 2000)),
            ({"syn_captions": {"syn_text": ("a", "\u3000")}}, "no_caption"),
            ({"syn_captions": {"syn_text": ("\udfff",)}}, "bad_text"),
            ({"syn_captions": {"more_text": ("a",)}}, "bad_json"),
            ({"syn_captions": {"syn_text_": ("a",)}}, "bad_json"),
            *(({"others": {name: b""}}, "bad_member") for name in ("", "JPG", "a/b")),
            *(({"others": {name: b""}}, "bad_member") for name in ("txt", "json", "paug.json", "reinforced", "webp")),
            ({"others": {"jpg": b""}, "image": b"x", "image_extension": "png"}, "bad_member"),
            ({"others": {"png": b""}, "image": b"x", "image_extension": "png"}, "bad_member"),
        ],
    )
    def test_plain_samples_that_cannot_be_stored_are_refused(self, changes, reason):
        with pytest.raises(BadSampleError) as caught:
            ImageTextSample(**({"key": "k", "captions": ("a",)} | changes))
        assert caught.value.reason == reason

    def test_other_members_are_taken(self):
        others = {"cls": b"7", "mask.png": b"x", "png": b"y", "npz": b"features", "_x": b""}
        sample = ImageTextSample(key="k", captions=("a",), image=b"i", others=others)
        assert sample.others == others

    def test_drop_blank(self):
        assert drop_blank(["a", "", " b ", "\t\u2003"]) == ("a", " b ")


class TestSourceImage:
    """Whether the image at hand is the one that was reinforced."""

    image = encoded(40, 30, seed=0)

    def test_the_very_image(self):
        for sha256 in (None, hash_image(self.image)):
            check_source_image(make_sample(0, image_sha256=sha256), self.image, (40, 30))

    @pytest.mark.parametrize(
        ("changes", "size", "message"),
        [
            ({"image_sha256": "0" * 64}, (40, 30), "with SHA-256 000000000000, but this image has"),
            ({}, (20, 15), "made for an image of 40x30 pixels, but this image has 20x15"),
            ({}, (80, 60), "made for an image of 40x30 pixels, but this image has 80x60"),
            ({"augmentations": [AugmentationParams(crop=(0, 3, 5, 38))] * 3}, (40, 30), "exceeds the image of 40x30"),
        ],
    )
    def test_another_image(self, changes, size, message):
        with pytest.raises(BadSampleError, match=message) as caught:
            check_source_image(make_sample(0, **changes), self.image, size)
        assert caught.value.reason == "wrong_image"


class TestDecodeImage:
    def test_orientation_stays_as_encoded_where_that_is_asked_for(self):
        data = with_segments(encoded(8, 4, kind="jpeg"), exif_segment(turned_notes(6)))
        assert decode_image(data, orient=False).size == (8, 4)
        assert decode_image(data).size == (4, 8)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "image_not_an_image"),
            (b"not an image", "image_not_an_image"),
            (encoded(10, 10)[:200], "image_truncated"),
            (encoded(10, 10, kind="jpeg")[:-100], "image_truncated"),
            (encoded(10, 11), "image_too_large"),
        ],
    )
    def test_broken_bytes(self, data, reason):
        with pytest.raises(BadSampleError) as caught:
            decode_image(data, limits=ImageLimits(num_pixels=100))
        assert caught.value.reason == reason
