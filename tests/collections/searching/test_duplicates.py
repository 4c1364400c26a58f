"""Pictures that show the same: grouped around the best copy, listed and shown, and never touched."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mobileclip.collections import Collection, GraphSizes, IndexOptions, ModelSource, pictures, write_list, write_page
from mobileclip.collections.nearest import update_graph
from tests.collections.pictures import contents, draw
from tests.errors import fails

EVIL = "a<script>alert(1)<!script>\"'\x1b[2J\u202e.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins") / "photos"
    for seed in range(4):
        draw(folder / f"{seed}.png", seed, size=(192, 160))
    with Image.open(folder / "1.png") as image:
        image.resize((96, 80), Image.Resampling.NEAREST).save(folder / "1small.png")
        image.filter(ImageFilter.GaussianBlur(1)).save(folder / "0blurred.png")
    shutil.copy(folder / "2.png", folder / EVIL)
    return folder


@pytest.fixture(scope="module")
def collection(photos, tmp_path_factory, telling_file):
    made = Collection.create(tmp_path_factory.mktemp("index") / "index", ModelSource(checkpoint=str(telling_file)))
    made.add(photos, options=IndexOptions(show_progress=False))
    return made


def grouped(groups):
    return {name_of(group.best): [name_of(other) for other in group.others] for group in groups}


def name_of(match):
    return EVIL if match.path.endswith(EVIL) else match.path.rsplit("/", 1)[1]


def test_the_sharpest_of_the_largest_is_the_best_copy(collection):
    groups = collection.duplicates(threshold=0.99, show_progress=False)
    found = grouped(groups)
    assert set(found) == {"1.png", "2.png"} or set(found) == {"1.png", EVIL}
    assert sorted(found["1.png"]) == ["0blurred.png", "1small.png"]
    assert [len(group.others) for group in groups] == [2, 1]
    assert groups[1].others[0].score == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", ["a.png", "z.png"])
def test_links_to_a_picture_are_no_copies_of_it(tmp_path, telling_file, name):
    picture = draw(tmp_path / "photos/m.png", 1)
    (tmp_path / "photos" / name).symlink_to(picture)
    (tmp_path / "photos" / f"hard-{name}").hardlink_to(picture)
    (tmp_path / "linked").symlink_to(tmp_path / "photos")
    index = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    index.add(tmp_path / "photos", tmp_path / "linked", options=IndexOptions(show_progress=False))
    assert len(index) == 6
    assert not index.duplicates(show_progress=False)
    shutil.copy(picture, tmp_path / "photos/copy.png")
    index.add(tmp_path / "photos", options=IndexOptions(show_progress=False))
    (group,) = index.duplicates(show_progress=False)
    kept, other = group.best.path, [one.path for one in group.others]
    assert {kept, *other} < {str(tmp_path / "photos" / one) for one in ("copy.png", "m.png", f"hard-{name}")}
    assert len(other) == 1


def test_every_picture_is_like_the_largest_of_its_group(collection):
    everything = collection.duplicates(threshold=0.01, show_progress=False)
    members = [match.name for group in everything for match in (group.best, *group.others)]
    assert len(members) == len(set(members)) <= len(collection)
    with fails(ValueError, "0"):
        collection.duplicates(threshold=0, show_progress=False)


def test_a_graph_gives_the_same_groups(collection):
    expected = collection.duplicates(threshold=0.99, show_progress=False)
    update_graph(collection.path, collection.snapshot, sizes=GraphSizes(exact=3), show_progress=False)
    reader = Collection.open(collection.path)
    reader.graph_sizes = GraphSizes(exact=3)
    assert reader.graph.num_missing == 0
    assert reader.duplicates(threshold=0.99, show_progress=False) == expected


def test_an_empty_collection_has_none(tmp_path, telling_file):
    empty = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    assert not empty.duplicates(show_progress=False)


def test_the_list_is_read_by_programs_and_the_page_by_people(collection, photos, tmp_path):
    groups = collection.duplicates(threshold=0.99, show_progress=False)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    write_list(tmp_path / "list.jsonl", groups)
    lines = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 3
    assert {line["keep"] for line in lines} == {group.best.name for group in groups}
    assert any(EVIL in name for line in lines for name in (line["keep"], line["duplicate"]))
    write_page(tmp_path / "page.html", groups, threshold=0.99)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    assert len(re.findall(r'<img src="data:image/webp;base64,', page)) == 5
    assert page.count("best copy") == 2
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


def test_groups_are_counted_whole_and_long_names_keep_their_ends(tmp_path, telling_file):
    folder = tmp_path / "a folder whose name is long" / "photos"
    first = draw(folder / "picture 0.png", 3)
    for number in range(1, 30):
        shutil.copy(first, folder / f"picture {number}.png")
    made = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    made.add(folder, options=IndexOptions(show_progress=False))
    write_page(tmp_path / "page.html", made.duplicates(threshold=0.99, show_progress=False), threshold=0.99)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "30 pictures, of which 24 are shown" in page
    shown = re.findall(r'<div title="([^"]*)">([^<]*)</div>', page)
    assert len(shown) == 24
    for whole, short in shown:
        head, tail = short.split("\N{HORIZONTAL ELLIPSIS}")
        assert whole.startswith(head)
        assert whole.endswith(tail)
        assert len(short) <= 60 < len(whole)


def test_what_is_gone_is_shown_as_gone(collection, photos, tmp_path):
    groups = collection.duplicates(threshold=0.99, show_progress=False)
    (photos / "1small.png").rename(tmp_path / "away.png")
    write_page(tmp_path / "page.html", groups, threshold=0.99)
    shutil.move(tmp_path / "away.png", photos / "1small.png")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("cannot be read any more") == 1


@pytest.fixture
def own(tmp_path, telling_file):
    """A collection of two copies of a picture, of different sizes, and of others; and the folder of these."""
    folder = tmp_path / "photos"
    for seed in range(4):
        draw(folder / f"{seed}.png", seed, size=(192, 160))
    with Image.open(folder / "1.png") as image:
        image.resize((96, 80), Image.Resampling.NEAREST).save(folder / "1small.png")
    made = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    made.add(folder, options=IndexOptions(show_progress=False))
    return made, folder


def found_in(collection, threshold=0.99):
    return collection.duplicates(threshold=threshold, show_progress=False)


@pytest.mark.parametrize("name", ["1.png", "1small.png"])
def test_nothing_is_said_of_a_picture_that_is_gone(own, name):
    collection, folder = own
    assert grouped(found_in(collection)) == {"1.png": ["1small.png"]}
    (folder / name).unlink()
    found = found_in(collection)
    assert (grouped(found), found.num_left_out) == ({}, 1)


@pytest.mark.parametrize("name", ["1.png", "1small.png"])
def test_nothing_is_said_of_a_picture_whose_content_is_another(own, name):
    collection, folder = own
    before, content = (folder / name).stat(), (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-20] + bytes(20))
    found = found_in(collection)
    assert (grouped(found), found.num_left_out) == ({}, 1)
    # Neither the size nor the time tells it.
    os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = found_in(collection)
    assert (grouped(found), found.num_left_out) == ({}, 1)


def test_a_copy_in_place_of_the_best_one_that_is_gone_is_found(own):
    collection, folder = own
    shutil.copy(folder / "1small.png", folder / "1again.png")
    collection.add(folder, options=IndexOptions(show_progress=False))
    (folder / "1.png").unlink()
    (group,) = found_in(collection)
    assert {name_of(group.best), name_of(group.others[0])} == {"1small.png", "1again.png"}


def test_whatever_is_asked_of_a_picture_it_is_decoded_once(own, monkeypatch):
    collection, folder = own
    with Image.open(folder / "1.png") as image:
        image.filter(ImageFilter.GaussianBlur(1)).save(folder / "1blurred.png")
    collection.add(folder, options=IndexOptions(show_progress=False))
    decoded, load = [], pictures.load_shown
    monkeypatch.setattr(pictures, "load_shown", lambda *args, **named: decoded.append(args) or load(*args, **named))
    found = found_in(collection)
    assert {name: sorted(others) for name, others in grouped(found).items()} == {
        "1.png": ["1blurred.png", "1small.png"]
    }
    assert len(decoded) == 3


def test_what_goes_after_it_was_found_is_named_no_more(own):
    collection, folder = own
    found = found_in(collection)
    assert len(found.still_there()) == 1
    (folder / "1small.png").unlink()
    assert len(found.still_there()) == 0


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.85, 0.9, 0.95])
def test_every_pair_that_is_listed_is_as_similar_as_was_asked_for(tmp_path, telling_file, threshold):
    # All of one size, so that the sharpest is the best, and not the one that the others were found with.
    for seed in range(24):
        draw(tmp_path / "photos" / f"{seed:02d}.png", seed)
    made = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    made.add(tmp_path / "photos", options=IndexOptions(show_progress=False))
    vectors = {path: vector.astype(np.float32) for (path, _), vector in contents(made).items()}
    found = found_in(made, threshold)
    assert len(found) > 0
    listed = [one.path for group in found for one in (group.best, *group.others)]
    assert len(set(listed)) == len(listed)
    for group in found:
        for other in group.others:
            similarity = float(vectors[group.best.path] @ vectors[other.path])
            assert similarity >= threshold
            assert other.score == pytest.approx(similarity, abs=1e-4)


def test_pictures_without_content_are_named_apart_and_never_proposed(own, tmp_path):
    collection, folder = own
    noise = np.random.default_rng(0).integers(-3, 4, (80, 96, 3))
    Image.new("RGB", (96, 80), "white").save(folder / "white.png")
    Image.new("RGB", (192, 160), "white").save(folder / "large.png")
    Image.new("RGB", (96, 80), (250, 252, 249)).save(folder / "nearly.jpg")
    Image.fromarray((240 + noise).astype(np.uint8)).save(folder / "noisy.png")
    Image.new("RGB", (96, 80), (200, 30, 40)).save(folder / "red.png")
    Image.new("RGB", (96, 80), (200, 30, 40)).save(folder / "red2.bmp")
    collection.add(folder, options=IndexOptions(show_progress=False))
    for threshold in (0.5, 0.9, 0.99):
        found = found_in(collection, threshold)
        named = {name_of(one) for group in found for one in (group.best, *group.others)}
        assert named.isdisjoint({"white.png", "large.png", "nearly.jpg", "noisy.png", "red.png", "red2.bmp"})
    assert grouped(found) == {"1.png": ["1small.png"]}
    assert {"white.png", "large.png", "red.png", "red2.bmp"} <= {name_of(one) for one in found.blank}
    write_list(tmp_path / "list.jsonl", found)
    write_page(tmp_path / "page.html", found, threshold=0.99)
    assert "white.png" not in (tmp_path / "list.jsonl").read_text(encoding="utf-8")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "pictures of one colour, or nearly" in page
    assert f"{folder}/white.png" in page
