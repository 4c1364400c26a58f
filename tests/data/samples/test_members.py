"""Samples as members: every layout read and written, and what is wrong with a broken one."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import string
from collections.abc import Callable

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mobileclip.data import (
    LAYOUTS,
    AugmentationParams,
    BadSampleError,
    ImageTextSample,
    ReinforcedSample,
    check_layout,
    hash_image,
    json_captions,
)
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.samples.compact import CompactRecord, write_record
from mobileclip.data.samples.members import parse_reinforced_sample, parse_sample, parse_stored_sample, sample_members
from tests.build.torch_files import torch_bytes
from tests.data.made_samples import assert_same, golden_members, make_sample


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def pth(value: object, times: int = 1) -> bytes:
    data = torch_bytes(value)
    for _ in range(times):
        data = gzip.compress(data)
    return data


def refused(reason: str, call: Callable[..., object], *given: object) -> None:
    with pytest.raises(BadSampleError) as caught:
        call(*given)
    assert caught.value.reason == reason


def embeddings(*rows: int) -> list[np.ndarray]:
    return [np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32) for count in rows]


TWO, THREE = embeddings(2, 3)


def plain(sample: ImageTextSample) -> ImageTextSample:
    return ImageTextSample(**{field.name: getattr(sample, field.name) for field in attrs.fields(ImageTextSample)})


class TestGolden:
    @pytest.mark.parametrize(("name", "layout"), [("npz", "npz"), ("bf16", "pth.gz"), ("noimage_bf16", "pth.gz")])
    def test_members_are_understood_and_written_alike(self, name, layout):
        for key, members in golden_members(name).items():
            sample = parse_reinforced_sample(key, members)
            assert (sample.image is None) == name.startswith("noimage")
            assert sample.captions == (members["txt"].decode(),)
            assert sample.url == members["url.txt"].decode()
            assert sample.metadata == json.loads(members["json"])
            assert list(sample.syn_captions["syn_text"]) == json.loads(members["syn.json"])["syn_text"]
            stored = json.loads(members["paug.json"])["param_aug"]
            assert [list(params.crop) for params in sample.augmentations] == [crop for crop, _ in stored]
            shapes = [emb.shape for emb in (sample.image_emb, sample.text_emb, sample.syn_text_emb["syn_text"])]
            assert shapes == [(3, 1536), (1, 1536), (5, 1536)]
            assert sample.image_emb.dtype == np.float32
            norms = np.linalg.norm(sample.image_emb.reshape(3, 2, 768), axis=2)
            np.testing.assert_allclose(norms, 1, atol=2e-3)
            written = sample_members(sample, layout)
            assert written.keys() == members.keys()
            for extension in members.keys() - {layout}:
                read = json.loads if extension.endswith("json") else bytes
                assert read(written[extension]) == read(members[extension])
            assert_same(parse_reinforced_sample(key, written), sample)

    @pytest.mark.parametrize("layout", ["npz", "pth.gz"])
    def test_the_public_loader_reads_what_is_written(self, layout):
        """Index the members as the release does, after webdataset's own decoding."""
        from webdataset.autodecode import Decoder

        key, members = next(iter(golden_members("npz").items()))
        sample = parse_reinforced_sample(key, members)
        written = sample_members(sample, layout)
        decoded = Decoder([])({"__key__": key, **{name: written[name] for name in ("paug.json", "syn.json", layout)}})
        arrays, texts = decoded[layout], decoded[layout]["text_emb"]
        assert arrays["image_emb"].dtype == (np.float32 if layout == "npz" else torch.bfloat16)
        crops = [tuple(crop) for crop, _ in decoded["paug.json"]["param_aug"]]
        assert crops == [params.crop for params in sample.augmentations]
        assert texts.shape == (1 + len(decoded["syn.json"]["syn_text"]), 1536)
        third = torch.as_tensor(texts[1 + 2]).float()
        np.testing.assert_allclose(third, sample.syn_text_emb["syn_text"][2], rtol=2**-8)


CHANGES = {
    "plain": {},
    "metadata": {"url": "https://example.com/ä.jpg", "metadata": {"uid": "a", "nested": {"sha256": "0"}}},
    "captions": {"captions": ("Zürich 🏔", "second\nline", "third"), "text_emb": np.arange(18.0).reshape(3, 6)},
    "no synthetic": {"syn_captions": {}, "syn_text_emb": {}},
    "named sets": {
        "syn_captions": {"syn_text_coca": ("a", "b"), "syn_text_blip2": ("c",)},
        "syn_text_emb": {"syn_text_coca": np.ones((2, 6)), "syn_text_blip2": np.zeros((1, 6))},
    },
    "one named set": {"syn_captions": {"syn_text_coca": ("a",)}, "syn_text_emb": {"syn_text_coca": np.ones((1, 6))}},
    "size unknown": {"augmentations": [AugmentationParams(crop=(0, 0, 5, 5))], "image_emb": np.ones((1, 6))},
    "others": {"others": {"cls": b"3", "mask.png": b"\x89", "webp": b"", "_x": b"y", "a.b.c": b"z"}},
}


class TestRoundTrip:
    @pytest.mark.parametrize(
        ("layout", "tolerance"), [("npz", 0.0), ("pth.gz", 2**-8), ("compact", 2**-8), ("compact8", None)]
    )
    @pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
    def test_members(self, layout, tolerance, changes):
        sample = make_sample(1, **changes)
        written = sample_members(sample, layout)
        read = parse_reinforced_sample(sample.key, written)
        if tolerance is None:  # the error is relative to the largest number of a row, as the record's tests check
            assert sample_members(read, layout) == written
        else:
            assert_same(read, sample, tolerance)
        assert sample_members(sample, layout) == written
        assert_same(parse_sample(sample.key, written), plain(sample))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_rows_alone_are_those_of_the_whole(self, layout):
        for key, members in golden_members("npz").items():
            written = sample_members(parse_reinforced_sample(key, members), layout)
            whole, stored = parse_reinforced_sample(key, written), parse_stored_sample(key, written)
            assert stored.dim == whole.dim == 1536
            for index in range(3):
                np.testing.assert_array_equal(stored.row("image_emb", index), whole.image_emb[index])
            np.testing.assert_array_equal(stored.row("text_emb", 0), whole.text_emb[0])
            np.testing.assert_array_equal(stored.row("syn_text_emb", 4), whole.syn_text_emb["syn_text"][4])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_plain_samples_keep_their_captions_in_every_layout(self, layout):
        synthetic = {"syn_text": ("c", "d"), "syn_text_x": ("e",)}
        sample = ImageTextSample(key="k", captions=("a", "b"), syn_captions=synthetic, image=b"i")
        written = sample_members(sample, layout)
        assert written.keys() == {"jpg", "txt", "syn.json"}
        assert_same(parse_sample("k", written), sample)


# Seven in eight code points are not printable, so they are left out of the alphabet rather than filtered afterwards.
printable = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
caption = st.text(printable, min_size=1, max_size=12).filter(str.strip)
captions = st.lists(caption, max_size=3).map(tuple)


@st.composite
def reinforced(draw: st.DrawFn) -> ReinforcedSample:
    """Draw whatever a sample may be."""
    dim = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def embed(count: int) -> np.ndarray:
        return (rng.standard_normal((count, dim)) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)

    size = draw(st.none() | st.tuples(st.integers(9, 99), st.integers(9, 99)))
    augmentation = st.builds(
        AugmentationParams,
        crop=st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5), st.integers(1, 5)),
        operations=st.lists(st.tuples(st.integers(0, 13), st.floats(-30, 30)), max_size=2),
        image_size=st.just(size),
    )
    augmentations = draw(st.lists(augmentation, min_size=1, max_size=3))
    real = draw(st.lists(caption, min_size=1, max_size=3))
    names = st.sampled_from(["syn_text", "syn_text_coca", "syn_text_7"])
    sets = draw(st.dictionaries(names, captions, max_size=3))
    extension = st.text(string.ascii_lowercase + "._", min_size=1, max_size=8).filter(lambda name: "npz" not in name)
    known = {*IMAGE_EXTENSIONS, "txt", "json", "url.txt", "syn.json", "paug.json", "pth.gz", "reinforced"}
    other = extension.filter(lambda name: name not in known)
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
        max_leaves=4,
    )
    return ReinforcedSample(
        key=draw(st.sampled_from(["000001", "folder/k-1"])),
        captions=real,
        syn_captions=sets,
        image=draw(st.none() | st.binary(max_size=20)),
        url=draw(st.none() | caption),
        metadata=draw(st.dictionaries(st.text(max_size=5), json_values, max_size=2)),
        others=draw(st.dictionaries(other, st.binary(max_size=9), max_size=2)),
        augmentations=augmentations,
        image_sha256=draw(st.none() | st.binary(max_size=3).map(hash_image)),
        image_emb=embed(len(augmentations)),
        text_emb=embed(len(real)),
        syn_text_emb={name: embed(len(texts)) for name, texts in sets.items()},
    )


class TestAnySample:
    """Hypothesis looks for a sample that some layout does not give back."""

    @given(reinforced())
    @settings(max_examples=30, deadline=None)
    def test_between_all_layouts(self, sample):
        def through(given_sample: ReinforcedSample, layout: str) -> ReinforcedSample:
            return parse_reinforced_sample(sample.key, sample_members(given_sample, layout))

        rounded, eight_bit = through(sample, "pth.gz"), through(sample, "compact8")
        assert_same(through(sample, "npz"), sample)
        for layout in LAYOUTS:
            assert_same(through(through(sample, "compact"), layout), through(rounded, layout))
            assert_same(parse_sample(sample.key, sample_members(sample, layout)), plain(sample))
        for layout in ("npz", "compact8"):
            assert_same(through(eight_bit, layout), eight_bit)


def run() -> None:
    pytest.fail("what a file says was run")


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return run, ()


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

    def read(self, **changes: bytes | None) -> ReinforcedSample:
        return parse_reinforced_sample("k", self.members(**changes))

    def test_augmentations_are_equal_where_what_they_say_is_as_a_string_too(self):
        expected = AugmentationParams(crop=(0, 0, 5, 5), operations=((1, 0.1),)), AugmentationParams(crop=(1, 1, 5, 5))
        stored = json.loads(self.members()["paug.json"])
        as_string = json.dumps({"param_aug": json.dumps(stored["param_aug"])}).encode()
        for changes in ({}, {"paug.json": as_string}):
            lazy = parse_stored_sample("k", self.members(**changes)).augmentations
            assert (lazy, lazy[:1]) == (expected, expected[:1])
            assert lazy != expected[:1]
            assert lazy == self.read(**changes).augmentations

    @pytest.mark.parametrize(
        "other", ["[[99, 0.1]]", "[[-1, 0.1]]", "[[0, NaN]]", "[[0, -Infinity]]", '[["a", 1]]', "[[0]]", "[7]", "7"]
    )
    def test_one_malformed_augmentation_of_several_is_noticed_when_the_sample_is_read(self, other):
        """Not in some epoch that takes it."""
        stored = f'{{"param_aug": [[[0, 0, 5, 5], [[1, 0.1], [10, 4]]], [[1, 1, 5, 5], {other}]]}}'.encode()
        for parser in (parse_stored_sample, parse_reinforced_sample):
            refused("bad_augmentation", parser, "k", self.members(**{"paug.json": stored}))

    @pytest.mark.parametrize("times", [0, 1, 2])
    def test_embeddings_compressed_never_once_and_twice(self, times):
        image, text = embeddings(2, 3)
        data = pth({"image_emb": torch.tensor(image), "text_emb": torch.tensor(text).bfloat16()}, times)
        read = self.read(npz=None, **{"pth.gz": data})
        np.testing.assert_array_equal(read.image_emb, image)
        assert read.text_emb.dtype == np.float32

    def test_float32_is_preferred_over_bfloat16(self):
        data = pth({"image_emb": torch.zeros(2, 4), "text_emb": torch.zeros(3, 4)})
        both = self.read(npz=npz(image_emb=TWO, text_emb=THREE), **{"pth.gz": data})
        np.testing.assert_array_equal(both.image_emb, TWO)

    @pytest.mark.parametrize(
        ("stored", "captions"),
        [
            ({"syn_text": ["a", "b"], "model": "coca"}, {"syn_text": ("a", "b")}),
            ({"syn_text_coca": ["a", "b"]}, {"syn_text_coca": ("a", "b")}),
            ({"syn_text": ["", "\n"]}, {"syn_text": ()}),
        ],
        ids=["other keys are left alone", "one named set in one array", "a set of blank captions is empty"],
    )
    def test_synthetic_captions(self, stored, captions):
        read = self.read(**{"syn.json": json.dumps(stored).encode()})
        assert read.syn_captions == captions
        shapes = {name: emb.shape for name, emb in read.syn_text_emb.items()}
        assert shapes == {name: (len(texts), 4) for name, texts in captions.items()}

    def test_blank_captions_are_left_out_with_their_rows(self):
        image, text, synthetic, more = embeddings(2, 1, 3, 2)
        stored = b'{"syn_text": ["a", " ", "b"], "more_text": ["", "c"]}'
        arrays = npz(image_emb=image, text_emb=text, syn_text_emb=synthetic, more_text_emb=more)
        read = self.read(**{"syn.json": stored}, npz=arrays)
        assert (read.captions, read.syn_captions) == (("caption", "c"), {"syn_text": ("a", "b")})
        np.testing.assert_array_equal(read.text_emb, np.stack([text[0], more[1]]))
        np.testing.assert_array_equal(read.syn_text_emb["syn_text"], synthetic[[0, 2]])
        for layout in ("npz", "compact"):
            again = parse_reinforced_sample("k", sample_members(read, layout))
            assert (again.captions, again.syn_captions) == (read.captions, read.syn_captions)

    def test_a_further_caption_takes_the_place_of_a_blank_one(self):
        read = parse_sample("k", {"txt": b" \n", "syn.json": b'{"more_text": ["a"]}'})
        assert read.captions == ("a",)

    def test_captions_in_json(self):
        metadata = {"text": "a", "texts": ["b", "a", " "], "caption": None, "captions": ["c"], "id": 7}
        read = parse_sample("k", {"json": json.dumps(metadata).encode(), "jpg": b"i"})
        assert (read.captions, read.metadata) == (("c", "a", "b"), metadata)
        written = sample_members(read)
        assert written["txt"] == b"c"
        assert_same(parse_sample("k", written), read)
        beside = parse_sample("k", {"json": json.dumps(metadata).encode(), "txt": b"own"})
        assert beside.captions == ("own",)

    def test_captions_in_json_have_rows_as_one_in_txt_has(self):
        image, text = embeddings(2, 4)
        stored = {"json": b'{"captions": ["a", "b"]}', "syn.json": b'{"syn_text": ["c", "d"]}'}
        read = self.read(txt=None, npz=npz(image_emb=image, text_emb=text), **stored)
        np.testing.assert_array_equal(read.text_emb, text[:2])
        np.testing.assert_array_equal(read.syn_text_emb["syn_text"], text[2:])

    @pytest.mark.parametrize("value", [7, ["a", 7], {"a": "b"}, [["a"]]])
    def test_captions_in_json_must_be_captions(self, value):
        refused("bad_json", json_captions, {"captions": value})

    def test_unknown_members_pass_to_the_byte(self):
        members = self.members(jpg=b"i", png=b"p", cls=b"7", **{"mask.png": b"m", "": b"nameless"})
        for parser in (parse_sample, parse_reinforced_sample):
            read = parser("k", members)
            assert read.image == b"i"
            assert read.others == {"png": b"p", "cls": b"7", "mask.png": b"m"}
            for layout in LAYOUTS:
                assert {"png": b"p", "cls": b"7", "mask.png": b"m"}.items() <= sample_members(read, layout).items()

    def test_arrays_of_a_plain_sample_are_its_own(self):
        read = parse_sample("k", {"txt": b"a", "npz": b"features"})
        assert read.others == {"npz": b"features"}
        assert sample_members(read)["npz"] == b"features"
        sample = make_sample(0, others=read.others)
        for layout in ("compact", "compact8"):
            assert parse_reinforced_sample(sample.key, sample_members(sample, layout)).others == read.others
            check_layout(read, layout)
        for layout, check in itertools.product(("npz", "pth.gz"), (check_layout, sample_members)):
            refused("bad_member", check, sample, layout)
        refused("bad_member", check_layout, read, "npz")

    def test_metadata_that_utf8_cannot_spell(self):
        read = parse_sample("k", {"txt": b"a", "json": b'{"x": "\\ud800"}'})
        assert_same(parse_sample("k", sample_members(read)), read)

    def record(self, **changes: object) -> bytes:
        image, text, synthetic = embeddings(2, 1, 2)
        content = {"paug.json": json.loads(self.members()["paug.json"]), "syn.json": {"syn_text": ["a", "b"]}} | changes
        return write_record(content, {"image_emb": image, "text_emb": text, "syn_text_emb": synthetic}, "bfloat16")

    def test_a_record_is_preferred(self):
        read = self.read(reinforced=self.record(), npz=b"broken")
        assert_same(read, parse_reinforced_sample("k", {"txt": b"caption", "reinforced": self.record()}))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"paug.json": None}, "bad_json"),
            ({"paug.json": {}}, "bad_json"),
            ({"paug.json": {"param_aug": []}}, "bad_augmentation"),
            ({"paug.json": {"param_aug": [[[0, 0, 5, 5], []]]}}, "row_count"),
            ({"syn.json": []}, "bad_json"),
            ({"syn.json": {"syn_text": "a"}}, "bad_json"),
            ({"syn.json": {"syn_text": ["a"]}}, "row_count"),
            ({"syn.json": {"syn_text_b": ["a", "b"]}}, "row_count"),
            ({"syn.json": {"syn_text": ["a", "b"], "more_text": ["c"]}}, "missing_member"),
        ],
    )
    def test_a_record_that_disagrees_with_itself_is_refused(self, changes, reason):
        members = {"txt": b"caption", "reinforced": self.record(**changes)}
        refused(reason, parse_reinforced_sample, "k", members)

    def test_damage_to_one_row_costs_no_other(self):
        damaged = self.record()[:-1] + b"\x00"
        assert CompactRecord(self.record()).row("syn_text_emb", 1).any()
        stored = parse_stored_sample("k", {"txt": b"caption", "reinforced": damaged})
        assert stored.row("syn_text_emb", 0).shape == (4,)
        refused("bad_record", stored.row, "syn_text_emb", 1)
        refused("bad_record", stored.decoded)

    @pytest.mark.parametrize(
        ("name", "data", "reason"),
        [
            *((name, None, "missing_member") for name in ("txt", "paug.json", "npz")),
            ("syn.json", None, "row_count"),
            *(("txt", text, "no_caption") for text in (b" \n\t", b"")),
            *((name, b"\xff\xfe", "bad_text") for name in ("txt", "url.txt", "paug.json")),
            ("json", b"{", "bad_json"),
            ("json", b"[]", "bad_json"),
            ("reinforced", b"", "bad_record"),
            ("syn.json", b'{"syn_text": ["a", "\\ud800"]}', "bad_text"),
            ("syn.json", b'{"syn_text": "a"}', "bad_json"),
            ("syn.json", b'{"syn_text": ["a", 1]}', "bad_json"),
            ("syn.json", b'{"syn_text": ["a"]}', "row_count"),
            ("syn.json", b'{"syn_text_a": ["a"], "syn_text_b": ["b"]}', "missing_member"),
            *(("paug.json", text, "bad_json") for text in (b"", b"[" * 100_000, b"{}")),
            *(
                ("paug.json", b'{"param_aug": %b}' % value, "bad_augmentation")
                for value in (b"[]", b"7", b'"nonsense"', b"[[[0, 0, 5], []]]")
            ),
            ("paug.json", b'{"param_aug": [[[0, 0, 5, 5], []]]}', "row_count"),
            *(
                ("paug.json", b'{"param_aug": [[[0, 0, 5, 5], []]], "image_size": %b}' % size, reason)
                for size, reason in (
                    *(
                        (b"[%b]" % size, "bad_augmentation")
                        for size in (b"1e999, 4", b"4, 4", b"4", b"null, 9", b"9, null")
                    ),
                    (b"null", "row_count"),
                )
            ),
            *(
                ("paug.json", b'{"param_aug": [[[0, 0, 5, 5]], [[0, 0, 5, 5]]], "image_sha256": %b}' % one, "bad_json")
                for one in (b"7", b'"7"')
            ),
            ("npz", b"", "bad_embedding"),
            ("npz", b"PK\x03\x04 and no more", "bad_embedding"),
            ("npz", npz(image_emb=TWO), "missing_member"),
            ("npz", npz(text_emb=THREE), "missing_member"),
            *(
                ("npz", npz(image_emb=image, text_emb=text), reason)
                for image, text, reason in (
                    *((TWO[:1], THREE, "row_count"), (TWO, THREE[:2], "row_count"), (TWO[0], THREE, "row_count")),
                    *((TWO, THREE[:, :3], "wrong_dim"), (TWO[:, :0], THREE[:, :0], "wrong_dim")),
                    *((TWO * np.nan, THREE, "not_finite"), (TWO, THREE * np.inf, "not_finite")),
                )
            ),
            ("npz", npz(image_emb=np.array(["a"]), text_emb=THREE), "bad_embedding"),
            ("npz", npz(image_emb=np.array([Harmful()], dtype=object)), "bad_embedding"),
            ("pth.gz", b"", "bad_embedding"),
            ("pth.gz", b"\x1f\x8b broken", "bad_embedding"),
            ("pth.gz", pth([1, 2]), "bad_embedding"),
            ("pth.gz", pth({"image_emb": "text"}), "bad_embedding"),
            ("pth.gz", pth({"image_emb": Harmful()}), "bad_embedding"),
            ("pth.gz", pth({"image_emb": torch.zeros(2, 4), "text_emb": torch.zeros(3, 4)})[:-40], "bad_embedding"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_is_run(self, name, data, reason):
        changes = {"npz": None} if name == "pth.gz" else {}
        refused(reason, parse_reinforced_sample, "k", self.members(**changes, **{name: data}))

    @pytest.mark.parametrize(("stored", "reason"), [(b'{"id": 1}', "missing_member"), (b'{"caption": 1}', "bad_json")])
    def test_json_without_a_caption(self, stored, reason):
        refused(reason, parse_reinforced_sample, "k", self.members(txt=None, json=stored))
