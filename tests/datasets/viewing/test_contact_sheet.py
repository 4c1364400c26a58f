"""Looking into a shard: what is said of a sample, and the sheet that is drawn of it."""

import contextlib
import io

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFont

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
from mobileclip.data.augmentation import OPERATIONS
from mobileclip.datasets.viewing import (
    TILE,
    describe_crop,
    describe_operations,
    draw_sheet,
    inspect_sample,
    print_inspection,
    wrap,
)
from mobileclip.inputs import ImageInput
from tests.data.made_samples import encoded, golden, make_sample, write_raw
from tests.errors import fails
from tests.preloaded import preloaded

SIZE = (320, 240)


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
        print_inspection(inspection, min_width=160)
    return stream.getvalue()


def card(dims):
    image = ImageInput(size=224, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    teachers = [
        TeacherEntry(name=f"teacher of {dim}", weights_sha256="0", dim=dim, logit_scale=100.0, image=image)
        for dim in dims
    ]
    return ReinforcementCard(teachers=tuple(teachers), augmentation=datacompdr_augmentation(TILE), layout="npz")


def place_of(sheet, tile):
    """Where a tile is on the sheet, told by its lower half: a number covers a corner of the upper one."""
    whole, part = np.asarray(sheet), np.asarray(tile)[TILE // 2 :]
    return [
        (left, top - TILE // 2)
        for left in range(40, sheet.width - TILE, TILE + 16)
        for top in range(sheet.height - len(part))
        if np.array_equal(whole[top, left : left + TILE], part[0])
        and np.array_equal(whole[top : top + len(part), left : left + TILE], part)
    ]


class TestWords:
    @pytest.mark.parametrize("index", range(len(OPERATIONS)))
    def test_every_operation_has_some(self, index):
        words = {
            describe_operations(AugmentationParams(crop=(0, 0, 1, 1), operations=[(index, s * 0.5)])) for s in (1, -1)
        }
        assert all(text for (text,) in words)
        assert len(words) == 2 if OPERATIONS[index].signed else True

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

    def test_turning(self):
        assert describe_operations(AugmentationParams(crop=(0, 0, 9, 9), operations=[(5, 9.0)])) == ("turn left 9°",)
        image = Image.new("RGB", (41, 41))
        image.putpixel((20, 5), (255, 0, 0))
        turned = np.asarray(OPERATIONS[5].apply(image, 90.0))[..., 0]
        assert np.nonzero(turned)[1][0] < 10

    def test_crops(self):
        params = AugmentationParams(crop=(2, 3, 50, 100))
        assert describe_crop(params, (200, 100)) == "100 x 50 at (3, 2), 25%"
        assert describe_crop(params, None) == "100 x 50 at (3, 2)"


class TestInspection:
    def test_everything_is_said(self, tmp_path):
        text = printed(inspected(tmp_path, sample(metadata={"a": 1}, others={"cls": b"7"})))
        for part in (
            "000001",
            "https://example.org/picture.png",
            "picture 1",
            "first of 1",
            "second of 1",
            "320 x 240",
        ):
            assert part in text
        assert "cls 1," in text
        assert "Augmentations, 7" in text
        assert "image_emb\t7 x 6" in text
        assert "crop: width x height at (left, top)" in text
        assert "size and hash" in text

    def test_cosines_of_every_teacher(self, tmp_path):
        write_card(tmp_path, card((2, 4)))
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
        assert "teacher 2: teacher of 4" in printed(inspection)
        assert "On the first shard" not in printed(inspection)

    def test_how_far_teachers_recognise_the_views(self, tmp_path):
        measured = ViewAgreement(num_samples=9, num_views=63, agreement=0.25, plain_accuracy=0.5, view_accuracy=0.1)
        write_card(tmp_path, attrs.evolve(card((2, 4)), agreement=measured))
        text = " ".join(printed(inspected(tmp_path, sample())).split())
        assert "On the first shard, teachers take 25% of the stored views for the same as the plain picture" in text
        assert "for 50.0% of the plain pictures and for 10.0% of the views, where guessing gives " in text

    def test_without_a_card_all_teachers_are_one(self, tmp_path):
        (teacher,) = inspected(tmp_path, sample()).teachers
        assert teacher == ("all teachers", slice(0, 6))
        write_card(tmp_path, card((2, 2)))
        assert inspected(tmp_path, sample()).teachers == (teacher,), "a card of other data"

    @pytest.mark.parametrize("name", ["npz", "bf16", "noimage_bf16"])
    def test_public_shards(self, name):
        inspection = inspect_sample(golden(name))
        assert inspection.augmentations
        assert ("data join" in inspection.problem) == (name == "noimage_bf16")
        assert "whose size and hash are unknown" in printed(inspection)
        draw_sheet(inspection)

    def test_a_key(self, tmp_path):
        write_shard(tmp_path / "a.tar", [make_sample(number) for number in (1, 2, 3)])
        assert inspect_sample(tmp_path / "a.tar", "000002").sample.key == "000002"
        with fails(ValueError, "3", "did you mean '000003'"):
            inspect_sample(tmp_path / "a.tar", "00003")
        with fails(ValueError, "the first is '000001', the last '000003'"):
            inspect_sample(tmp_path / "a.tar", "xyz")

    def test_nothing_there(self, tmp_path):
        with fails(ValueError):
            inspect_sample(write_raw(tmp_path / "a.tar", {}))
        with pytest.raises(ValueError, match=r"nothing\.tar: unreadable_shard"):
            inspect_sample(tmp_path / "nothing.tar")
        with fails(ValueError):
            inspect_sample(write_raw(tmp_path / "a.tar", {"a": {"paug.json": b'{"param_aug": []}'}}))


class TestSheet:
    def test_every_augmentation_is_replayed_to_the_pixel(self, tmp_path):
        inspection = inspected(tmp_path, sample(7))
        sheet = draw_sheet(inspection)
        image, policy = decode_image(inspection.sample.image), datacompdr_augmentation(TILE)
        places = [place_of(sheet, policy.apply(image, params)) for params in inspection.augmentations]
        assert [len(found) for found in places] == [1] * 7
        flat = [found[0] for found in places]
        assert flat == sorted(flat, key=lambda place: (place[1], place[0])), "in their order"

    def test_the_image_is_there_under_its_crops(self, tmp_path):
        inspection = inspected(tmp_path, sample(1))
        sheet, image = draw_sheet(inspection), inspection.image
        shown = image.resize((round(image.width * 460 / 240), 460), Image.Resampling.LANCZOS)
        whole, part = np.asarray(sheet), np.asarray(shown)
        shares = [(whole[top : top + 460, 40 : 40 + shown.width] == part).all(-1).mean() for top in range(80, 140)]
        assert 0.9 < max(shares) < 1.0

    def test_the_teachers_of_the_card_are_named_beside_the_image(self, tmp_path):
        def differ(inspection):
            renamed = attrs.evolve(inspection, teachers=(("another", slice(6)),))
            one, other = (np.asarray(draw_sheet(each))[:540] for each in (inspection, renamed))
            return (one != other).any()

        inspection = inspected(tmp_path, sample(1))
        assert len(inspection.teachers) == 1
        assert not differ(inspection), "no card names them"
        assert differ(attrs.evolve(inspection, card=card((6,))))

    @pytest.mark.parametrize("count", [1, 5, 30])
    def test_is_as_high_as_it_needs_to_be(self, tmp_path, count):
        sheet = np.asarray(draw_sheet(inspected(tmp_path, sample(count))))
        assert (sheet[-30:] == sheet[0, 0]).all(), "a margin"
        assert (sheet[-120:] != sheet[0, 0]).any(), "and captions above"
        assert (sheet[:, -30:] == sheet[0, 0]).all()

    def test_a_wrong_image_is_not_replayed(self, tmp_path):
        inspection = inspected(tmp_path, sample(image=encoded(*SIZE, seed=4)))
        assert "the very copy" in inspection.problem
        assert draw_sheet(inspection).height < draw_sheet(inspected(tmp_path, sample())).height

    def test_a_broken_image(self, tmp_path):
        inspection = inspected(tmp_path, sample(image=b"<html>"))
        assert inspection.image is None
        assert "<html>" not in printed(inspection)
        draw_sheet(inspection)

    def test_no_image(self, tmp_path):
        inspection = inspected(tmp_path, sample(image=None))
        assert "`mobileclip data join`" in printed(inspection)
        params = [attrs.evolve(one, image_size=None) for one in inspection.augmentations]
        for one in (inspection, inspected(tmp_path, sample(image=None, augmentations=params))):
            assert draw_sheet(one).height > 400

    def test_plain_samples(self, tmp_path):
        one = ImageTextSample(key="a", captions=("first", "second"), image=encoded(*SIZE), image_extension="png")
        inspection = inspected(tmp_path, one)
        assert "second" in printed(inspection)
        assert "Embeddings" not in printed(inspection)
        assert draw_sheet(inspection).height < 1000
        inspection = inspected(tmp_path, attrs.evolve(one, image=None))
        assert "no image here" in printed(inspection)
        draw_sheet(inspection)

    @pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
    def test_images_of_any_shape(self, tmp_path, size):
        params = datacompdr_augmentation(TILE).sample(augmentation_rng(0, "a", 0), size)
        image = encoded(*size)
        changes = {"image": image, "image_sha256": hash_image(image), "augmentations": [params] * 7}
        inspection = inspected(tmp_path, sample(**changes))
        assert not inspection.problem
        assert draw_sheet(inspection).width == 1264


class TestText:
    @settings(max_examples=80, deadline=None)
    @given(
        text=st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=300), width=st.integers(20, 400)
    )
    def test_lines_fit_and_nothing_is_lost(self, text, width):
        font = ImageFont.load_default(16)
        lines = wrap(text, font, width)
        assert "".join("".join(lines).split()) == "".join(text.split())
        assert all(font.getlength(line) <= width for line in lines)

    @pytest.mark.parametrize(("has_font", "text"), [(False, "Koln ??"), (True, "Köln 東京")])
    def test_what_the_font_does_not_know(self, tmp_path, has_font, text):
        code = f"""
from PIL import ImageFont
from mobileclip.datasets.viewing import legible
def found(name, size):
    if not {has_font}:
        raise OSError(name)
ImageFont.truetype = found
assert legible("plain 9°") == ("plain 9°", "")
text, font = legible("Köln 東京")
assert text == {text!r}
assert bool(font) == {has_font}
"""
        done = preloaded().call("tests.preloaded:python", "-c", code, folder=tmp_path)
        assert done.status == 0, done.output


def test_names_from_data_are_no_markup(tmp_path):
    named = attrs.evolve(card([6]), teachers=(attrs.evolve(card([6]).teachers[0], name="x[/nothing] [red]y\x1b[2J"),))
    write_card(tmp_path, named)
    text = printed(inspected(tmp_path, sample(dim=6, captions=("a [red] \x1b[2J cat",))))
    assert "teacher 1: x[/nothing] [red]y\\x1b[2J" in text
    assert "a [red] \\x1b[2J cat" in text
    assert "\x1b" not in text
