"""Indexes joined: pictures by the digests of their content, all of them or nothing."""

import os
import random
import shutil
import sqlite3
import time
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import pytest

from mobileclip.cli import main
from mobileclip.collections import INDEX, Collection, ModelSource, Store
from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.store import Row
from tests.collections.pictures import add, assert_same_rows, counts, draw, draw_all, index_of, names, pack, rows_of
from tests.errors import fails
from tests.preloaded import preloaded

TORN = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def make(make):
    return partial(make, precision="float32")


@pytest.fixture
def folders(tmp_path):
    first, second = draw_all(tmp_path / "a", (0, 2, 4)), draw_all(tmp_path / "b", (1, 3, 5))
    pack(first / "00.tar", 10, 11)
    (second / "torn.png").write_bytes(TORN)
    return first, second


@pytest.fixture
def indexes(make, folders):
    return make("first", folders[0]), make("second", folders[1])


def merged(folder, *indexes):
    return Collection.create_merged(folder, *indexes, show_progress=False)


def test_joined_indexes_are_one_of_all_pictures(make, indexes, folders, tmp_path, monkeypatch):
    joined = Collection.create_like(tmp_path / "joined", indexes[0])
    assert joined.merge(*indexes, show_progress=False).num_copied == 9
    assert_same_rows(joined, make("whole", *folders))
    assert len(set(joined.snapshot.ids.tolist())) == 8
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("nothing is new"))
    report = add(joined, *folders, precision="float32")
    assert (counts(report), report.num_unreadable) == ((0, 0, 8, 0), 1)
    assert joined.merge(*indexes, show_progress=False).num_copied == 0


def test_of_the_same_picture_the_latest_change_is_kept_or_what_was_read_to_its_end(make, tmp_path):
    """In whichever order the indexes are joined."""
    folder = draw_all(tmp_path / "a", (0, 2))
    pack(folder / "00.tar", 10, 11)
    old = make("old", folder)
    os.utime(folder / "0.png", ns=(2**62, 2**62))
    new, whole, begun = make("new", folder), make("whole", folder / "00.tar"), make("begun")
    with begun.store.writing():
        (row,) = whole.store.rows([1])
        begun.store.append([attrs.evolve(row, id=None)])
    path = draw(tmp_path / "photos" / "0.png", 0)
    when, good = path.stat().st_mtime_ns, make("good", path)
    path.write_bytes(TORN)
    os.utime(path, ns=(when, when))
    torn = make("torn", path)
    assert torn.snapshot.num_unreadable == 1
    for worse, better in ((old, new), (begun, whole), (torn, good)):
        for number, others in enumerate(((worse, better), (better, worse))):
            joined, _ = merged(tmp_path / f"{better.path.name}{number}", *others)
            assert_same_rows(joined, better)
            assert (joined.store.finished, joined.snapshot.num_unreadable) == (better.store.finished, 0)
    assert (old.merge(new, show_progress=False).num_copied, len(old)) == (1, len(new))


def test_two_pictures_under_one_path_are_both_kept_until_one_is_found_there(make, tmp_path):
    """As on two machines, where one path leads to two pictures."""
    photos = draw_all(tmp_path / "photos", range(3))
    first = make("first", photos)
    for number in range(2):
        draw(photos / f"{number}.png", 100 + number)
    second = make("second", photos)
    joined, report = merged(tmp_path / "joined", first, second)
    assert report.num_copied == 5
    found = sorted(Path(row["path"]).name for row in rows_of(joined.snapshot))
    assert found == ["0.png", "0.png", "1.png", "1.png", "2.png"]
    assert joined.merge(first, second, show_progress=False).num_copied == 0
    assert (add(joined, photos, precision="float32").num_encoded, len(joined)) == (0, 3)
    assert_same_rows(joined, second)


def test_a_merge_that_is_stopped_has_copied_nothing(indexes, tmp_path, monkeypatch):
    joined = Collection.create_like(tmp_path / "joined", indexes[0])
    rows = Store.rows

    def stopped(self, ids=None):
        for number, row in enumerate(rows(self, ids)):
            if self.folder == indexes[1].path and number == 2:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(Store, "rows", stopped)
        for merge in (joined.merge, partial(Collection.create_merged, tmp_path / "new")):
            with pytest.raises(KeyboardInterrupt):
                merge(*indexes, show_progress=False)
    again = Collection.open(joined.path)
    assert (len(again), (tmp_path / "new").exists()) == (0, False)
    assert again.merge(*indexes, show_progress=False).num_copied == 9


def test_a_refused_merge_leaves_nothing_behind_and_names_the_input_that_is_wrong(
    make, indexes, tmp_path, small_file, capsys
):
    damaged = make("damaged", draw(tmp_path / "c" / "9.png", 9)).path
    with sqlite3.connect(damaged / INDEX) as db:
        db.execute("UPDATE embeddings SET embedding = x'00' WHERE id = (SELECT max(id) FROM embeddings)")
    others, output = [str(index.path) for index in indexes], str(tmp_path / "joined")
    other = index_of(tmp_path / "other", small_file).path
    before = sorted(path.name for path in tmp_path.iterdir())
    for wrong in (other, damaged, tmp_path / "nothing"):
        with pytest.raises(SystemExit):
            main(["merge", *others, str(wrong), "-o", output])
        err = capsys.readouterr().err.replace("\n", " ")
        assert [name in err for name in (str(wrong), output, others[1])] == [True, False, False]
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_concepts_and_tags_come_along_and_are_joined(make, indexes, folders, tmp_path):
    (first, second), zero, one, two = indexes, folders[0] / "0.png", folders[1] / "1.png", folders[0] / "2.png"
    tagging = {"template": "a photo of {}", "share": 0.3, "show_progress": False}
    first.concepts.add("mein Rad", text="a bike", positive=[zero, two])
    second.concepts.add("mein Rad", text="a bike", positive=[zero, one], negative=[draw(tmp_path / "no.png", 40)])
    second.concepts.add("hers", text="a hat")
    first.tag(["a kite", "a hill"], **tagging)
    second.tag(["A hill", "a boat"], **tagging)
    joined = Collection.create_like(tmp_path / "joined", first)
    for _ in range(2):  # the second time, nothing is new
        joined.merge(first, second, show_progress=False)
        assert list(joined.concepts) == ["hers", "mein Rad"]
        examples = joined.concepts["mein Rad"].examples
        assert names(examples) == ["0.png", "2.png", "no.png", "1.png"]
        assert [each.is_positive for each in examples] == [True, True, False, True]
    tags, found = make("whole", *folders).tag(["a kite", "a hill", "a boat"], **tagging), joined.snapshot.words
    assert (found.words, found.template, found.share) == (tags.words, tags.template, tags.share)
    np.testing.assert_array_equal(found.vectors, tags.vectors)
    np.testing.assert_allclose(found.levels, tags.levels, atol=1e-6)
    copied, _ = merged(tmp_path / "copied", second)
    assert copied.concepts["mein Rad"].is_same(second.concepts["mein Rad"])
    np.testing.assert_array_equal(copied.snapshot.words.levels, second.snapshot.words.levels)


def test_what_is_two_things_is_refused_with_the_way_out_and_nothing_is_copied(make, tmp_path):
    picture = draw(tmp_path / "one.png", 50)
    first, second, joined = make("first", picture), make("second", picture), make("joined")

    def refused(*named):
        with fails(ValueError, *named, str(second.path)):
            joined.merge(first, second, show_progress=False)
        assert (len(joined.store.values("id")), len(joined.concepts)) == (0, 0)

    first.concepts.add("rad", text="a bike", positive=[picture])
    second.concepts.add("rad", text="a wheel", negative=[picture])
    refused("rad", "a bike", "a wheel")
    second.concepts.add("rad", text="a bike")
    refused("one.png", "rad")
    main(["concept", "add", "rad", "--unlabel", str(picture), "--index", str(second.path)])
    first.tag(["a kite"], show_progress=False)
    second.tag(["a kite"], template="a photo of {}", show_progress=False)
    refused("a photo of {}", "0.05")
    main(["tag", "--index", str(second.path), "--template", "{}", "--quiet"])
    joined.merge(first, second, show_progress=False)
    assert [len(one.examples) for one in joined.concepts.values()] == [1]
    assert joined.snapshot.words.words == ("a kite",)
    with fails(ValueError):
        joined.merge(Collection.open(joined.path))


def test_an_index_that_is_written_to_meanwhile_is_told(make, monkeypatch, tmp_path):
    index, rows = make("index", draw_all(tmp_path / "photos", range(2))), Store.rows

    def written(self, ids=None):
        monkeypatch.undo()
        index.forget(tmp_path / "photos")
        yield from rows(self, ids)

    monkeypatch.setattr(Store, "rows", written)
    joined = Collection.create_like(tmp_path / "joined", index)
    with fails(ValueError, "index"):
        joined.merge(index, show_progress=False)
    assert len(Collection.open(joined.path)) == 0


MERGE = """
import sys
from mobileclip.collections import Collection
index, *others = map(Collection.open, sys.argv[1:])
index.merge(*others, show_progress=False)
"""


def numbered(folder, numbers):
    """Make an index of rows whose embeddings tell their numbers, and return its folder."""
    store = Store.create(folder, IndexMetadata(weights_sha256="0" * 64, spec="{}", version="1", dim=8))
    with store.writing():
        store.append(
            Row(path=f"/p/{one}", sha256=str(one), embedding=np.full(8, one / 65536, np.float16), size=1, mtime_ns=1)
            for one in numbers
        )
    return folder


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_a_merge_has_copied_all_or_nothing(tmp_path, num_kills):
    sources = [numbered(tmp_path / f"{one}", one) for one in (range(50, 10_000), range(9_000, 20_000))]
    draw_moment, undisturbed = random.Random(0), None
    for _ in range(num_kills + 1):
        target = numbered(tmp_path / "target", range(100))
        job = preloaded().start("-c", MERGE, target, *sources, folder=tmp_path)
        begun = time.monotonic()
        if undisturbed is not None:
            time.sleep(draw_moment.uniform(0, undisturbed))
            job.kill()
        job.communicate()
        undisturbed = undisturbed or time.monotonic() - begun
        merged = Collection.open(target)
        count = len(merged.store.values("path"))
        assert count in ({20_000} if job.returncode == 0 else {100, 20_000})
        assert len(merged.snapshot) == count
        merged.merge(*map(Collection.open, sources), show_progress=False)
        numbers = [int(row["path"].removeprefix("/p/")) for row in rows_of(merged.snapshot)]
        assert sorted(numbers) == list(range(20_000))
        np.testing.assert_array_equal(merged.snapshot.vectors[:, 0], (np.array(numbers) / 65536).astype(np.float16))
        shutil.rmtree(target)
