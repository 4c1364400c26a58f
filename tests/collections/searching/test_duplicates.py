"""Pictures that show the same: grouped around the best copy, listed and shown, and never touched."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mobileclip.collections import Collection, GraphSizes, write_list, write_page
from mobileclip.collections.nearest import update_graph
from tests.collections.pictures import add, contents, draw, draw_all
from tests.errors import fails

EVIL = "a<script>alert(1)<!script>\"'\x1b[2J\u202e.png"


def found_in(collection, threshold=0.99):
    return collection.duplicates(threshold=threshold, show_progress=False)


def name_of(match):
    return EVIL if match.path.endswith(EVIL) else match.path.rsplit("/", 1)[1]


def grouped(groups):
    return {name_of(group.best): sorted(map(name_of, group.others)) for group in groups}


@pytest.fixture
def photos(tmp_path):
    """Four pictures, and a smaller copy of one."""
    folder = tmp_path / "photos"
    for seed in range(4):
        draw(folder / f"{seed}.png", seed, size=(192, 160))
    with Image.open(folder / "1.png") as image:
        image.resize((96, 80), Image.Resampling.NEAREST).save(folder / "1small.png")
    return folder


@pytest.fixture
def own(make, photos):
    return make("index", photos)


def test_the_sharpest_of_the_largest_is_the_best_copy_and_all_are_listed_and_shown(make, photos, tmp_path):
    with Image.open(photos / "1.png") as image:
        image.filter(ImageFilter.GaussianBlur(1)).save(photos / "0blurred.png")
    shutil.copy(photos / "2.png", photos / EVIL)
    collection = make("index", photos)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    groups = found_in(collection)
    assert grouped(groups[:1]) == {"1.png": ["0blurred.png", "1small.png"]}
    assert {name_of(groups[1].best), *map(name_of, groups[1].others)} == {"2.png", EVIL}
    assert groups[1].others[0].score == pytest.approx(1, abs=2e-3)
    with fails(ValueError, "0"):
        found_in(collection, 0)
    update_graph(collection.path, collection.snapshot, sizes=GraphSizes(exact=3), show_progress=False)
    reader = Collection.open(collection.path)
    reader.graph_sizes = GraphSizes(exact=3)
    assert (reader.graph.num_missing, found_in(reader)) == (0, groups)
    write_list(tmp_path / "list.jsonl", groups)
    lines = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = {(group.best.name, other.name) for group in groups for other in group.others}
    assert {(line["keep"], line["duplicate"]) for line in lines} == expected
    assert any(EVIL in name for pair in expected for name in pair)
    write_page(tmp_path / "page.html", groups, threshold=0.99)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not [harm for harm in ("<script", "\x1b", "\u202e") if harm in page]
    assert "&lt;script&gt;" in page
    assert (page.count('<img src="data:image/webp;base64,'), page.count("best copy")) == (5, 2)
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


@pytest.mark.parametrize("name", ["a.png", "z.png"])
def test_links_to_a_picture_are_no_copies_of_it(index, tmp_path, name):
    folder = draw_all(tmp_path / "photos", [1])
    (folder / name).symlink_to(folder / "1.png")
    (folder / f"hard-{name}").hardlink_to(folder / "1.png")
    (tmp_path / "linked").symlink_to(folder)
    assert not found_in(index), "it is empty"
    add(index, folder, tmp_path / "linked")
    assert (len(index), len(found_in(index))) == (6, 0)
    shutil.copy(folder / "1.png", folder / "copy.png")
    add(index, folder)
    (group,) = found_in(index)
    (other,) = group.others
    assert {group.best.path, other.path} < {str(folder / one) for one in ("copy.png", "1.png", f"hard-{name}")}


def test_groups_are_counted_whole_and_long_names_keep_their_ends(make, tmp_path):
    folder = tmp_path / "a folder whose name is long" / "photos"
    for number in range(30):
        draw(folder / f"picture {number}.png", 3)
    found = found_in(make("index", folder))
    (folder / "picture 0.png").unlink()
    write_page(tmp_path / "page.html", found, threshold=0.99)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "30 images (24 shown)" in page
    assert page.count("can no longer be read") <= 1
    shown = re.findall(r'<div title="([^"]*)">([^<]*)</div>', page)
    assert len(shown) == 24
    for whole, short in shown:
        head, tail = short.split("\N{HORIZONTAL ELLIPSIS}")
        assert (whole.startswith(head), whole.endswith(tail), len(short) <= 60 < len(whole)) == (True, True, True)


@pytest.mark.parametrize("change", ["gone", "changed", "changed with its time"])
@pytest.mark.parametrize("name", ["1.png", "1small.png"])
def test_nothing_is_said_of_a_picture_that_is_gone_or_another_one(own, photos, name, change):
    found, path = found_in(own), photos / name
    assert grouped(found) == {"1.png": ["1small.png"]}
    before, content = path.stat(), path.read_bytes()
    if change == "gone":
        path.unlink()
        assert len(found.still_there()) == 0
    else:
        path.write_bytes(content[:-20] + bytes(20))
    if change == "changed with its time":  # neither the size nor the time tells it
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = found_in(own)
    assert (grouped(found), found.num_left_out) == ({}, 1)


def test_a_copy_in_place_of_the_best_one_that_is_gone_is_found(own, photos):
    shutil.copy(photos / "1small.png", photos / "1again.png")
    add(own, photos)
    (photos / "1.png").unlink()
    (group,) = found_in(own)
    assert {name_of(group.best), name_of(group.others[0])} == {"1small.png", "1again.png"}


def test_every_pair_that_is_listed_is_as_similar_as_was_asked_for(make, tmp_path):
    # All of one size, so that the sharpest is the best, and not the one that the others were found with.
    made = make("index", draw_all(tmp_path / "photos", range(24)))
    vectors = {path: vector.astype(np.float32) for (path, _), vector in contents(made).items()}
    for threshold in (0.7, 0.8, 0.85, 0.9, 0.95):
        found = found_in(made, threshold)
        listed = [one.path for group in found for one in (group.best, *group.others)]
        assert 0 < len(set(listed)) == len(listed)
        for best, other in ((group.best, other) for group in found for other in group.others):
            similarity = float(vectors[best.path] @ vectors[other.path])
            assert threshold <= similarity == pytest.approx(other.score, abs=1e-4)


def test_pictures_without_content_are_named_apart_and_never_proposed(own, photos, tmp_path):
    noise = np.random.default_rng(0).integers(-3, 4, (80, 96, 3))
    blank = {"white.png": "white", "large.png": "white", "red.png": (200, 30, 40), "red2.bmp": (200, 30, 40)}
    for name, colour in (*blank.items(), ("nearly.jpg", (250, 252, 249))):
        Image.new("RGB", (192, 160) if name == "large.png" else (96, 80), colour).save(photos / name)
    Image.fromarray((240 + noise).astype(np.uint8)).save(photos / "noisy.png")
    add(own, photos)
    for threshold in (0.5, 0.9, 0.99):
        found = found_in(own, threshold)
        named = {name_of(one) for group in found for one in (group.best, *group.others)}
        assert named.isdisjoint({*blank, "nearly.jpg", "noisy.png"})
    assert grouped(found) == {"1.png": ["1small.png"]}
    assert blank.keys() <= {name_of(one) for one in found.blank}
    write_list(tmp_path / "list.jsonl", found)
    write_page(tmp_path / "page.html", found, threshold=0.99)
    assert "white.png" not in (tmp_path / "list.jsonl").read_text(encoding="utf-8")
    assert f"{photos}/white.png" in (tmp_path / "page.html").read_text(encoding="utf-8")
