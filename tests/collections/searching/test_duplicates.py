"""Pictures that show the same: grouped around the best copy, listed and shown, and never touched."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mobileclip.collections import Collection, GraphSizes, IndexOptions, write_list, write_page
from mobileclip.collections.nearest import update_graph
from tests.collections.pictures import contents, draw, index_of
from tests.errors import fails

OPTIONS = IndexOptions(show_progress=False)
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
    return index_of(tmp_path_factory.mktemp("index") / "index", telling_file, photos)


def grouped(groups):
    return {name_of(group.best): [name_of(other) for other in group.others] for group in groups}


def name_of(match):
    return EVIL if match.path.endswith(EVIL) else match.path.rsplit("/", 1)[1]


def test_the_sharpest_of_the_largest_is_the_best_copy(collection):
    groups = found_in(collection)
    found = grouped(groups)
    assert set(found) == {"1.png", "2.png"} or set(found) == {"1.png", EVIL}
    assert sorted(found["1.png"]) == ["0blurred.png", "1small.png"]
    assert [len(group.others) for group in groups] == [2, 1]
    with fails(ValueError, "0"):
        found_in(collection, 0)
    assert groups[1].others[0].score == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", ["a.png", "z.png"])
def test_links_to_a_picture_are_no_copies_of_it(tmp_path, telling_file, name):
    folder = tmp_path / "photos"
    picture = draw(folder / "m.png", 1)
    (folder / name).symlink_to(picture)
    (folder / f"hard-{name}").hardlink_to(picture)
    (tmp_path / "linked").symlink_to(folder)
    index = index_of(tmp_path / "index", telling_file)
    assert not found_in(index), "it is empty"
    index.add(folder, tmp_path / "linked", options=OPTIONS)
    assert (len(index), len(found_in(index))) == (6, 0)
    shutil.copy(picture, folder / "copy.png")
    index.add(folder, options=OPTIONS)
    (group,) = found_in(index)
    (other,) = group.others
    assert {group.best.path, other.path} < {str(folder / one) for one in ("copy.png", "m.png", f"hard-{name}")}


def test_a_graph_gives_the_same_groups(collection):
    expected = found_in(collection)
    update_graph(collection.path, collection.snapshot, sizes=GraphSizes(exact=3), show_progress=False)
    reader = Collection.open(collection.path)
    reader.graph_sizes = GraphSizes(exact=3)
    assert reader.graph.num_missing == 0
    assert found_in(reader) == expected


def test_the_list_is_read_by_programs_and_the_page_by_people(collection, photos, tmp_path):
    groups = found_in(collection)
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
    found = found_in(index_of(tmp_path / "index", telling_file, folder))
    (folder / "picture 0.png").unlink()
    write_page(tmp_path / "page.html", found, threshold=0.99)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "30 images, of which 24 are shown" in page
    assert page.count("can no longer be read") <= 1
    shown = re.findall(r'<div title="([^"]*)">([^<]*)</div>', page)
    assert len(shown) == 24
    for whole, short in shown:
        head, tail = short.split("\N{HORIZONTAL ELLIPSIS}")
        assert whole.startswith(head)
        assert whole.endswith(tail)
        assert len(short) <= 60 < len(whole)


@pytest.fixture
def own(tmp_path, telling_file):
    """A collection of two copies of a picture, of different sizes, and of others; and the folder of these."""
    folder = tmp_path / "photos"
    for seed in range(4):
        draw(folder / f"{seed}.png", seed, size=(192, 160))
    with Image.open(folder / "1.png") as image:
        image.resize((96, 80), Image.Resampling.NEAREST).save(folder / "1small.png")
    return index_of(tmp_path / "index", telling_file, folder), folder


def found_in(collection, threshold=0.99):
    return collection.duplicates(threshold=threshold, show_progress=False)


@pytest.mark.parametrize("change", ["gone", "changed", "changed with its time"])
@pytest.mark.parametrize("name", ["1.png", "1small.png"])
def test_nothing_is_said_of_a_picture_that_is_gone_or_another_one(own, name, change):
    collection, folder = own
    found = found_in(collection)
    assert grouped(found) == {"1.png": ["1small.png"]}
    before, content = (folder / name).stat(), (folder / name).read_bytes()
    if change == "gone":
        (folder / name).unlink()
        assert len(found.still_there()) == 0
    else:
        (folder / name).write_bytes(content[:-20] + bytes(20))
    if change == "changed with its time":  # neither the size nor the time tells it
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = found_in(collection)
    assert (grouped(found), found.num_left_out) == ({}, 1)


def test_a_copy_in_place_of_the_best_one_that_is_gone_is_found(own):
    collection, folder = own
    shutil.copy(folder / "1small.png", folder / "1again.png")
    collection.add(folder, options=OPTIONS)
    (folder / "1.png").unlink()
    (group,) = found_in(collection)
    assert {name_of(group.best), name_of(group.others[0])} == {"1small.png", "1again.png"}


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.85, 0.9, 0.95])
def test_every_pair_that_is_listed_is_as_similar_as_was_asked_for(tmp_path, telling_file, threshold):
    # All of one size, so that the sharpest is the best, and not the one that the others were found with.
    for seed in range(24):
        draw(tmp_path / "photos" / f"{seed:02d}.png", seed)
    made = index_of(tmp_path / "index", telling_file, tmp_path / "photos")
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
    for name, size, colour in (
        ("white.png", (96, 80), "white"),
        ("large.png", (192, 160), "white"),
        ("nearly.jpg", (96, 80), (250, 252, 249)),
        ("red.png", (96, 80), (200, 30, 40)),
        ("red2.bmp", (96, 80), (200, 30, 40)),
    ):
        Image.new("RGB", size, colour).save(folder / name)
    Image.fromarray((240 + noise).astype(np.uint8)).save(folder / "noisy.png")
    collection.add(folder, options=OPTIONS)
    for threshold in (0.5, 0.9, 0.99):
        found = found_in(collection, threshold)
        named = {name_of(one) for group in found for one in (group.best, *group.others)}
        assert named.isdisjoint({"white.png", "large.png", "nearly.jpg", "noisy.png", "red.png", "red2.bmp"})
    assert grouped(found) == {"1.png": ["1small.png"]}
    assert {"white.png", "large.png", "red.png", "red2.bmp"} <= {name_of(one) for one in found.blank}
    write_list(tmp_path / "list.jsonl", found)
    write_page(tmp_path / "page.html", found, threshold=0.99)
    assert "white.png" not in (tmp_path / "list.jsonl").read_text(encoding="utf-8")
    assert f"{folder}/white.png" in (tmp_path / "page.html").read_text(encoding="utf-8")
