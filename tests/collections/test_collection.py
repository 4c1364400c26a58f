"""A person's pictures: indexed, brought up to date, and searched."""

import errno
import json
import os
import shutil
import sqlite3
import sys
from contextlib import nullcontext
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image
from pillow_heif import from_pillow

import mobileclip
from mobileclip.blocks import models
from mobileclip.collections import INDEX, Collection, GraphSizes, IndexOptions, ModelSource, Store, scan, small_images
from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.nearest import GRAPH
from mobileclip.collections.read import FileReader
from mobileclip.data import ImageError
from mobileclip.encoders import save_model
from mobileclip.encoders.checkpoints import layouts
from mobileclip.engines import InlineEngine
from mobileclip.extras import install
from mobileclip.serialization import to_json
from tests.collections.pictures import add, contents, counts, draw, draw_all, index_of, names, pack, telling
from tests.errors import fails

SIZES = GraphSizes(exact=3)


@pytest.fixture(scope="module")
def clip(telling_file):
    return mobileclip.load(checkpoint=telling_file)


@pytest.fixture
def photos(tmp_path):
    draw_all(tmp_path / "photos/deep/er", (1, 3, 5))
    return draw_all(tmp_path / "photos", (0, 2, 4))


def add_found(index):
    """Bring an index up to date with what it is of, as a bare `mobileclip index` does."""
    return index.add_found(scan(index.store.inputs, may_be_missing=True), IndexOptions(show_progress=False))


def test_pictures_are_indexed_and_found(index, photos, clip):
    report = add(index, photos)
    assert (counts(report), report.unreadable) == ((6, 0, 0, 0), ())
    held, paths = contents(index), sorted(photos.rglob("*.png"))
    expected = clip.encode_image(paths).numpy()
    np.testing.assert_allclose(np.stack([held[str(path), None] for path in paths]), expected, atol=1e-3)
    best, second = index.search(image=photos / "2.png", k=2)
    assert (best.name, best.score) == (str(photos / "2.png"), pytest.approx(1, abs=2e-3))
    assert second.score < best.score
    assert (best.width, best.height, best.size) == (96, 80, (photos / "2.png").stat().st_size)
    scores, by_text = expected @ clip.encode_text("a cat").numpy()[0], index.search("a cat", k=6)
    assert [match.path for match in by_text] == [str(paths[place]) for place in np.argsort(-scores)]
    assert [match.score for match in by_text] == pytest.approx(np.sort(scores)[::-1], abs=2e-3)


def test_a_picture_is_searched_with_as_those_of_the_index_were_read(make, tmp_path):
    """The same picture scores as its own row does; read in the other way, it would not."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=95)
    rows = []
    for decode in ("exact", "fast"):
        found = Collection.open(make(decode, tmp_path / "noise.jpg", decode=decode).path)
        (by_image,) = found.search(image=str(tmp_path / "noise.jpg"), k=1)
        (by_row,) = found.search(like=[by_image.id], k=1)
        assert by_image.score == pytest.approx(by_row.score, abs=1e-6)
        rows.append(found.snapshot.vectors[0].astype(np.float32))
    assert rows[0] @ rows[1] < 1 - 1e-4


def test_only_what_changed_is_read_again(index, photos, monkeypatch):
    add(index, photos)
    before = contents(index)
    draw(photos / "0.png", 100)
    (photos / "2.png").rename(photos / "moved.png")
    (photos / "4.png").unlink()
    os.utime(photos / "deep/er/1.png", ns=(5, 5))
    shutil.copy(photos / "deep/er/3.png", photos / "copy.png")
    draw(photos / "new.png", 101)
    assert counts(add(Collection.open(index.path), photos)) == (2, 3, 2, 2)
    index.refresh()
    after = contents(index)
    assert {path for path, _ in after} == set(map(str, photos.rglob("*.png")))
    np.testing.assert_array_equal(after[str(photos / "moved.png"), None], before[str(photos / "2.png"), None])
    assert not np.array_equal(after[str(photos / "0.png"), None], before[str(photos / "0.png"), None])
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("a model was loaded, and nothing is new"))
    assert add(Collection.open(index.path), photos).num_unchanged == 7
    for time_ns in (2**63, -1):  # not every file system has such times
        for changed in (time_ns, time_ns + 10**9):
            os.utime(photos / "0.png", ns=(time_ns, changed))
            if (photos / "0.png").stat().st_mtime_ns != changed:
                continue
            assert counts(add(index, photos))[1:] == (1, 6, 0)
            assert counts(add(index, photos))[1:] == (0, 7, 0)


def test_photographs_of_phones_wait_for_their_extra(index, photos, monkeypatch):
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "Phone 9", 6
    for number in range(2):
        image = Image.open(photos / "0.png")
        from_pillow(image).save(photos / f"phone{number}.HEIC", quality=80 + number, exif=exif.tobytes())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        report = add(index, photos)
    assert (report.num_encoded, report.unreadable) == (6, ())
    assert report.uninstalled == {f"reading HEIF files needs pillow_heif: `{install('heif')}`": 2}
    report = add(index, photos)
    assert (counts(report), report.uninstalled) == ((2, 0, 6, 0), {})
    found, _ = index.search("a cat", where=["camera=Phone 9"])
    (small,) = small_images([found], 40)
    assert (found.width, found.height, small.size) == (80, 96, (33, 40))


def test_pictures_of_one_size_are_not_compared_with_all_of_it(index, tmp_path):
    for number in range(103):
        draw(tmp_path / "same" / f"{number}.bmp", number)
    add(index, tmp_path / "same")
    before = contents(index)
    (tmp_path / "same").rename(tmp_path / "moved")
    assert counts(add(index, tmp_path / "moved"))[:2] == (3, 100)
    after = contents(index)
    for (path, _), vector in before.items():
        np.testing.assert_allclose(after[path.replace("/same/", "/moved/"), None], vector, atol=1e-3)


@pytest.mark.parametrize("decode", ["fast", "exact"])
@pytest.mark.parametrize("name", ["line.png", "line.jpg"])
def test_what_cannot_be_read_is_named_once_and_tried_again_when_it_changes(index, photos, monkeypatch, name, decode):
    Image.new("RGB", (1, 60_000)).save(photos / name)  # longer than the model takes
    (photos / f"torn-{name}").write_bytes((photos / name).read_bytes()[:60])
    opened = Path.open

    def refused(path, *arguments, **options):
        if path.name == "2.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        report = add(index, photos, decode=decode)
    assert (report.num_encoded, len(report.unreadable)) == (5, 3)
    assert all(any(f"/{one}" in told for told in report.unreadable) for one in (name, f"torn-{name}", "2.png"))
    report = add(index, photos, decode=decode)  # another time, another's file may be readable
    assert (report.num_encoded, report.num_unreadable, report.unreadable) == (1, 2, ())
    draw(photos / f"torn-{name}", 7)
    assert add(index, photos, decode=decode).num_encoded == 1
    assert (index.snapshot.num_unreadable, len(index)) == (1, 7)


def test_an_unchanged_folder_is_indexed_without_an_embedding_and_drops_nothing_of_another(index, photos, tmp_path):
    others = draw_all(tmp_path / "others", [30])
    add(index, photos)
    add(index, others)
    (others / "30.png").unlink()
    assert (add(index, photos).num_unchanged, len(index)) == (6, 7)
    with fails(ValueError):
        add(index, others)
    assert add(index, draw_all(others, [31])).num_removed == 1
    assert set(index.store.inputs) == {str(photos), str(others)}
    with sqlite3.connect(index.path / INDEX) as db:
        db.execute("UPDATE embeddings SET embedding = x'00'")  # whoever reads one finds it damaged
    again = Collection.open(index.path)
    assert add(again, photos).num_unchanged == 6
    with fails(ValueError):
        again.search("a kite")


def test_a_moved_folder_takes_its_rows_along_without_being_encoded(index, photos, tmp_path):
    pack(photos / "00.tar", 20, 21, 22)
    (photos / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    kept, albums = draw_all(tmp_path / "kept", [30]), tmp_path / "albums"
    add(index, photos, kept)
    before = contents(index)
    report = add(index, photos.rename(albums))
    assert (counts(report)[:2], len(report.unreadable)) == ((0, 9), 1)
    after = contents(index)
    assert len(after) == len(before)
    for (path, part), vector in before.items():
        np.testing.assert_array_equal(after[path.replace(str(photos), str(albums)), part], vector)
    # The old place goes, with what could not be read there.
    again = add_found(index)
    assert (again.num_unchanged, again.num_removed, again.missing) == (10, 1, {})
    assert add_found(index).num_removed == 0
    assert set(index.store.inputs) == {str(albums), str(kept)}


def test_what_was_given_by_its_name_stays_as_long_as_it_is_there(index, photos, tmp_path):
    draw(tmp_path / "elsewhere" / "linked.png", 60)
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    hidden, plain = draw(photos / ".hidden.png", 61), draw(photos / "picture.png", 62).rename(photos / "picture")
    deep = draw(photos / ".cache" / "a.png", 63)
    (photos / ".cache" / "other.txt").write_text("a folder without any file may be a disk that is not mounted")
    add(index, photos, hidden, plain, deep, photos / "link" / "linked.png")
    assert (add(index, photos).num_removed, len(index)) == (0, 10)
    hidden.unlink()
    deep.unlink()
    assert (add(index, photos).num_removed, len(index)) == (2, 8)


def test_pictures_of_shards_are_indexed_by_their_keys(index, tmp_path):
    pattern = str(tmp_path / "{00..01}.tar")
    pack(tmp_path / "00.tar", 0, 1, 2)
    for seeds, expected in (((3, 4), (5, 0, 0, 0)), ((), (0, 0, 5, 0)), ((4, 5, 6), (2, 1, 3, 0))):
        if seeds:
            pack(tmp_path / "01.tar", *seeds)
        assert counts(add(index, pattern)) == expected
    assert {part for _, part in contents(index)} == {"0000", "0001", "0002", "0004", "0005", "0006"}
    assert index.search("a cat")[0].name.startswith(f"{tmp_path}/0")
    (tmp_path / "00.tar").unlink()
    assert (add(index, tmp_path).num_removed, len(index)) == (3, 3)


@pytest.mark.parametrize("kind", ["shard", "folder"])
def test_what_was_begun_is_kept_and_finished(index, photos, tmp_path, monkeypatch, kind):
    pack(tmp_path / "00.tar", 0, 1, 2, 3, 4)
    given, count = (tmp_path / "00.tar", 5) if kind == "shard" else (photos, 6)
    read = FileReader.read

    def stopped(self, *given, **choices):
        for number, _ in enumerate(read(self, *given, **choices), 1):
            if number == 4 if kind == "shard" else self.findings.num_rows == 4:
                raise KeyboardInterrupt
            yield

    with monkeypatch.context() as patch:
        patch.setattr(FileReader, "read", stopped)
        with pytest.raises(KeyboardInterrupt):
            add(index, given, **({"segment_rows": 2, "batch_size": 1} if kind == "shard" else {}))
    held = len(contents(Collection.open(index.path)))
    assert 0 < held < count if kind == "shard" else held == 4
    assert counts(add(index, given)) == (count - held, 0, held, 0)
    assert (len(contents(index)), len(index.store.finished)) == (count, kind == "shard")


def test_another_model_is_refused_by_name_also_by_workers(photos, tmp_path, telling_file):
    copy = shutil.copy(telling_file, tmp_path / "model.safetensors")
    other = index_of(tmp_path / "other", copy)
    save_model(telling(seed=1), copy)
    with fails(ValueError, "other", "weights"):
        Collection.open(other.path).search("a cat")
    with fails(ValueError, "other"):
        add(other, photos, engine=InlineEngine(device="cpu"))


@pytest.mark.parametrize("layout", ["official", "open_clip"])
@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"model": "mobileclip_s1"}, "mobileclip_s1"),
        ({"model": "mobileclip_s1", "checkpoint": "a.pt"}, "mobileclip_s1 from a.pt"),
        ({"model": "mobileclip_b", "image_size": 256}, "mobileclip_b for images of 256 pixels"),
        ({"model": "mobileclip_b", "context_length": 32}, "mobileclip_b for texts of 32 ids"),
        ({"checkpoint": "hf-hub:apple/MobileCLIP-S1"}, "hf-hub:apple/MobileCLIP-S1"),
        *(({"model": name}, None) for name in ("mobileclip_b", "mobileclip_blt")),
        ({"model": "mobileclip_b", "checkpoint": "a.pt"}, None),
        *(({"checkpoint": one}, None) for one in ("hf-hub:apple/MobileCLIP-B-LT", "hf-hub:someone/else", "a.pt")),
    ],
)
def test_a_name_tells_of_another_model_or_leaves_it_to_the_weights(tmp_path, layout, asked, refused):
    image = layouts[layout].adapted(models["mobileclip_b"].image, {})
    spec = to_json(attrs.evolve(models["mobileclip_b"], image=image))
    source = ModelSource(checkpoint="/somewhere/b.pt")
    about = IndexMetadata(weights_sha256="0" * 64, spec=spec, version="1", dim=512, model=source)
    index = Collection(Store.create(tmp_path / "index", about))
    with fails(ValueError, "/somewhere/b.pt", refused) if refused else nullcontext():
        index.require_source(ModelSource(**asked))
    about = attrs.evolve(about, spec='{"image": {"kind": "theirs"}}')  # of which no name tells anything
    Collection(Store.create(tmp_path / "theirs", about)).require_source(ModelSource(**asked))


def test_dead_paths_take_no_places_of_living_ones_by_comparing_or_by_a_graph_which_says_so(index, photos, tmp_path):
    gone = [draw(tmp_path / "gone" / f"{number}.png", 2) for number in range(20)]
    index.graph_sizes = SIZES
    add(index, photos, tmp_path / "gone")
    assert (index.path / GRAPH).is_file()
    shutil.rmtree(tmp_path / "gone")
    assert len(index) == 26
    reader = Collection.open(index.path)
    for is_exact, k in ((True, 30), (False, 1)):
        found = reader.search(image=photos / "2.png", k=k)
        assert (names(found)[0], len(found), found.is_exact) == ("2.png", 6 if is_exact else 1, is_exact)
        assert not {str(path) for path in gone} & {one.path for one in reader.search("a cat", k=k)}
        reader.refresh()
        reader.graph_sizes = SIZES
    assert reader.search(image=photos / "2.png", k=1, where=["width>1"]).is_exact, "conditions compare all pictures"


def test_an_index_that_is_overwritten_in_place_is_searched_as_it_is_now(make, index, photos, tmp_path):
    add(index, photos)
    index.search("a kite")
    new = make("new", draw_all(tmp_path / "others", (81, 82)))
    shutil.copytree(new.path, index.path, dirs_exist_ok=True)
    assert sorted(names(index.search("a kite"))) == ["81.png", "82.png"]


def test_pictures_of_a_disk_that_is_not_mounted_are_kept_hidden_and_counted_until_they_are_forgotten(
    index, photos, tmp_path
):
    assert index.search("a kite") == []
    disk = draw_all(photos / "disk", [72])
    draw(disk / "2023" / "71.png", 71)
    add(index, photos)
    disk.rename(tmp_path / "unmounted")
    for is_there in (False, True):  # without its mount point, and with an empty one
        if is_there:
            disk.mkdir()
        report = add(index, photos)
        assert (dict(report.missing), len(index)) == ({str(disk): 2}, 8)
        assert {"71.png", "72.png"}.isdisjoint(names(index.search("a kite", k=9)))
    disk.rmdir()
    (tmp_path / "unmounted").rename(disk)
    assert add(index, photos).num_unchanged == 8
    shutil.rmtree(disk)
    assert index.forget(disk) == 2
    assert (add(index, photos).missing, len(index)) == ({}, 6)
    photos.rename(tmp_path / "unmounted")
    for where, count in (((), "6"), (["path~2.png"], "1")):
        with fails(ValueError, count):
            index.search("a kite", where=where)
    report = add_found(index)
    assert (report.missing, report.num_removed, index.store.inputs) == ({str(photos): 6}, 0, (str(photos),))


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_embeddings_are_exported_and_those_of_files_that_are_gone_nowhere(index, photos, tmp_path, clip, ending):
    output = tmp_path / f"all.{ending}"
    with fails(ValueError):
        index.export(output)
    add(index, photos, draw_all(tmp_path / "away", [9]))
    shutil.rmtree(tmp_path / "away")
    (photos / "2.png").unlink()
    assert (len(index), index.export(output, show_progress=False)) == (7, 5)
    if ending == "npz":
        with np.load(output) as file:
            paths = file["image_path"].tolist()
            np.testing.assert_allclose(file["image_embedding"], clip.encode_image(paths).numpy(), atol=1e-3)
            assert json.loads(file["model"].item())["weights_sha256"] == index.store.about.weights_sha256
    shutil.rmtree(photos)
    with fails(ValueError, "7"):
        index.export(output, overwrite=True)


def test_what_is_asked_wrongly_is_told(index, photos):
    for text, k, named in ((" ", 1, ""), ("a cat", 0, "0")):
        with fails(ValueError, named):
            index.search(text, k=k)
    for given, error in ((photos / "lost", FileNotFoundError), ("s3://a/b", ValueError), (" ", ValueError)):
        with fails(error):
            add(index, given)
    add(index, photos / "0.png")
    (photos / "torn.png").write_bytes(b"no picture")
    for image, named in ((b"no picture", ""), (photos / "torn.png", f"{photos}/torn.png")):
        with fails(ImageError, named):
            index.search(image=image)


def test_a_name_that_is_no_text_is_left_out(index, photos):
    os.rename(os.fsencode(photos / "0.png"), os.fsencode(photos) + b"/\xff.png")  # noqa: PTH104
    report = add(index, photos)
    assert (report.num_encoded, [left.reason for left in report.left_out]) == (5, ["name_not_utf8"])
