"""Many pictures to embeddings: in order, with what cannot be read between them, in this process or in several."""

import hashlib

import numpy as np
import pytest

import mobileclip
from mobileclip.data import ImageError
from mobileclip.inference.encoding import Picture, encode_pictures
from tests.collections.pictures import draw
from tests.errors import fails


@pytest.fixture(scope="module")
def clip(small_file):
    return mobileclip.load(checkpoint=small_file)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [draw(folder / f"{number}.png", number) for number in range(11)]


def pictures(files, **values):
    return [Picture(key=number, name=path.name, source=path, **values) for number, path in enumerate(files)]


def test_embeddings_are_those_of_the_model_in_order(clip, files):
    found = list(encode_pictures(clip, pictures(files), batch_size=4))
    assert [one.picture.key for one in found] == list(range(11))
    expected = clip.encode_image(files).numpy()
    np.testing.assert_allclose(np.stack([one.embedding for one in found]), expected, atol=1e-6)
    assert {(one.read.width, one.read.height) for one in found} == {(96, 80)}
    assert found[3].read.sha256 == hashlib.sha256(files[3].read_bytes()).hexdigest()
    assert found[3].read.pixels is None


@pytest.mark.slow
def test_processes_give_the_same(clip, files):
    alone = list(encode_pictures(clip, pictures(files), batch_size=4))
    beside = list(encode_pictures(clip, pictures(files), batch_size=4, num_workers=2))
    assert [one.picture.name for one in beside] == [one.picture.name for one in alone]
    np.testing.assert_array_equal(*(np.stack([one.embedding for one in found]) for found in (alone, beside)))


def test_what_cannot_be_read_stands_where_it_stood(clip, files, tmp_path):
    (tmp_path / "torn.png").write_bytes(files[0].read_bytes()[:90])
    mixed = [tmp_path / "torn.png", files[0], tmp_path / "missing.png", files[1]]
    found = list(encode_pictures(clip, pictures(mixed), batch_size=2))
    assert [one.embedding is None for one in found] == [True, False, True, False]
    assert [one.read.reason for one in found if isinstance(one.read, ImageError)][1] == "missing_file"
    assert "torn.png" in str(found[0].read)


def test_a_known_picture_is_not_decoded(clip, files):
    known = (hashlib.sha256(files[1].read_bytes()).hexdigest(),)
    found = list(encode_pictures(clip, pictures(files[:3], known=known)))
    assert [one.embedding is None for one in found] == [False, True, False]
    assert found[1].read.sha256 == known[0]


def test_contents_are_taken_as_files_are(clip, files):
    by_path = list(encode_pictures(clip, pictures(files[:2])))
    by_content = list(
        encode_pictures(clip, [Picture(key=None, name="x", source=path.read_bytes()) for path in files[:2]])
    )
    np.testing.assert_array_equal(by_path[1].embedding, by_content[1].embedding)
    assert list(encode_pictures(clip, [])) == []
    with fails("inference.batch-size-least"):
        next(encode_pictures(clip, pictures(files), batch_size=0))
