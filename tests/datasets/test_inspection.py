"""Looking into a shard: what is said of a sample, and the page that is written of it."""

import base64
import contextlib
import io
import re

import attrs
import numpy as np
import pytest
from PIL import Image, ImageChops, ImageStat

from mobileclip.data import ImageTextSample, ViewAgreement, decode_image, hash_image, write_shard
from mobileclip.data.augmentation.operations import OPERATIONS
from mobileclip.data.augmentation.policy import AugmentationParams, augmentation_rng, datacompdr_augmentation
from mobileclip.data.shards.sidecars import ReinforcementCard, TeacherEntry, write_card
from mobileclip.datasets.inspection import describe_operations, inspect_sample, print_inspection, write_inspection
from mobileclip.inputs import ImageInput
from tests.data.made_samples import encoded, make_sample, write_raw
from tests.errors import fails, told

SIZE, TILE = (320, 240), 224
POLICY = datacompdr_augmentation(TILE)


def sample(*, size=SIZE, **changes):
    """Return a reinforced sample of seven views."""
    image, rng = encoded(*size, seed=3), np.random.default_rng(1)
    fields = {
        "size": size,
        "image": image,
        "image_sha256": hash_image(image),
        "augmentations": [POLICY.sample(augmentation_rng(0, "a", index), size) for index in range(7)],
        "image_emb": rng.standard_normal((7, 6)).astype(np.float32),
        "url": "https://example.org/picture.png",
    }
    return make_sample(1, **(fields | changes))


def inspected(tmp_path, one):
    write_shard(tmp_path / "a.tar", [one])
    return shown(tmp_path, inspect_sample(tmp_path / "a.tar"))


def shown(folder, inspection):
    """Return an inspection, what is printed of it, the page that is written, and the pictures of the page."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        print_inspection(inspection)
    write_inspection(folder / "pages" / "a.html", inspection)
    page = (folder / "pages" / "a.html").read_text(encoding="utf-8")
    found = re.findall(r'src="data:image/webp;base64,([^"]*)"', page)
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in found]
    return inspection, stream.getvalue(), page, pictures


def card(*dims):
    image = ImageInput(size=224, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    about = {"weights_sha256": "0", "logit_scale": 100.0, "image": image}
    teachers = [TeacherEntry(name=f"teacher of {dim}", dim=dim, **about) for dim in dims]
    return ReinforcementCard(teachers=tuple(teachers), augmentation=POLICY, layout="npz")


@pytest.mark.parametrize("index", range(len(OPERATIONS)))
def test_every_operation_has_some(index):
    operations = ([(index, magnitude)] for magnitude in (0.5, -0.5))
    words = {describe_operations(AugmentationParams(crop=(0, 0, 1, 1), operations=one)) for one in operations}
    assert all(text for (text,) in words)
    assert len(words) == 2 or not OPERATIONS[index].signed


DIRECTIONS = [
    ("TranslateX", 9.9, "move right 9 px", (20, 20), (29, 20)),
    ("TranslateX", -9.9, "move left 9 px", (20, 20), (11, 20)),
    ("TranslateY", 5.0, "move down 5 px", (20, 20), (20, 25)),
    ("TranslateY", -5.0, "move up 5 px", (20, 20), (20, 15)),
    ("ShearX", 0.25, "shear left 0.25", (20, 20), (15, 20)),
    ("ShearX", -0.25, "shear right 0.25", (20, 20), (25, 20)),
    ("ShearY", 0.25, "shear up 0.25", (20, 20), (20, 15)),
    ("ShearY", -0.25, "shear down 0.25", (20, 20), (20, 25)),
    ("Rotate", 90.0, "turn left 90°", (20, 5), (5, 20)),
]


@pytest.mark.parametrize(("name", "magnitude", "words", "start", "end"), DIRECTIONS)
def test_directions_are_those_of_the_pixels(name, magnitude, words, start, end):
    image = Image.new("RGB", (41, 41))
    image.putpixel(start, (255, 0, 0))
    index = next(index for index, operation in enumerate(OPERATIONS) if operation.name == name)
    params = AugmentationParams(crop=(0, 0, 41, 41), operations=[(index, magnitude)])
    result = np.asarray(datacompdr_augmentation(41).apply(image, params))[..., 0]
    np.testing.assert_allclose(np.argwhere(result)[:, ::-1], [end], atol=1)
    assert describe_operations(params) == (words,)


def test_cosines_of_every_teacher(tmp_path):
    measured = ViewAgreement(num_samples=9, num_views=63, agreement=0.25, plain_accuracy=0.5, view_accuracy=0.1)
    write_card(tmp_path, attrs.evolve(card(2, 4), agreement=measured))
    one = sample()
    inspection, text, page, _ = inspected(tmp_path, one)
    assert [caption.source for caption in inspection.captions] == ["real", "syn_text", "syn_text"]
    rows = [one.text_emb[0], *one.syn_text_emb["syn_text"]]
    for caption, row in zip(inspection.captions, rows, strict=True):
        assert caption.text in text
        assert caption.text in page
        for each, columns in zip(caption.similarities, (slice(0, 2), slice(2, 6)), strict=True):
            images, emb = one.image_emb[:, columns].astype(float), row[columns].astype(float)
            cosines = images @ emb / np.linalg.norm(images, axis=1) / np.linalg.norm(emb)
            found = (each.least, each.mean, each.greatest)
            np.testing.assert_allclose(found, (cosines.min(), cosines.mean(), cosines.max()), atol=1e-5)
            assert f"{each.mean:.3f} by {each.teacher}" in page
    told(text, "000001", "https://example.org/picture.png", "320 x 240", "teacher of 4", "50.0%", "10.0%")
    write_card(tmp_path, card(2, 2))
    assert inspected(tmp_path, one)[0].teachers == (("all teachers", slice(0, 6)),), "a card of other data"


def test_every_augmentation_is_replayed(tmp_path):
    inspection, _, page, (image, *views) = inspected(tmp_path, sample())
    assert (image.size, len(views), {view.size for view in views}) == (SIZE, 7, {(TILE, TILE)})
    expected = [POLICY.apply(decode_image(inspection.sample.image), one) for one in inspection.augmentations]
    for place, (view, params) in enumerate(zip(views, inspection.augmentations, strict=True)):
        # WebP loses something of noise, and yet each is the nearest to its own.
        losses = [sum(ImageStat.Stat(ImageChops.difference(view, one)).mean) for one in expected]
        assert losses.index(min(losses)) == place
        assert all(words in page for words in describe_operations(params))


def test_crops_are_drawn_on_the_image(tmp_path):
    params = AugmentationParams(crop=(20, 30, 100, 200), image_size=SIZE)
    *_, pictures = inspected(tmp_path, sample(augmentations=[params], image_emb=np.ones((1, 6), np.float32)))
    difference = ImageChops.difference(pictures[0], decode_image(encoded(*SIZE, seed=3)))
    strong = np.asarray(difference).astype(int).sum(-1)
    assert min(strong[20, 40:200].mean(), strong[60:100, 30].mean()) > 1.4 * strong[:15].mean()


@pytest.mark.parametrize("image", [encoded(*SIZE), None], ids=["with an image", "without"])
def test_plain_samples(tmp_path, image):
    one = ImageTextSample(key="a", captions=("first", "second"), image=image, image_extension="png")
    _, text, page, pictures = inspected(tmp_path, one)
    assert len(pictures) == (image is not None)
    assert "second" in text
    assert ("second" in page, "Augmentations" in page) == (True, False)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_images_of_any_shape(tmp_path, size):
    inspection, _, _, pictures = inspected(tmp_path, sample(size=size))
    assert (inspection.problem, len(pictures)) == ("", 8)


def test_what_data_say_is_no_markup(tmp_path):
    teacher = attrs.evolve(card(6).teachers[0], name="x[/nothing] [red]y\x1b[2J")
    write_card(tmp_path, attrs.evolve(card(6), teachers=(teacher,)))
    _, text, *_ = inspected(tmp_path, sample(dim=6, captions=("a [red] \x1b[2J cat",)))
    told(text, "x[/nothing] [red]y\\x1b[2J", "a [red] \\x1b[2J cat")
    one = ImageTextSample(key="a", captions=("<script>alert(1)</script> \u202eback",), image=encoded(*SIZE))
    _, _, page, _ = inspected(tmp_path, one)
    told(page, "&lt;script&gt;", "default-src 'none'")
    assert not any(odd in text + page for odd in ("\x1b", "<script", "\u202e"))


@pytest.mark.parametrize(
    ("image", "problem", "num_pictures"),
    [(encoded(*SIZE, seed=4), "the reinforced copy", 1), (b"<html>", "", 0), (None, "mobileclip data join", 0)],
    ids=["wrong", "broken", "none"],
)
def test_an_image_that_is_not_the_samples_own_is_not_replayed(tmp_path, image, problem, num_pictures):
    inspection, text, page, pictures = inspected(tmp_path, sample(image=image))
    assert problem in inspection.problem
    assert len(pictures) == num_pictures
    assert "<html>" not in text + page.partition("<body")[2]


NOTHING_THERE = [
    ({}, None, ()),
    (None, None, ("a.tar", "unreadable_shard")),
    ({"a": {"paug.json": b'{"param_aug": []}'}}, None, ()),
    ("samples", "00003", ("3", "000003")),
    ("samples", "xyz", ("000001", "000003")),
]


@pytest.mark.parametrize(("members", "key", "named"), NOTHING_THERE)
def test_nothing_there(tmp_path, members, key, named):
    if members == "samples":
        write_shard(tmp_path / "a.tar", [make_sample(number) for number in (1, 2, 3)])
        assert inspect_sample(tmp_path / "a.tar", "000002").sample.key == "000002"
    elif members is not None:
        write_raw(tmp_path / "a.tar", members)
    with fails(ValueError, *named):
        inspect_sample(tmp_path / "a.tar", key)
