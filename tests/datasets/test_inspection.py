"""Looking into a shard: what is said of a sample, and the page that is written of it."""

import base64
import contextlib
import io
import re

import attrs
import numpy as np
import pytest
from PIL import Image, ImageChops, ImageStat

from mobileclip.data import (
    AugmentationParams,
    ImageTextSample,
    ReinforcementCard,
    TeacherEntry,
    ViewAgreement,
    augmentation_rng,
    datacompdr_augmentation,
    decode_image,
    hash_image,
    write_card,
    write_shard,
)
from mobileclip.data.augmentation.operations import OPERATIONS
from mobileclip.datasets.inspection import (
    describe_operations,
    inspect_sample,
    print_inspection,
    write_inspection,
)
from mobileclip.inputs import ImageInput
from tests.data.made_samples import encoded, golden, make_sample, write_raw
from tests.errors import fails

SIZE, TILE = (320, 240), 224


def sample(count=7, **changes):
    policy = datacompdr_augmentation(TILE)
    image = encoded(*SIZE, seed=3)
    rng = np.random.default_rng(1)
    fields = {
        "size": SIZE,
        "image": image,
        "image_sha256": hash_image(image),
        "augmentations": [policy.sample(augmentation_rng(0, "a", index), SIZE) for index in range(count)],
        "image_emb": rng.standard_normal((count, 6)).astype(np.float32),
        "url": "https://example.org/picture.png",
    }
    return make_sample(1, **(fields | changes))


def inspected(tmp_path, one):
    write_shard(tmp_path / "a.tar", [one])
    return inspect_sample(tmp_path / "a.tar")


def printed(inspection):
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        print_inspection(inspection)
    return stream.getvalue()


def card(dims):
    image = ImageInput(size=224, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    teachers = [
        TeacherEntry(name=f"teacher of {dim}", weights_sha256="0", dim=dim, logit_scale=100.0, image=image)
        for dim in dims
    ]
    return ReinforcementCard(teachers=tuple(teachers), augmentation=datacompdr_augmentation(TILE), layout="npz")


def page_of(folder, inspection):
    """The page that is written of a sample, and its pictures."""
    write_inspection(folder / "pages" / "a.html", inspection)
    page = (folder / "pages" / "a.html").read_text(encoding="utf-8")
    found = re.findall(r'src="data:image/webp;base64,([^"]*)"', page)
    return page, [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in found]


class TestWords:
    @pytest.mark.parametrize("index", range(len(OPERATIONS)))
    def test_every_operation_has_some(self, index):
        operations = ([(index, magnitude)] for magnitude in (0.5, -0.5))
        words = {describe_operations(AugmentationParams(crop=(0, 0, 1, 1), operations=one)) for one in operations}
        assert all(text for (text,) in words)
        assert len(words) == 2 or not OPERATIONS[index].signed

    def test_turning(self):
        image = Image.new("RGB", (41, 41))
        image.putpixel((20, 5), (255, 0, 0))
        turned = np.asarray(OPERATIONS[5].apply(image, 90.0))[..., 0]
        assert np.nonzero(turned)[1][0] < 10

    @pytest.mark.parametrize(
        ("name", "magnitude", "words", "moved"),
        [
            ("TranslateX", 9.9, "move right 9 px", (9, 0)),
            ("TranslateX", -9.9, "move left 9 px", (-9, 0)),
            ("TranslateY", 5.0, "move down 5 px", (0, 5)),
            ("TranslateY", -5.0, "move up 5 px", (0, -5)),
            ("ShearX", 0.25, "shear left 0.25", (-5, 0)),
            ("ShearX", -0.25, "shear right 0.25", (5, 0)),
            ("ShearY", 0.25, "shear up 0.25", (0, -5)),
            ("ShearY", -0.25, "shear down 0.25", (0, 5)),
            ("Rotate", 9.0, "turn left 9°", (0, 0)),
        ],
    )
    def test_directions_are_those_of_the_pixels(self, name, magnitude, words, moved):
        image = Image.new("RGB", (41, 41))
        image.putpixel((20, 20), (255, 0, 0))
        index = next(index for index, operation in enumerate(OPERATIONS) if operation.name == name)
        params = AugmentationParams(crop=(0, 0, 41, 41), operations=[(index, magnitude)])
        result = np.asarray(datacompdr_augmentation(41).apply(image, params))[..., 0]
        (top,), (left,) = np.nonzero(result)
        assert (abs(left - 20 - moved[0]) <= 1, abs(top - 20 - moved[1]) <= 1) == (True, True)
        assert describe_operations(params) == (words,)


class TestInspection:
    def test_cosines_of_every_teacher(self, tmp_path):
        measured = ViewAgreement(num_samples=9, num_views=63, agreement=0.25, plain_accuracy=0.5, view_accuracy=0.1)
        write_card(tmp_path, attrs.evolve(card((2, 4)), agreement=measured))
        one = sample()
        inspection = inspected(tmp_path, one)
        assert [caption.source for caption in inspection.captions] == ["real", "syn_text", "syn_text"]
        rows = [one.text_emb[0], *one.syn_text_emb["syn_text"]]
        for caption, row in zip(inspection.captions, rows, strict=True):
            for similarity, columns in zip(caption.similarities, (slice(0, 2), slice(2, 6)), strict=True):
                images, text = one.image_emb[:, columns].astype(float), row[columns].astype(float)
                cosines = images @ text / np.linalg.norm(images, axis=1) / np.linalg.norm(text)
                found = (similarity.least, similarity.mean, similarity.greatest)
                np.testing.assert_allclose(found, (cosines.min(), cosines.mean(), cosines.max()), atol=1e-5)
        text, (page, _) = printed(inspection), page_of(tmp_path, inspection)
        for part in ("000001", "https://example.org/picture.png", "320 x 240", "teacher of 4", "50.0%", "10.0%"):
            assert part in text
        for caption in inspection.captions:
            assert caption.text in text
            assert caption.text in page
            for each in caption.similarities:
                assert f"{each.mean:.3f} by {each.teacher}" in page
        write_card(tmp_path, card((2, 2)))
        assert inspected(tmp_path, one).teachers == (("all teachers", slice(0, 6)),), "a card of other data"

    @pytest.mark.parametrize("name", ["npz", "bf16", "noimage_bf16"])
    def test_public_shards(self, tmp_path, name):
        inspection = inspect_sample(golden(name))
        assert inspection.augmentations
        assert ("data join" in inspection.problem) == (name == "noimage_bf16")
        assert printed(inspection)
        expected = 0 if name == "noimage_bf16" else 1 + len(inspection.augmentations)
        assert len(page_of(tmp_path, inspection)[1]) == expected


class TestPage:
    def test_every_augmentation_is_replayed(self, tmp_path):
        inspection = inspected(tmp_path, sample(7))
        page, (image, *views) = page_of(tmp_path, inspection)
        policy = datacompdr_augmentation(TILE)
        assert image.size == SIZE
        assert len(views) == 7
        expected = [policy.apply(decode_image(inspection.sample.image), one) for one in inspection.augmentations]
        for place, (view, params) in enumerate(zip(views, inspection.augmentations, strict=True)):
            assert view.size == (TILE, TILE)
            # WebP loses something of noise, and yet each is the nearest to its own.
            losses = [sum(ImageStat.Stat(ImageChops.difference(view, one)).mean) for one in expected]
            assert losses.index(min(losses)) == place
            for words in describe_operations(params):
                assert words in page

    def test_crops_are_drawn_on_the_image(self, tmp_path):
        params = AugmentationParams(crop=(20, 30, 100, 200), image_size=SIZE)
        plain = encoded(*SIZE, seed=3)
        inspection = inspected(tmp_path, sample(augmentations=[params], image_emb=np.ones((1, 6), np.float32)))
        difference = ImageChops.difference(page_of(tmp_path, inspection)[1][0], decode_image(plain))
        strong = np.asarray(difference).astype(int).sum(-1)
        assert strong[20, 40:200].mean() > 1.4 * strong[:15].mean()
        assert strong[60:100, 30].mean() > 1.4 * strong[:15].mean()

    def test_plain_samples(self, tmp_path):
        one = ImageTextSample(key="a", captions=("first", "second"), image=encoded(*SIZE), image_extension="png")
        for given, num_pictures in ((one, 1), (attrs.evolve(one, image=None), 0)):
            inspection = inspected(tmp_path, given)
            page, pictures = page_of(tmp_path, inspection)
            assert len(pictures) == num_pictures
            assert "second" in printed(inspection)
            assert "second" in page
            assert "Augmentations" not in page

    @pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
    def test_images_of_any_shape(self, tmp_path, size):
        params = datacompdr_augmentation(TILE).sample(augmentation_rng(0, "a", 0), size)
        image = encoded(*size)
        changes = {"image": image, "image_sha256": hash_image(image), "augmentations": [params] * 7}
        inspection = inspected(tmp_path, sample(**changes))
        assert not inspection.problem
        assert len(page_of(tmp_path, inspection)[1]) == 8


def test_what_data_say_is_no_markup(tmp_path):
    teacher = attrs.evolve(card([6]).teachers[0], name="x[/nothing] [red]y\x1b[2J")
    write_card(tmp_path, attrs.evolve(card([6]), teachers=(teacher,)))
    text = printed(inspected(tmp_path, sample(dim=6, captions=("a [red] \x1b[2J cat",))))
    assert "x[/nothing] [red]y\\x1b[2J" in text
    assert "a [red] \\x1b[2J cat" in text
    assert "\x1b" not in text
    one = ImageTextSample(key="a", captions=("<script>alert(1)</script> \u202eback",), image=encoded(*SIZE))
    page, _ = page_of(tmp_path, inspected(tmp_path, one))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("image", "problem", "num_pictures"),
    [(encoded(*SIZE, seed=4), "the reinforced copy", 1), (b"<html>", "", 0), (None, "mobileclip data join", 0)],
    ids=["wrong", "broken", "none"],
)
def test_an_image_that_is_not_the_samples_own_is_not_replayed(tmp_path, image, problem, num_pictures):
    inspection = inspected(tmp_path, sample(image=image))
    page, found = page_of(tmp_path, inspection)
    assert problem in inspection.problem
    assert len(found) == num_pictures
    assert "<html>" not in printed(inspection) + page.partition("<body")[2]


@pytest.mark.parametrize(
    ("members", "key", "named"),
    [
        ({}, None, ()),
        (None, None, ("a.tar", "unreadable_shard")),
        ({"a": {"paug.json": b'{"param_aug": []}'}}, None, ()),
        ("samples", "00003", ("3", "000003")),
        ("samples", "xyz", ("000001", "000003")),
    ],
)
def test_nothing_there(tmp_path, members, key, named):
    if members == "samples":
        write_shard(tmp_path / "a.tar", [make_sample(number) for number in (1, 2, 3)])
        assert inspect_sample(tmp_path / "a.tar", "000002").sample.key == "000002"
    elif members is not None:
        write_raw(tmp_path / "a.tar", members)
    with fails(ValueError, *named):
        inspect_sample(tmp_path / "a.tar", key)
