"""Pictures that show the same: grouped around the best copy, listed and shown, and never touched."""

import json
import re
import shutil

import pytest
from PIL import Image, ImageFilter

from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.collections.searching import neighbours
from mobileclip.collections.viewing.page import write_list, write_page
from tests.collections.pictures import draw

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
    assert index.duplicates(show_progress=False) == []
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
    with pytest.raises(ValueError, match="threshold is 0, expected a cosine"):
        collection.duplicates(threshold=0, show_progress=False)


def test_a_graph_gives_the_same_groups(collection, monkeypatch):
    expected = collection.duplicates(threshold=0.99, show_progress=False)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 3)
    neighbours.renew_graphs(collection.path, collection.snapshot, show_progress=False)
    reader = Collection.open(collection.path)
    assert reader.graphs.num_missing == 0
    assert reader.duplicates(threshold=0.99, show_progress=False) == expected


def test_an_empty_collection_has_none(tmp_path, telling_file):
    empty = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    assert empty.duplicates(show_progress=False) == []


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


def test_what_is_gone_is_shown_as_gone(collection, photos, tmp_path):
    groups = collection.duplicates(threshold=0.99, show_progress=False)
    (photos / "1small.png").rename(tmp_path / "away.png")
    write_page(tmp_path / "page.html", groups, threshold=0.99)
    shutil.move(tmp_path / "away.png", photos / "1small.png")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("cannot be read any more") == 1
