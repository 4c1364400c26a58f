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
from mobileclip.collections.nearest import GRAPH, update_graph
from mobileclip.collections.read import FileReader
from mobileclip.data import ImageError
from mobileclip.data.images.files import describe_left_out
from mobileclip.encoders import save_model
from mobileclip.encoders.checkpoints import layouts
from mobileclip.extras import install
from mobileclip.serialization import to_json
from tests.collections.pictures import contents, draw, index_of, pack, telling
from tests.errors import fails

OPTIONS = IndexOptions(show_progress=False)


@pytest.fixture(scope="module")
def clip(telling_file):
    return mobileclip.load(checkpoint=telling_file)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number in range(6):
        draw(folder / ("deep/er" if number % 2 else ".") / f"{number}.png", number)
    return folder


@pytest.fixture
def index(tmp_path, telling_file):
    return index_of(tmp_path / "index", telling_file)


def add(index, *inputs, **choices):
    report = index.add(*inputs, options=IndexOptions(show_progress=False, **choices))
    assert str(report)
    return report


def names(matches):
    return [match.path.rsplit("/", 1)[1] for match in matches]


def test_pictures_are_indexed_and_found(index, photos, clip):
    report = add(index, photos)
    assert (report.num_encoded, report.num_removed, report.unreadable) == (6, 0, ())
    held = contents(index)
    paths = sorted(photos.rglob("*.png"))
    expected = clip.encode_image(paths).numpy()
    np.testing.assert_allclose(np.stack([held[str(path), None] for path in paths]), expected, atol=1e-3)
    (best, second) = index.search(image=photos / "2.png", k=2)
    assert best.name == str(photos / "2.png")
    assert best.score == pytest.approx(1, abs=2e-3)
    assert second.score < best.score
    assert (best.width, best.height, best.size) == (96, 80, (photos / "2.png").stat().st_size)
    scores = expected @ clip.encode_text("a cat").numpy()[0]
    by_text = index.search("a cat", k=6)
    assert [match.path for match in by_text] == [str(paths[place]) for place in np.argsort(-scores)]
    assert [match.score for match in by_text] == pytest.approx(np.sort(scores)[::-1], abs=2e-3)


def test_a_picture_is_searched_with_as_those_of_the_index_were_read(tmp_path, telling_file):
    """The same picture scores as its own row does; read in the other way, it would not."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    photo = tmp_path / "noise.jpg"
    Image.fromarray(noise).save(photo, quality=95)
    rows = []
    for decode in ("exact", "fast"):
        index_of(tmp_path / decode, telling_file, photo, decode=decode)
        found = Collection.open(tmp_path / decode)
        (by_image,) = found.search(image=str(photo), k=1)
        (by_row,) = found.search(like=[by_image.id], k=1)
        assert by_image.score == pytest.approx(by_row.score, abs=1e-6)
        rows.append(found.snapshot.vectors[0].astype(np.float32))
    assert rows[0] @ rows[1] < 1 - 1e-4


@pytest.mark.parametrize("time_ns", [2**63, -1])
def test_a_file_with_an_odd_time_is_indexed_and_known_again(index, photos, time_ns):
    os.utime(photos / "0.png", ns=(time_ns, time_ns))
    if (photos / "0.png").stat().st_mtime_ns != time_ns:
        pytest.skip("this file system has no such times")
    assert add(index, photos).num_encoded == 6
    assert add(index, photos).num_unchanged == 6
    os.utime(photos / "0.png", ns=(time_ns, time_ns + 10**9))
    report = add(index, photos)
    assert (report.num_encoded, report.num_unchanged, report.num_known) == (0, 5, 1)


def test_only_what_changed_is_read_again(index, photos, monkeypatch):
    add(index, photos)
    before = contents(index)
    draw(photos / "0.png", 100)
    (photos / "2.png").rename(photos / "moved.png")
    (photos / "4.png").unlink()
    os.utime(photos / "deep/er/1.png", ns=(5, 5))
    shutil.copy(photos / "deep/er/3.png", photos / "copy.png")
    draw(photos / "new.png", 101)
    report = add(Collection.open(index.path), photos)
    assert (report.num_encoded, report.num_known, report.num_unchanged, report.num_removed) == (2, 3, 2, 2)
    index.refresh()
    after = contents(index)
    there = "0.png", "1.png", "3.png", "5.png", "copy.png", "moved.png", "new.png"
    assert tuple(sorted(path.rsplit("/", 1)[1] for path, _ in after)) == there
    np.testing.assert_array_equal(after[str(photos / "moved.png"), None], before[str(photos / "2.png"), None])
    assert not np.array_equal(after[str(photos / "0.png"), None], before[str(photos / "0.png"), None])
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("a model was loaded, and nothing is new"))
    assert add(Collection.open(index.path), photos).num_unchanged == 7


def test_photographs_of_phones_wait_for_their_extra(index, photos, monkeypatch):
    image = Image.open(photos / "0.png")
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "Phone 9", 6
    for number in range(2):
        from_pillow(image).save(photos / f"phone{number}.HEIC", quality=80 + number, exif=exif.tobytes())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        report = add(index, photos)
    assert (report.num_encoded, report.unreadable) == (6, ())
    assert report.uninstalled == {f"reading HEIF files needs pillow_heif: `{install('heif')}`": 2}
    report = add(index, photos)
    assert (report.num_encoded, report.num_unchanged, report.uninstalled) == (2, 6, {})
    (found, _) = index.search("a cat", where=["camera=Phone 9"])
    (small,) = small_images([found], 40)
    assert (found.width, found.height, small.size) == (80, 96, (33, 40))


def test_pictures_of_one_size_are_not_compared_with_all_of_it(index, tmp_path):
    for number in range(103):
        draw(tmp_path / "same" / f"{number}.bmp", number)
    add(index, tmp_path / "same")
    before = contents(index)
    (tmp_path / "same").rename(tmp_path / "moved")
    report = add(index, tmp_path / "moved")
    assert (report.num_known, report.num_encoded) == (100, 3)
    after = {path.replace("/moved/", "/same/"): vector for (path, _), vector in contents(index).items()}
    for (path, _), vector in before.items():
        np.testing.assert_allclose(after[path], vector, atol=1e-3)


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
    other = draw(tmp_path / "others" / "a.png", 30)
    add(index, photos)
    add(index, other.parent)
    other.unlink()
    assert (add(index, photos).num_unchanged, len(index)) == (6, 7)
    with fails(ValueError):
        add(index, other.parent)
    draw(tmp_path / "others" / "b.png", 31)
    assert add(index, other.parent).num_removed == 1
    assert sorted(index.store.inputs) == sorted([str(photos), str(other.parent)])
    with sqlite3.connect(index.path / INDEX) as db:
        db.execute("UPDATE embeddings SET embedding = x'00'")  # whoever reads one finds it damaged
    again = Collection.open(index.path)
    assert add(again, photos).num_unchanged == 6
    with fails(ValueError):
        again.search("a kite")


def test_a_moved_folder_takes_its_rows_along_without_being_encoded(index, photos, tmp_path):
    pack(photos / "00.tar", 20, 21, 22)
    (photos / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    kept = draw(tmp_path / "kept" / "a.png", 30)
    add(index, photos, kept.parent)
    before = contents(index)
    photos.rename(tmp_path / "albums")
    report = add(index, tmp_path / "albums")
    assert (report.num_encoded, report.num_known, len(report.unreadable)) == (0, 9, 1)
    after = contents(index)
    moved = {path.replace(str(photos), str(tmp_path / "albums")): vector for (path, _), vector in before.items()}
    assert {path for path, _ in after} == set(moved)
    for (path, part), vector in before.items():
        np.testing.assert_array_equal(after[path.replace(str(photos), str(tmp_path / "albums")), part], vector)
    # A bare `mobileclip index` looks at what the index is of; the old place goes, with what could not be read there.
    again = index.add_found(scan(index.store.inputs, may_be_missing=True), OPTIONS)
    assert (again.num_unchanged, again.num_removed, again.missing) == (10, 1, {})
    assert index.add_found(scan(index.store.inputs, may_be_missing=True), OPTIONS).num_removed == 0
    assert sorted(index.store.inputs) == sorted([str(tmp_path / "albums"), str(kept.parent)])


def test_what_was_given_by_its_name_stays_as_long_as_it_is_there(index, photos, tmp_path):
    draw(tmp_path / "elsewhere" / "linked.png", 60)
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    hidden, plain = draw(photos / ".hidden.png", 61), draw(photos / "picture.png", 62).rename(photos / "picture")
    deep = draw(photos / ".cache" / "a.png", 63)
    (photos / ".cache" / "other.txt").write_text("a folder without any file may be a disk that is not mounted")
    by_hand = (hidden, plain, deep, photos / "link" / "linked.png")
    add(index, photos, *by_hand)
    assert len(index) == 10
    assert (add(index, photos).num_removed, len(index)) == (0, 10)
    hidden.unlink()
    deep.unlink()
    assert (add(index, photos).num_removed, len(index)) == (2, 8)


def test_dead_paths_take_no_places_of_living_ones(index, photos, tmp_path):
    gone = [draw(tmp_path / "gone" / f"{number}.png", 1) for number in range(20)]
    add(index, photos, tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    assert len(index) == 26
    assert names(index.search(image=photos / "deep/er/1.png", k=1)) == ["1.png"]
    assert len(index.search(image=photos / "deep/er/1.png", k=30)) == 6
    assert not {str(path) for path in gone} & {one.path for one in index.search("a cat", k=30)}
    update_graph(index.path, index.snapshot, GraphSizes(exact=3), show_progress=False)
    reader = Collection.open(index.path)
    reader.graph_sizes = GraphSizes(exact=3)
    assert names(reader.search(image=photos / "deep/er/1.png", k=1)) == ["1.png"]


def test_pictures_of_shards_are_indexed_by_their_keys(index, tmp_path):
    pack(tmp_path / "00.tar", 0, 1, 2)
    pack(tmp_path / "01.tar", 3, 4)
    pattern = str(tmp_path / "{00..01}.tar")
    assert add(index, pattern).num_encoded == 5
    assert {part for _, part in contents(index)} == {"0000", "0001", "0002", "0003", "0004"}
    assert index.search("a cat")[0].name.startswith(f"{tmp_path}/0")
    again = add(index, pattern)
    assert (again.num_encoded, again.num_unchanged) == (0, 5)
    pack(tmp_path / "01.tar", 4, 5, 6)
    changed = add(index, pattern)
    assert (changed.num_encoded, changed.num_known, changed.num_unchanged) == (2, 1, 3)
    assert {part for _, part in contents(index)} == {"0000", "0001", "0002", "0004", "0005", "0006"}
    (tmp_path / "00.tar").unlink()
    assert add(index, tmp_path).num_removed == 3
    assert len(index) == 3


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
    held = contents(Collection.open(index.path))
    assert 0 < len(held) < count if kind == "shard" else len(held) == 4
    report = add(index, given)
    assert (report.num_encoded, report.num_unchanged) == (count - len(held), len(held))
    assert len(contents(index)) == count
    assert len(index.store.finished) == (kind == "shard")


def test_another_model_is_refused_by_name(photos, tmp_path, telling_file):
    copy = shutil.copy(telling_file, tmp_path / "model.safetensors")
    other = index_of(tmp_path / "other", copy)
    save_model(telling(seed=1), copy)
    with fails(ValueError, "other", "weights"):
        Collection.open(other.path).search("a cat")


@pytest.mark.parametrize("layout", ["official", "open_clip"])
@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"model": "mobileclip_s1"}, "mobileclip_s1"),
        ({"model": "mobileclip_s1", "checkpoint": "a.pt"}, "mobileclip_s1 from a.pt"),
        ({"model": "mobileclip_b", "image_size": 256}, "mobileclip_b for images of 256 pixels"),
        ({"model": "mobileclip_b", "context_length": 32}, "mobileclip_b for texts of 32 ids"),
        ({"checkpoint": "hf-hub:apple/MobileCLIP-S1"}, "hf-hub:apple/MobileCLIP-S1"),
        ({"model": "mobileclip_b"}, None),
        ({"model": "mobileclip_b", "checkpoint": "a.pt"}, None),
        ({"model": "mobileclip_blt"}, None),
        ({"checkpoint": "hf-hub:apple/MobileCLIP-B-LT"}, None),
        ({"checkpoint": "hf-hub:someone/else"}, None),
        ({"checkpoint": "a.pt"}, None),
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


def test_an_index_with_many_pictures_is_searched_by_its_graph_and_says_so(index, photos):
    index.graph_sizes = GraphSizes(exact=3)
    add(index, photos)
    assert (index.path / GRAPH).is_file()
    reader = Collection.open(index.path)
    assert reader.search(image=photos / "2.png", k=1).is_exact
    reader.refresh()
    reader.graph_sizes = index.graph_sizes
    found = reader.search(image=photos / "2.png", k=1)
    assert (names(found), found.is_exact) == (["2.png"], False)
    assert reader.search(image=photos / "2.png", k=1, where=["width>1"]).is_exact, "conditions compare all pictures"


def test_an_index_that_is_overwritten_in_place_is_searched_as_it_is_now(index, photos, tmp_path, telling_file):
    add(index, photos)
    index.search("a kite")
    draw(tmp_path / "others" / "one.png", 81), draw(tmp_path / "others" / "two.png", 82)
    new = index_of(tmp_path / "new", telling_file, tmp_path / "others")
    shutil.copytree(new.path, index.path, dirs_exist_ok=True)
    assert sorted(names(index.search("a kite"))) == ["one.png", "two.png"]


def test_a_disk_that_is_not_mounted_keeps_its_pictures_until_they_are_forgotten(index, photos, tmp_path):
    disk = photos / "disk"
    draw(disk / "2023" / "a.png", 71)
    draw(disk / "b.png", 72)
    add(index, photos)
    (photos / "disk").rename(tmp_path / "unmounted")
    for is_there in (False, True):  # without its mount point, and with an empty one
        if is_there:
            disk.mkdir()
        report = add(index, photos)
        assert (dict(report.missing), len(index)) == ({str(disk): 2}, 8)
        assert {"a.png", "b.png"}.isdisjoint(names(index.search("a kite", k=9)))
    disk.rmdir()
    (tmp_path / "unmounted").rename(disk)
    assert add(index, photos).num_unchanged == 8
    shutil.rmtree(disk)
    assert index.forget(disk) == 2
    assert (add(index, photos).missing, len(index)) == ({}, 6)


def test_pictures_of_a_folder_that_is_missing_are_counted_and_a_search_over_them_says_so(index, photos, tmp_path):
    assert index.search("a kite") == []
    add(index, photos)
    photos.rename(tmp_path / "unmounted")
    with fails(ValueError, "6"):
        index.search("a kite", k=3)
    with fails(ValueError, "1"):
        index.search("a kite", where=["path~2.png"])
    report = index.add_found(scan(index.store.inputs, may_be_missing=True), OPTIONS)
    assert (report.missing, report.num_removed, index.store.inputs) == ({str(photos): 6}, 0, (str(photos),))


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_embeddings_are_exported_and_those_of_files_that_are_gone_nowhere(index, photos, tmp_path, clip, ending):
    output = tmp_path / f"all.{ending}"
    with fails(ValueError):
        index.export(output)
    draw(tmp_path / "away" / "9.png", 9)
    add(index, photos, tmp_path / "away")
    shutil.rmtree(tmp_path / "away")
    (photos / "2.png").unlink()
    assert (len(index), index.export(output, show_progress=False)) == (7, 5)
    if ending == "npz":
        with np.load(output) as file:
            paths = file["image_path"].tolist()
            assert len(paths) == 5
            np.testing.assert_allclose(file["image_embedding"], clip.encode_image(paths).numpy(), atol=1e-3)
            assert json.loads(file["model"].item())["weights_sha256"] == index.store.about.weights_sha256
    shutil.rmtree(photos)
    with fails(ValueError, "7"):
        index.export(output, overwrite=True)


def test_what_is_asked_wrongly_is_told(index, photos):
    with fails(ValueError):
        index.search(" ")
    with fails(ValueError, "0"):
        index.search("a cat", k=0)
    for given, error in ((photos / "lost", FileNotFoundError), ("s3://a/b", ValueError), (" ", ValueError)):
        with fails(error):
            add(index, given)
    add(index, draw(photos / "one.png", 1))
    (photos / "torn.png").write_bytes(b"no picture")
    for image, named in ((b"no picture", ""), (photos / "torn.png", f"{photos}/torn.png")):
        with fails(ImageError, named):
            index.search(image=image)


def test_a_name_that_is_no_text_is_left_out(index, photos):
    os.rename(os.fsencode(photos / "0.png"), os.fsencode(photos) + b"/\xff.png")  # noqa: PTH104
    report = add(index, photos)
    assert report.num_encoded == 5
    assert describe_left_out(report.left_out) == ("1 names that are not UTF-8: .png (1)",)
