"""Reinforced samples: both public layouts read and written, and what is wrong with a broken one."""

from __future__ import annotations

import gzip
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.data import AugmentationParams, BadSampleError, ImageTextSample, ReinforcedSample, decode_image
from mobileclip.data.members import parse_reinforced_sample, parse_sample, sample_members
from tests.data.samples import encoded, golden_members, make_sample


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def pth(value: object, times: int = 1) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    data = stream.getvalue()
    for _ in range(times):
        data = gzip.compress(data)
    return data


def stored_arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as arrays:
        return dict(arrays)


def embeddings(*rows: int, dim: int = 4) -> list[np.ndarray]:
    return [np.random.default_rng(count).standard_normal((count, dim)).astype(np.float32) for count in rows]


def assert_same(first: ReinforcedSample, second: ReinforcedSample, tolerance: float = 0.0) -> None:
    for name in ("key", "captions", "image", "image_extension", "url", "metadata", "augmentations", "syn_captions"):
        assert getattr(first, name) == getattr(second, name), name
    np.testing.assert_allclose(first.image_emb, second.image_emb, rtol=tolerance)
    np.testing.assert_allclose(first.text_emb, second.text_emb, rtol=tolerance)
    assert first.syn_text_emb.keys() == second.syn_text_emb.keys()
    for name, emb in first.syn_text_emb.items():
        np.testing.assert_allclose(emb, second.syn_text_emb[name], rtol=tolerance)


class TestGolden:
    @pytest.mark.parametrize(("name", "image"), [("npz", True), ("bf16", True), ("noimage_bf16", False)])
    def test_members_are_understood(self, name, image):
        for key, members in golden_members(name).items():
            sample = parse_reinforced_sample(key, members)
            assert (sample.image is not None) == image
            assert sample.captions == (members["txt"].decode(),)
            assert sample.url == members["url.txt"].decode()
            assert sample.metadata == json.loads(members["json"])
            assert list(sample.syn_captions["syn_text"]) == json.loads(members["syn.json"])["syn_text"]
            stored = json.loads(members["paug.json"])["param_aug"]
            assert [list(params.crop) for params in sample.augmentations] == [crop for crop, _ in stored]
            assert sample.image_emb.shape == (3, 1536)
            assert sample.text_emb.shape == (1, 1536)
            assert sample.syn_text_emb["syn_text"].shape == (5, 1536)
            assert sample.image_emb.dtype == np.float32
            norms = np.linalg.norm(sample.image_emb.reshape(3, 2, 768), axis=2)
            np.testing.assert_allclose(norms, 1, atol=2e-3)

    def test_rows_go_to_their_captions(self):
        for key, members in golden_members("npz").items():
            sample = parse_reinforced_sample(key, members)
            arrays = stored_arrays(members["npz"])
            np.testing.assert_array_equal(sample.image_emb, arrays["image_emb"])
            np.testing.assert_array_equal(sample.text_emb, arrays["text_emb"][:1])
            np.testing.assert_array_equal(sample.syn_text_emb["syn_text"], arrays["text_emb"][1:])

    @pytest.mark.parametrize(("name", "layout"), [("npz", "npz"), ("bf16", "pth.gz"), ("noimage_bf16", "pth.gz")])
    def test_what_is_written_has_the_public_members_and_dtypes(self, name, layout):
        for key, members in golden_members(name).items():
            sample = parse_reinforced_sample(key, members)
            written = sample_members(sample, layout)
            assert written.keys() == members.keys()
            for extension in members.keys() - {layout}:
                if extension.endswith("json"):
                    assert json.loads(written[extension]) == json.loads(members[extension])
                else:
                    assert written[extension] == members[extension]
            assert_same(parse_reinforced_sample(key, written), sample)

    @pytest.mark.parametrize("layout", ["npz", "pth.gz"])
    def test_the_public_loader_reads_what_is_written(self, layout):
        """Index the members as the release does, after webdataset's own decoding."""
        from webdataset.autodecode import Decoder

        key, members = next(iter(golden_members("npz").items()))
        sample = parse_reinforced_sample(key, members)
        written = sample_members(sample, layout)
        decoded = Decoder([])({"__key__": key, **{name: written[name] for name in ("paug.json", "syn.json", layout)}})
        arrays = decoded[layout]
        expected_dtype = np.dtype("float32") if layout == "npz" else torch.bfloat16
        for index, params in enumerate(decoded["paug.json"]["param_aug"]):
            assert tuple(params[0]) == sample.augmentations[index].crop
            assert arrays["image_emb"].dtype == expected_dtype
        all_texts = arrays["text_emb"]
        assert all_texts.shape == (1 + len(decoded["syn.json"]["syn_text"]), 1536)
        np.testing.assert_allclose(
            torch.as_tensor(all_texts[1 + 2]).float(), sample.syn_text_emb["syn_text"][2], rtol=2**-8
        )


class TestRoundTrip:
    @pytest.mark.parametrize(("layout", "tolerance"), [("npz", 0.0), ("pth.gz", 2**-8)])
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"image": None, "image_extension": "jpg"},
            {"url": "https://example.com/ä.jpg", "metadata": {"uid": "a", "nested": {"sha256": "0"}}},
            {"captions": ("Zürich 🏔", "second\nline", "third"), "text_emb": np.arange(18.0).reshape(3, 6)},
            {"syn_captions": {}, "syn_text_emb": {}},
            {
                "syn_captions": {"syn_text_coca": ("a", "b"), "syn_text_blip2": ("c",)},
                "syn_text_emb": {"syn_text_coca": np.ones((2, 6)), "syn_text_blip2": np.zeros((1, 6))},
            },
            {"syn_captions": {"syn_text_coca": ("a",)}, "syn_text_emb": {"syn_text_coca": np.ones((1, 6))}},
            {"augmentations": [AugmentationParams(crop=(0, 0, 5, 5))], "image_emb": np.ones((1, 6))},
        ],
        ids=[
            "plain",
            "no image",
            "metadata",
            "captions",
            "no synthetic",
            "named sets",
            "one named set",
            "size unknown",
        ],
    )
    def test_members(self, layout, tolerance, changes):
        sample = make_sample(1, **changes)
        written = sample_members(sample, layout)
        assert_same(parse_reinforced_sample(sample.key, written), sample, tolerance)
        assert sample_members(sample, layout) == written

    def test_the_size_of_the_image_travels(self):
        sample = make_sample(1, size=(40, 30))
        read = parse_reinforced_sample(sample.key, sample_members(sample))
        assert {params.image_size for params in read.augmentations} == {(40, 30)}

    def test_plain_with_several_captions(self):
        sample = ImageTextSample(key="k", captions=("a cat", "a tabby cat", "ein Kater"))
        assert parse_sample("k", sample_members(sample)).captions == sample.captions

    def test_plain(self):
        sample = ImageTextSample(key="a/b", captions=["one"], image=b"x", image_extension="webp", url="u")
        read = parse_sample("a/b", sample_members(sample))
        assert (read.captions, read.image, read.image_extension, read.url) == (("one",), b"x", "webp", "u")

    def test_tensors_are_taken_in_any_precision(self):
        emb = torch.randn(3, 6, dtype=torch.bfloat16)
        sample = make_sample(0, image_emb=emb)
        assert sample.image_emb.dtype == np.float32
        np.testing.assert_array_equal(sample.image_emb, emb.float().numpy())

    def test_pickles(self):
        assert_same(pickle.loads(pickle.dumps(make_sample(3))), make_sample(3))


class TestForms:
    """Forms that are met in the wild."""

    def members(self, **changes: bytes | None) -> dict[str, bytes]:
        image, text, synthetic = embeddings(2, 1, 2)
        members = {
            "txt": b"caption",
            "paug.json": b'{"param_aug": [[[0, 0, 5, 5], [[1, 0.1]]], [[1, 1, 5, 5], null]]}',
            "syn.json": b'{"syn_text": ["a", "b"]}',
            "npz": npz(image_emb=image, text_emb=np.concatenate([text, synthetic])),
        } | changes
        return {name: data for name, data in members.items() if data is not None}

    def test_augmentations_as_a_string(self):
        plain = parse_reinforced_sample("k", self.members())
        stored = json.loads(self.members()["paug.json"])
        stored["param_aug"] = json.dumps(stored["param_aug"])
        read = parse_reinforced_sample("k", self.members(**{"paug.json": json.dumps(stored).encode()}))
        assert read.augmentations == plain.augmentations

    @pytest.mark.parametrize("times", [0, 1, 2])
    def test_embeddings_compressed_never_once_and_twice(self, times):
        image, text = embeddings(2, 3)
        data = pth({"image_emb": torch.tensor(image), "text_emb": torch.tensor(text).bfloat16()}, times)
        read = parse_reinforced_sample("k", self.members(npz=None, **{"pth.gz": data}))
        np.testing.assert_array_equal(read.image_emb, image)
        assert read.text_emb.dtype == np.float32

    def test_float32_is_preferred_over_bfloat16(self):
        image, text = embeddings(2, 3)
        data = pth({"image_emb": torch.zeros(2, 4), "text_emb": torch.zeros(3, 4)})
        both = self.members(npz=npz(image_emb=image, text_emb=text), **{"pth.gz": data})
        np.testing.assert_array_equal(parse_reinforced_sample("k", both).image_emb, image)

    def test_other_keys_of_syn_json_are_left_alone(self):
        read = parse_reinforced_sample("k", self.members(**{"syn.json": b'{"syn_text": ["a", "b"], "model": "coca"}'}))
        assert read.syn_captions == {"syn_text": ("a", "b")}

    def test_one_named_set_in_one_array(self):
        read = parse_reinforced_sample("k", self.members(**{"syn.json": b'{"syn_text_coca": ["a", "b"]}'}))
        assert read.syn_text_emb["syn_text_coca"].shape == (2, 4)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"txt": None}, "missing_member"),
            ({"paug.json": None}, "missing_member"),
            ({"npz": None}, "missing_member"),
            ({"syn.json": None}, "row_count"),
            ({"txt": b"\xff\xfe"}, "bad_text"),
            ({"url.txt": b"\xff"}, "bad_text"),
            ({"json": b"{"}, "bad_json"),
            ({"json": b"[]"}, "bad_json"),
            ({"paug.json": b""}, "bad_json"),
            ({"paug.json": b"\xff"}, "bad_json"),
            ({"paug.json": b"[" * 100_000}, "bad_json"),
            ({"paug.json": b"{}"}, "bad_json"),
            ({"paug.json": b'{"param_aug": []}'}, "bad_augmentation"),
            ({"paug.json": b'{"param_aug": 7}'}, "bad_augmentation"),
            ({"paug.json": b'{"param_aug": "nonsense"}'}, "bad_augmentation"),
            ({"paug.json": b'{"param_aug": [[[0, 0, 5], []]]}'}, "bad_augmentation"),
            ({"paug.json": b'{"param_aug": [[[0, 0, 5, 5], [[99, 1.0]]]]}'}, "bad_augmentation"),
            ({"paug.json": b'{"param_aug": [[[0, 0, 5, 5], []]], "image_size": [4, 4]}'}, "bad_augmentation"),
            ({"paug.json": b'{"param_aug": [[[0, 0, 5, 5], []]], "image_size": [4]}'}, "bad_augmentation"),
            ({"paug.json": b'{"param_aug": [[[0, 0, 5, 5], []]]}'}, "row_count"),
            ({"syn.json": b'{"syn_text": "a"}'}, "bad_json"),
            ({"syn.json": b'{"syn_text": ["a", 1]}'}, "bad_json"),
            ({"syn.json": b'{"syn_text": ["a"]}'}, "row_count"),
            ({"syn.json": b'{"syn_text_a": ["a"], "syn_text_b": ["b"]}'}, "missing_member"),
            ({"npz": b""}, "bad_embedding"),
            ({"npz": b"PK\x03\x04 and no more"}, "bad_embedding"),
            ({"npz": npz(image_emb=embeddings(2)[0])}, "missing_member"),
            ({"npz": npz(text_emb=embeddings(3)[0])}, "missing_member"),
            ({"npz": npz(image_emb=embeddings(1)[0], text_emb=embeddings(3)[0])}, "row_count"),
            ({"npz": npz(image_emb=embeddings(2)[0], text_emb=embeddings(2)[0])}, "row_count"),
            ({"npz": npz(image_emb=embeddings(2)[0][0], text_emb=embeddings(3)[0])}, "row_count"),
            ({"npz": npz(image_emb=embeddings(2)[0], text_emb=embeddings(3, dim=5)[0])}, "wrong_dim"),
            ({"npz": npz(image_emb=embeddings(2, dim=0)[0], text_emb=embeddings(3, dim=0)[0])}, "wrong_dim"),
            ({"npz": npz(image_emb=embeddings(2)[0] * np.nan, text_emb=embeddings(3)[0])}, "not_finite"),
            ({"npz": npz(image_emb=embeddings(2)[0], text_emb=embeddings(3)[0] * np.inf)}, "not_finite"),
            ({"npz": npz(image_emb=np.array(["a"]), text_emb=embeddings(3)[0])}, "bad_embedding"),
            ({"npz": npz(image_emb=np.array([{}], dtype=object), text_emb=embeddings(3)[0])}, "bad_embedding"),
            ({"npz": None, "pth.gz": b""}, "bad_embedding"),
            ({"npz": None, "pth.gz": b"\x1f\x8b broken"}, "bad_embedding"),
            ({"npz": None, "pth.gz": pth([1, 2])}, "bad_embedding"),
            ({"npz": None, "pth.gz": pth({"image_emb": "text"})}, "bad_embedding"),
            ({"npz": None, "pth.gz": pth({"image_emb": torch.zeros(2, 4), "text_emb": torch.zeros(3, 4)})[:-40]}, None),
        ],
    )
    def test_what_is_wrong_is_said(self, changes, reason):
        with pytest.raises(BadSampleError) as caught:
            parse_reinforced_sample("k", self.members(**changes))
        assert caught.value.reason == (reason or "bad_embedding")
        assert len(caught.value.detail) > 10
        assert str(caught.value).startswith(caught.value.reason)

    def test_a_pickle_is_not_run(self, tmp_path):
        class Harmful:
            def __reduce__(self):
                return (open, (str(tmp_path / "written"), "w"))

        for member in (
            {"npz": npz(image_emb=np.array([Harmful()], dtype=object))},
            {"npz": None, "pth.gz": pth(Harmful())},
        ):
            with pytest.raises(BadSampleError) as caught:
                parse_reinforced_sample("k", self.members(**member))
            assert caught.value.reason == "bad_embedding"
        assert not (tmp_path / "written").exists()


class TestConstruction:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"key": "a.b"}, "bad_key"),
            ({"key": ""}, "bad_key"),
            ({"key": "__meta"}, "bad_key"),
            ({"captions": ()}, "no_caption"),
            ({"augmentations": ()}, "bad_augmentation"),
            ({"image_emb": np.ones((2, 6))}, "row_count"),
            ({"text_emb": np.ones((1, 7))}, "wrong_dim"),
            ({"syn_captions": {}}, "missing_member"),
            ({"syn_captions": {"other": ("a",)}, "syn_text_emb": {"other": np.ones((1, 6))}}, "bad_json"),
        ],
    )
    def test_a_sample_that_disagrees_with_itself_is_refused(self, changes, reason):
        with pytest.raises(BadSampleError) as caught:
            make_sample(0, **changes)
        assert caught.value.reason == reason

    def test_augmentations_of_two_sizes_are_refused(self):
        mixed = [*make_sample(0).augmentations[:2], AugmentationParams(crop=(0, 0, 1, 1), image_size=(9, 9))]
        with pytest.raises(ValueError, match="several sizes"):
            make_sample(0, augmentations=mixed)

    def test_one_string_is_not_a_sequence_of_captions(self):
        with pytest.raises(ValueError, match="wrap it in a tuple"):
            make_sample(0, captions="a cat")

    def test_unknown_extension(self):
        with pytest.raises(ValueError, match="image_extension"):
            make_sample(0, image_extension="gif")


class TestDecodeImage:
    def test_pixels(self):
        data = encoded(5, 7, seed=3)
        image = decode_image(data)
        assert (image.mode, image.size) == ("RGB", (5, 7))
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data))))

    def test_orientation_stays_as_encoded(self):
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (8, 4)).save(stream, "JPEG", exif=exif)
        assert decode_image(stream.getvalue()).size == (8, 4)

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
    def test_every_mode_becomes_rgb(self, mode):
        stream = io.BytesIO()
        Image.new(mode, (3, 2)).save(stream, "TIFF")
        assert decode_image(stream.getvalue()).mode == "RGB"

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "image_not_an_image"),
            (b"not an image", "image_not_an_image"),
            (encoded(20, 20)[:200], "image_truncated"),
            (encoded(20, 20, kind="jpeg")[:-100], "image_truncated"),
        ],
    )
    def test_broken_bytes(self, data, reason):
        with pytest.raises(BadSampleError) as caught:
            decode_image(data)
        assert caught.value.reason == reason

    @pytest.mark.parametrize("limit", [90, 40])
    def test_too_many_pixels(self, monkeypatch, limit):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BadSampleError) as caught:
            decode_image(encoded(10, 10))
        assert caught.value.reason == "image_too_large"
