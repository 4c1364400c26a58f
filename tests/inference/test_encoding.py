"""Many pictures to embeddings: in order, with what cannot be read between them, in this process or in several."""

import hashlib
import os

import numpy as np
import pytest

import mobileclip
from mobileclip.data import ImageError, LostProcessError
from mobileclip.data.images.transform import LIMITS
from mobileclip.datasets.videos import VideoFile
from mobileclip.inference.bulk_encoding import ImageItem, Moment, encode_images
from tests.collections.pictures import draw
from tests.datasets.made_videos import film
from tests.errors import fails


@pytest.fixture(scope="module")
def clip(small_file):
    return mobileclip.load(checkpoint=small_file)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [draw(folder / f"{number}.png", number) for number in range(11)]


def pictures(files, **values):
    return [ImageItem(key=number, name=path.name, source=path, **values) for number, path in enumerate(files)]


def test_embeddings_are_those_of_the_model_in_order(clip, files):
    found = list(encode_images(clip, pictures(files), batch_size=4))
    assert [one.item.key for one in found] == list(range(11))
    expected = clip.encode_image(files).numpy()
    np.testing.assert_allclose(np.stack([one.embedding for one in found]), expected, atol=1e-6)
    assert {(one.read.width, one.read.height) for one in found} == {(96, 80)}
    assert found[3].read.sha256 == hashlib.sha256(files[3].read_bytes()).hexdigest()
    assert found[3].read.pixels is None


@pytest.mark.slow
def test_processes_give_the_same(clip, files):
    alone = list(encode_images(clip, pictures(files), batch_size=4))
    beside = list(encode_images(clip, pictures(files), batch_size=4, num_workers=2))
    assert [one.item.name for one in beside] == [one.item.name for one in alone]
    np.testing.assert_array_equal(*(np.stack([one.embedding for one in found]) for found in (alone, beside)))


def test_what_cannot_be_read_stands_where_it_stood(clip, files, tmp_path):
    (tmp_path / "torn.png").write_bytes(files[0].read_bytes()[:90])
    mixed = [tmp_path / "torn.png", files[0], tmp_path / "missing.png", files[1]]
    found = list(encode_images(clip, pictures(mixed), batch_size=2))
    assert [one.embedding is None for one in found] == [True, False, True, False]
    assert [one.read.reason for one in found if isinstance(one.read, ImageError)][1] == "missing_file"
    assert "torn.png" in str(found[0].read)


def test_a_known_picture_is_not_decoded(clip, files):
    known = (hashlib.sha256(files[1].read_bytes()).hexdigest(),)
    found = list(encode_images(clip, pictures(files[:3], known=known)))
    assert [one.embedding is None for one in found] == [False, True, False]
    assert found[1].read.sha256 == known[0]


def test_contents_are_taken_as_files_are(clip, files):
    by_path = list(encode_images(clip, pictures(files[:2])))
    by_content = list(
        encode_images(clip, [ImageItem(key=None, name="x", source=path.read_bytes()) for path in files[:2]])
    )
    np.testing.assert_array_equal(by_path[1].embedding, by_content[1].embedding)
    assert list(encode_images(clip, [])) == []
    with fails(ValueError):
        next(encode_images(clip, pictures(files), batch_size=0))


def test_frames_of_several_videos_are_those_of_their_times(clip, tmp_path):
    """Moments come in turns, and what cannot be opened stands between them."""
    films = [film(tmp_path / f"{number}.mp4", scenes) for number, scenes in enumerate(([1, 2, 3], [4, 5]))]
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(films[0].read_bytes()[:200])
    moments = [(films[0], 0.0), (films[0], 4.0), (films[1], 2.0), (torn, 0.0), (films[1], 0.0), (films[0], 2.0)]
    wanted = [ImageItem(key=at, name=path.name, source=Moment(path=path, seconds=at)) for path, at in moments]
    found = list(encode_images(clip, wanted, batch_size=4))
    assert [isinstance(one.read, ImageError) for one in found] == [path == torn for path, _ in moments]
    assert "torn.mp4" in str(found[3].read)
    for one, (path, at) in zip(found, moments, strict=True):
        if path == torn:
            continue
        with VideoFile(path, LIMITS, "a video") as video:
            expected = clip.encode_image(video.frame(at)).numpy()[0]
        np.testing.assert_allclose(one.embedding, expected, atol=1e-6)
        assert (one.read.sha256, one.read.num_bytes, one.read.width, one.read.height) == ("", 0, 96, 64)


def test_what_is_not_chosen_is_read_and_not_encoded(clip, files):
    told = []

    def choose(picture, pixels):
        told.append((picture.key, pixels.shape))
        return picture.key % 2 == 0

    missing = ImageItem(key=3, name="none.png", source=files[0].with_name("none.png"))
    found = list(encode_images(clip, [*pictures(files[:3]), missing], batch_size=2, choose=choose))
    assert [one.embedding is None for one in found] == [False, True, False, True]
    assert found[1].read.width == 96
    assert told == [(number, (64, 64, 3)) for number in range(3)]


class Deadly:
    """What ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_pictures_that_a_process_was_lost_with_are_named(clip, files):
    deadly = ImageItem(key=None, name="deadly.png", source=Deadly())
    with fails(LostProcessError, "reading", "deadly.png and 2 others"):
        list(encode_images(clip, [deadly, *pictures(files[:2])], num_workers=2))
