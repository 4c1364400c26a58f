"""A person's pictures: indexed, brought up to date, and searched."""

import errno
import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image
from pillow_heif import from_pillow

import mobileclip
from mobileclip.blocks import models
from mobileclip.collections import INDEX, Collection, GraphSizes, IndexOptions, ModelSource, Store, scan, small_pictures
from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.nearest import GRAPH, update_graph
from mobileclip.collections.read import FileReader
from mobileclip.data import ImageError
from mobileclip.data.images.files import describe_left_out
from mobileclip.encoders import save_model
from mobileclip.encoders.checkpoints import layouts
from mobileclip.extras import install
from mobileclip.serialization import to_json
from tests.collections.pictures import contents, draw, pack, rows_of, telling
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
    return Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))


def add(index, *inputs, **choices):
    return index.add(*inputs, options=IndexOptions(show_progress=False, **choices))


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


def test_a_picture_is_searched_with_as_those_of_the_index_were_read(index, tmp_path, telling_file):
    """The same picture scores as its own row does; read in the other way, it would not."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    photo = tmp_path / "noise.jpg"
    Image.fromarray(noise).save(photo, quality=95)
    rows = []
    for decode in ("exact", "fast"):
        folder = tmp_path / decode
        Collection.create(folder, ModelSource(checkpoint=str(telling_file))).add(
            str(photo), options=IndexOptions(show_progress=False, decode=decode)
        )
        found = Collection.open(folder)
        (by_picture,) = found.search(image=str(photo), k=1)
        (by_row,) = found.search(like=[by_picture.id], k=1)
        assert by_picture.score == pytest.approx(by_row.score, abs=1e-6)
        rows.append(found.snapshot.vectors[0].astype(np.float32))
    assert rows[0] @ rows[1] < 1 - 1e-4


def test_a_query_is_turned_away_from_what_is_not_wanted(index, photos):
    add(index, photos)
    liked = index.search(image=photos / "2.png", k=6)
    one_text = index.search("a cat", k=6)[0].path
    score = {match.path: match.score for match in liked}[one_text]
    less = {match.path: match.score for match in index.search(image=photos / "2.png", without="a cat", k=6)}
    assert less[one_text] < score
    both = index.search("a cat", image=[photos / "2.png", photos / "4.png"], k=6)
    assert len(both) == 6


def test_conditions_choose_among_the_pictures(index, photos):
    draw(photos / "wide.png", 50, size=(200, 80))
    add(index, photos)
    assert names(index.search("a cat", where=["width>100"])) == ["wide.png"]
    assert sorted(names(index.search("a cat", where=["path~deep", "path!=x"]))) == ["1.png", "3.png", "5.png"]
    assert index.search("a cat", where=["width>9999"]) == []


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
    assert {path.rsplit("/", 1)[1] for path, _ in after} == {
        "0.png", "1.png", "3.png", "5.png", "moved.png", "copy.png", "new.png",
    }  # fmt: skip
    np.testing.assert_array_equal(after[str(photos / "moved.png"), None], before[str(photos / "2.png"), None])
    assert not np.array_equal(after[str(photos / "0.png"), None], before[str(photos / "0.png"), None])
    assert index.search(image=photos / "moved.png")[0].width == 96
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("a model was loaded, and nothing is new"))
    report = add(Collection.open(index.path), photos)
    assert (report.num_unchanged, report.num_encoded, report.num_known) == (7, 0, 0)


@pytest.mark.parametrize("time_ns", [10**19, 2**63, 15 * 10**18, -1, -(10**18)])
def test_a_file_with_an_odd_time_is_indexed_and_known_again(index, photos, time_ns):
    os.utime(photos / "0.png", ns=(time_ns, time_ns))
    if (photos / "0.png").stat().st_mtime_ns != time_ns:
        pytest.skip("this file system has no such times")
    assert add(index, photos).num_encoded == 6
    assert add(index, photos).num_unchanged == 6
    os.utime(photos / "0.png", ns=(time_ns, time_ns + 10**9))
    report = add(index, photos)
    assert (report.num_encoded, report.num_unchanged, report.num_known) == (0, 5, 1)
    assert len(index.search("a drawing", k=10)) == 6


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
    assert str(report) == "6 encoded, 2 wait for an extra"
    report = add(index, photos)
    assert (report.num_encoded, report.num_unchanged, report.uninstalled) == (2, 6, {})
    (found, _) = index.search("a cat", where=["camera=Phone 9"])
    assert (found.width, found.height) == (80, 96)
    (small,) = small_pictures([found], 40)
    assert small.size == (33, 40)


def test_pictures_of_one_size_are_not_compared_with_all_of_it(index, tmp_path):
    for number in range(103):
        draw(tmp_path / "same" / f"{number}.bmp", number)
    assert len({path.stat().st_size for path in (tmp_path / "same").iterdir()}) == 1
    add(index, tmp_path / "same")
    before = contents(index)
    (tmp_path / "same").rename(tmp_path / "moved")
    report = add(index, tmp_path / "moved")
    assert (report.num_known, report.num_encoded) == (100, 3)
    after = contents(index)
    for number in range(103):
        old, new = ((str(tmp_path / folder / f"{number}.bmp"), None) for folder in ("same", "moved"))
        np.testing.assert_allclose(after[new], before[old], atol=1e-3)


def test_what_cannot_be_read_is_named_once_and_tried_again_when_it_changes(index, photos):
    (photos / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    report = add(index, photos)
    assert len(report.unreadable) == 1
    assert "torn.png" in report.unreadable[0]
    again = add(index, photos)
    assert (again.unreadable, again.num_unreadable, again.num_unchanged) == ((), 1, 6)
    assert index.snapshot.num_unreadable == 1
    draw(photos / "torn.png", 7)
    assert add(index, photos).num_encoded == 1
    assert index.snapshot.num_unreadable == 0
    assert len(index) == 7


@pytest.mark.parametrize("decode", ["fast", "exact"])
@pytest.mark.parametrize("name", ["line.png", "line.jpg"])
def test_a_picture_that_the_model_cannot_take_is_counted_and_ends_nothing(index, photos, name, decode):
    Image.new("RGB", (1, 60_000)).save(photos / name)  # longer than the model takes
    (photos / f"torn-{name}").write_bytes((photos / name).read_bytes()[:60])
    report = add(index, photos, decode=decode)
    assert report.num_encoded == 6
    assert sorted(one.split(name)[0].rsplit("/", 1)[1] for one in report.unreadable) == ["", "torn-"]
    assert len(index.search("a cat", k=99)) == 6
    again = add(index, photos, decode=decode)
    assert (again.num_unreadable, again.unreadable) == (2, ())


def test_one_folder_does_not_drop_what_is_in_another(index, photos, tmp_path):
    other = draw(tmp_path / "others" / "a.png", 30)
    add(index, photos)
    add(index, other.parent)
    assert len(index) == 7
    other.unlink()
    add(index, photos)
    assert len(index) == 7
    with fails(ValueError):
        add(index, other.parent)
    draw(tmp_path / "others" / "b.png", 31)
    assert add(index, other.parent).num_removed == 1
    assert sorted(index.store.inputs) == sorted([str(photos), str(other.parent)])


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


def test_pictures_of_a_folder_that_is_missing_are_kept_and_counted(index, photos, tmp_path):
    kept = draw(tmp_path / "kept" / "a.png", 30)
    add(index, photos, kept.parent)
    photos.rename(tmp_path / "unmounted")
    report = index.add_found(scan(index.store.inputs, may_be_missing=True), OPTIONS)
    assert (report.missing, report.num_removed, len(index)) == ({str(photos): 6}, 0, 7)
    assert str(photos) in index.store.inputs


def test_a_shard_that_is_gone_is_kept_where_a_part_of_it_is_elsewhere(index, tmp_path):
    (tmp_path / "disk").mkdir()
    pack(tmp_path / "disk" / "00.tar", 20, 21, 22)
    add(index, tmp_path / "disk")
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    draw(tmp_path / "found" / "0020.png", 20)
    report = add(index, tmp_path / "found")
    assert (report.num_known, report.num_removed, len(index)) == (1, 0, 4)


def test_what_was_given_by_its_name_stays_as_long_as_it_is_there(index, photos, tmp_path):
    draw(tmp_path / "elsewhere" / "linked.png", 60)
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    hidden, plain = draw(photos / ".hidden.png", 61), draw(photos / "picture.png", 62).rename(photos / "picture")
    deep = draw(photos / ".cache" / "a.png", 63)
    (photos / ".cache" / "other.txt").write_text("a folder without any file may be a disk that is not mounted")
    by_hand = (hidden, plain, deep, photos / "link" / "linked.png")
    add(index, photos, *by_hand)
    assert len(index) == 10
    report = add(index, photos)
    assert (report.num_removed, len(index)) == (0, 10)
    hidden.unlink()
    deep.unlink()
    report = add(index, photos)
    assert (report.num_removed, len(index)) == (2, 8)


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


def test_a_shard_that_was_begun_is_finished(index, tmp_path, monkeypatch):
    pack(tmp_path / "00.tar", 0, 1, 2, 3, 4)

    class Killed(BaseException):
        pass

    read = FileReader.read

    def stopped(self, *given, **choices):
        for number, _ in enumerate(read(self, *given, **choices), 1):
            if number == 4:
                raise Killed
            yield

    with monkeypatch.context() as patch:
        patch.setattr(FileReader, "read", stopped)
        with pytest.raises(Killed):
            add(index, tmp_path / "00.tar", segment_rows=2, batch_size=1)
    held = contents(Collection.open(index.path))
    assert 0 < len(held) < 5
    report = add(index, tmp_path / "00.tar")
    assert (report.num_encoded, report.num_unchanged) == (5 - len(held), len(held))
    assert len(contents(index)) == 5
    assert len(index.store.finished) == 1


def test_what_is_interrupted_is_kept(index, photos, monkeypatch):
    read = FileReader.read

    def stopped(self, *given, **choices):
        for _ in read(self, *given, **choices):
            if self.findings.num_rows == 4:
                raise KeyboardInterrupt
            yield

    monkeypatch.setattr(FileReader, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        add(index, photos)
    assert len(contents(Collection.open(index.path))) == 4


def test_what_may_be_readable_next_time_is_tried_again(index, photos, monkeypatch):
    opened = Path.open

    def refused(path, *arguments, **options):
        if path.name == "2.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        assert len(add(index, photos).unreadable) == 1
    report = add(index, photos)
    assert (report.num_encoded, report.num_unchanged, report.unreadable) == (1, 5, ())


def test_another_model_is_refused_by_name(index, photos, tmp_path, telling_file):
    add(index, photos)
    copy = tmp_path / "model.safetensors"
    shutil.copy(telling_file, copy)
    other = Collection.create(tmp_path / "other", ModelSource(checkpoint=str(copy)))
    save_model(telling(seed=1), copy)
    with fails(ValueError, "other", "what its model was loaded from", "weights"):
        Collection.open(other.path).search("a cat")


def named(tmp_path, layout):
    """An empty index of MobileCLIP-B, as its weights are in a layout; the weights are nowhere."""
    spec = attrs.evolve(models["mobileclip_b"], image=layouts[layout].adapted(models["mobileclip_b"].image, {}))
    source = ModelSource(checkpoint="/somewhere/b.pt")
    about = IndexMetadata(weights_sha256="0" * 64, spec=to_json(spec), version="1", dim=512, model=source)
    return Collection(Store.create(tmp_path / "index", about))


@pytest.mark.parametrize("layout", ["official", "open_clip"])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "mobileclip_s1"}, "mobileclip_s1"),
        ({"model": "mobileclip_s1", "checkpoint": "a.pt"}, "mobileclip_s1 from a.pt"),
        ({"model": "mobileclip_b", "image_size": 256}, "mobileclip_b for images of 256 pixels"),
        ({"model": "mobileclip_b", "context_length": 32}, "mobileclip_b for texts of 32 ids"),
        ({"checkpoint": "hf-hub:apple/MobileCLIP-S1"}, "hf-hub:apple/MobileCLIP-S1"),
    ],
)
def test_a_name_alone_tells_of_another_model(tmp_path, layout, asked, said):
    with fails(ValueError, "index", "/somewhere/b.pt", said):
        named(tmp_path, layout).require_source(ModelSource(**asked))


@pytest.mark.parametrize("layout", ["official", "open_clip"])
@pytest.mark.parametrize(
    "asked",
    [
        {"model": "mobileclip_b"},
        {"model": "mobileclip_b", "checkpoint": "a.pt"},
        {"model": "mobileclip_blt"},
        {"checkpoint": "hf-hub:apple/MobileCLIP-B-LT"},
        {"checkpoint": "hf-hub:someone/else"},
        {"checkpoint": "a.pt"},
    ],
)
def test_where_names_do_not_tell_the_weights_do(tmp_path, layout, asked):
    named(tmp_path, layout).require_source(ModelSource(**asked))


def test_a_spec_of_no_known_kind_leaves_it_to_the_weights(tmp_path):
    about = IndexMetadata(weights_sha256="0" * 64, spec='{"image": {"kind": "theirs"}}', version="1", dim=512)
    Collection(Store.create(tmp_path / "index", about)).require_source(ModelSource(model="mobileclip_s1"))


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
    new = Collection.create(tmp_path / "new", ModelSource(checkpoint=str(telling_file)))
    new.add(draw(tmp_path / "others" / "one.png", 81), draw(tmp_path / "others" / "two.png", 82), options=OPTIONS)
    shutil.copytree(new.path, index.path, dirs_exist_ok=True)
    assert sorted(names(index.search("a kite"))) == ["one.png", "two.png"]


def test_an_unchanged_folder_is_indexed_without_an_embedding(index, photos):
    add(index, photos)
    with sqlite3.connect(index.path / INDEX) as db:
        db.execute("UPDATE embeddings SET embedding = x'00'")  # whoever reads one finds it damaged
    again = Collection.open(index.path)
    assert (add(again, photos).num_unchanged, len(again)) == (6, 6)
    with fails(ValueError):
        again.search("a kite")


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


def test_a_search_over_pictures_that_are_all_hidden_says_so(index, photos, tmp_path):
    assert index.search("a kite") == []
    add(index, photos)
    photos.rename(tmp_path / "unmounted")
    with fails(ValueError, "6"):
        index.search("a kite", k=3)
    with fails(ValueError, "1"):
        index.search("a kite", where=["path~2.png"])


def test_embeddings_are_exported_as_embed_writes_them(index, photos, tmp_path, clip):
    add(index, photos)
    assert index.export(tmp_path / "all.npz") == 6
    with np.load(tmp_path / "all.npz") as file:
        paths = file["image_path"].tolist()
        np.testing.assert_allclose(file["image_embedding"], clip.encode_image(paths).numpy(), atol=1e-3)
        assert json.loads(file["model"].item())["weights_sha256"] == index.store.about.weights_sha256


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_files_that_are_gone_are_exported_nowhere(index, photos, tmp_path, ending):
    output = tmp_path / f"all.{ending}"
    with fails(ValueError):
        index.export(output)
    draw(tmp_path / "away" / "9.png", 9)
    add(index, photos, tmp_path / "away")
    shutil.rmtree(tmp_path / "away")
    (photos / "2.png").unlink()
    assert len(index) == 7
    assert index.export(output, show_progress=False) == 5
    if ending == "npz":
        with np.load(output) as file:
            paths = file["image_path"].tolist()
            assert len(file["image_embedding"]) == len(paths) == 5
        assert all(Path(path).is_file() for path in paths)
        rows = zip((row["path"] for row in rows_of(index.snapshot)), index.snapshot.vectors, strict=True)
        kept = {path: vector.astype(np.float32) for path, vector in rows}
        with np.load(output) as file:
            np.testing.assert_array_equal(file["image_embedding"], [kept[path] for path in paths])
    shutil.rmtree(photos)
    with fails(ValueError, "7"):
        index.export(output, overwrite=True)


def test_what_is_asked_wrongly_is_told(index, photos):
    assert index.search("a cat") == []
    with fails(ValueError):
        index.search(" ")
    with fails(ValueError, "0"):
        index.search("a cat", k=0)
    with fails(FileNotFoundError):
        add(index, photos / "lost")
    add(index, draw(photos / "one.png", 1))
    with fails(ImageError):
        index.search(image=b"no picture")
    (photos / "torn.png").write_bytes(b"no picture")
    with fails(ImageError, f"{photos}/torn.png"):
        index.search(image=photos / "torn.png")
    for given in ("s3://a/b", " "):
        with fails(ValueError):
            add(index, given)


def test_a_name_that_is_no_text_is_left_out(index, photos):
    os.rename(os.fsencode(photos / "0.png"), os.fsencode(photos) + b"/\xff.png")  # noqa: PTH104
    report = add(index, photos)
    assert report.num_encoded == 5
    assert describe_left_out(report.left_out) == ("1 names that are not UTF-8, and need others: .png (1)",)
