"""Embeddings and the model they are of, kept together."""

import zipfile

import attrs
import numpy as np
import pytest

from mobileclip import reparameterize
from mobileclip.encoders import save_model
from mobileclip.inference import ModelIdentity
from mobileclip.inference.embedding import Embeddings, read_embeddings, write_embeddings
from tests.build.commands import worked
from tests.encoders.small import SMALL, randomised
from tests.errors import fails

MODEL = ModelIdentity(weights_sha256="a" * 64, spec="{}", version="1")
ROW = np.zeros((1, 4), np.float32)
OTHER = attrs.evolve(MODEL, weights_sha256="b" * 64)


def some(model=MODEL, first=0, count=3):
    rows, paths = np.eye(8, dtype=np.float32)[first : first + count], map("{}.jpg".format, range(first, first + count))
    return Embeddings(model=model, image=rows, image_paths=tuple(paths), text=rows[:1], texts=(f"text {first}\udcff",))


def assert_same(read, written):
    assert (read.model, read.image_paths, read.texts) == (MODEL, written.image_paths, written.texts)
    np.testing.assert_array_equal(read.image, written.image)
    np.testing.assert_array_equal(read.text, written.text)


def test_what_is_written_is_read_again(tmp_path):
    written = some()
    write_embeddings(tmp_path / "e.npz", written)
    assert_same(read_embeddings(tmp_path / "e.npz"), written)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as archive:
        assert sorted(archive) == ["image_embedding", "image_path", "model", "text", "text_embedding"]


def test_those_of_one_model_are_joined_and_those_of_two_are_not():
    joined = some().joined(some(first=3), here="old.npz", there="the new ones")
    assert len(joined.image) == len(joined.image_paths) == 6
    assert len(joined.texts) == 2
    with fails(ValueError, "old.npz", "the new ones", "weights aaaaaaaaaaaa", "and bbbbbbbbbbbb"):
        some().joined(some(OTHER), here="old.npz", there="the new ones")
    with fails(ValueError, "a and b", "specs"):
        some().joined(some(attrs.evolve(MODEL, spec='{"size": 1}')), here="a", there="b")
    newer = attrs.evolve(MODEL, version="2")
    assert some().joined(some(newer), here="a", there="b").model == MODEL


def test_an_archive_is_not_replaced_unasked(tmp_path):
    write_embeddings(tmp_path / "e.npz", some())
    before = (tmp_path / "e.npz").read_bytes()
    with pytest.raises(FileExistsError):
        write_embeddings(tmp_path / "e.npz", some(count=1))
    assert (tmp_path / "e.npz").read_bytes() == before
    write_embeddings(tmp_path / "e.npz", some(count=1), overwrite=True)
    assert len(read_embeddings(tmp_path / "e.npz").image) == 1
    with fails(ValueError):
        write_embeddings(tmp_path / "nothing.npz", Embeddings(model=MODEL))
    assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"image_paths": ("a",)}, (ValueError, "1", "image")),
        ({"image": np.zeros((1, 4)), "image_paths": ("a",)}, (ValueError, "float64")),
        ({"image": np.full((1, 4), np.nan, np.float32), "image_paths": ("a",)}, (ValueError,)),
        ({"image": ROW, "image_paths": ("a",), "text": ROW[:, :3], "texts": ("b",)}, (ValueError, "4")),
    ],
)
def test_rows_that_make_no_sense_are_refused(values, error):
    with fails(*error):
        Embeddings(model=MODEL, **values)


def claims_much(path):
    with zipfile.ZipFile(path, "w") as archive:
        head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 1000), }"
        head += b" " * (117 - len(head)) + b"\n"
        archive.writestr("image_embedding.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 and more"),
        lambda path: np.savez(path, image_embedding=np.zeros((1, 2), np.float32)),
        lambda path: np.savez(path, model=np.array("{")),
        lambda path: np.savez(path, model=np.array("[1]")),
        lambda path: np.savez(path, model=np.array("[" * 100_000)),
        lambda path: np.savez(path, model=np.array('{"weights_sha256": 1, "spec": "", "version": ""}')),
        lambda path: np.savez(path, model=np.array({"a": 1}, dtype=object)),
        lambda path: np.savez_compressed(path, model=np.array(MODEL.to_json())),
        claims_much,
    ],
)
def test_another_archive_is_refused(tmp_path, make):
    make(tmp_path / "e.npz")
    with fails(ValueError, "e.npz"):
        read_embeddings(tmp_path / "e.npz")


def test_one_changed_byte_is_refused_or_changes_nothing(tmp_path):
    written, path = some(), tmp_path / "e.npz"
    write_embeddings(path, written)
    content = path.read_bytes()
    outcomes = set()
    for place in range(0, len(content), 3):  # fields are of two and four bytes, and most are there twice
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            read = read_embeddings(path)
        except (ValueError, OSError) as error:
            outcomes.add(type(error))
            continue
        outcomes.add(None)
        assert_same(read, written)
    assert outcomes >= {None, ValueError}


def test_a_folded_checkpoint_is_another_model_than_its_training_form(capsys, tmp_path, small_file):
    copied, folded = tmp_path / "copy.safetensors", tmp_path / "folded.safetensors"
    save_model(reparameterize(randomised(SMALL)), folded)
    copied.write_bytes(small_file.read_bytes())
    (tmp_path / "texts.txt").write_text("a cat")
    identities = []
    for number, path in enumerate((small_file, copied, folded)):
        worked(capsys, "embed", "--texts", tmp_path / "texts.txt", "-m", path, "-o", tmp_path / f"{number}.npz")
        identities.append(read_embeddings(tmp_path / f"{number}.npz").model)
    assert identities[0] == identities[1] != identities[2]
