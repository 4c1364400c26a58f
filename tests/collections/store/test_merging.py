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
from mobileclip.collections import INDEX, Collection, IndexOptions, ModelSource, Store
from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.snapshot import take_snapshot
from mobileclip.collections.store import Row
from tests.collections.pictures import assert_same_rows, draw, index_of, pack, rows_of
from tests.errors import fails
from tests.preloaded import preloaded

OPTIONS = IndexOptions(precision="float32", show_progress=False)


@pytest.fixture
def make(tmp_path, telling_file):
    return lambda name, *inputs: index_of(tmp_path / name, telling_file, *inputs, precision="float32")


@pytest.fixture
def folders(tmp_path):
    for number in range(6):
        draw(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    pack(tmp_path / "a" / "00.tar", 10, 11)
    (tmp_path / "b" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "a", tmp_path / "b"


def test_joined_indexes_are_one_of_all_pictures(make, folders, tmp_path, monkeypatch):
    first, second = make("first", folders[0]), make("second", folders[1])
    joined = Collection.create_like(tmp_path / "joined", first)
    assert joined.merge(first, second, show_progress=False).num_copied == 9
    assert_same_rows(joined, make("whole", *folders))
    assert len(set(joined.snapshot.ids.tolist())) == 8
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("nothing is new"))
    report = joined.add(*folders, options=OPTIONS)
    assert (report.num_unchanged, report.num_unreadable, report.num_removed) == (8, 1, 0)
    assert joined.merge(first, second, show_progress=False).num_copied == 0


def test_of_the_same_picture_the_latest_change_is_kept_or_what_was_read_to_its_end(make, folders, tmp_path):
    """In whichever order the indexes are joined."""
    old = make("old", folders[0])
    os.utime(folders[0] / "0.png", ns=(2**62, 2**62))
    new = make("new", folders[0])
    whole, begun = make("whole", folders[0] / "00.tar"), make("begun")
    with begun.store.writing():
        (row,) = whole.store.rows([1])
        begun.store.append([attrs.evolve(row, id=None)])
    path = draw(tmp_path / "photos" / "0.png", 0)
    when, good = path.stat().st_mtime_ns, make("good", path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    os.utime(path, ns=(when, when))
    torn = make("torn", path)
    assert torn.snapshot.num_unreadable == 1
    for worse, better in ((old, new), (begun, whole), (torn, good)):
        for number, others in enumerate(((worse, better), (better, worse))):
            joined, _ = Collection.create_merged(tmp_path / f"{better.path.name}{number}", *others, show_progress=False)
            assert_same_rows(joined, better)
            assert joined.store.finished == better.store.finished
            assert joined.snapshot.num_unreadable == 0
    report = old.merge(new, show_progress=False)
    assert str(report)
    assert (report.num_copied, len(old)) == (1, len(new))
    with fails(ValueError):
        old.merge(Collection.open(old.path))


def test_two_pictures_under_one_path_are_both_kept_until_one_is_found_there(make, tmp_path):
    """As on two machines, where one path leads to two pictures."""
    photos = tmp_path / "photos"
    for number in range(3):
        draw(photos / f"{number}.png", number)
    first = make("first", photos)
    for number in range(2):
        draw(photos / f"{number}.png", 100 + number)
    second = make("second", photos)
    joined, report = Collection.create_merged(tmp_path / "joined", first, second, show_progress=False)
    assert report.num_copied == 5
    found = sorted(Path(row["path"]).name for row in rows_of(joined.snapshot))
    assert found == ["0.png", "0.png", "1.png", "1.png", "2.png"]
    assert joined.merge(first, second, show_progress=False).num_copied == 0
    assert (joined.add(photos, options=OPTIONS).num_encoded, len(joined)) == (0, 3)
    assert_same_rows(joined, second)


def test_a_merge_that_is_stopped_has_copied_nothing(make, folders, tmp_path, monkeypatch):
    first, second = make("first", folders[0]), make("second", folders[1])
    joined = Collection.create_like(tmp_path / "joined", first)
    rows = Store.rows

    def stopped(self, ids=None):
        for number, row in enumerate(rows(self, ids)):
            if self.folder == second.path and number == 2:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(Store, "rows", stopped)
        for merge in (joined.merge, partial(Collection.create_merged, tmp_path / "new")):
            with pytest.raises(KeyboardInterrupt):
                merge(first, second, show_progress=False)
    again = Collection.open(joined.path)
    assert (len(again), (tmp_path / "new").exists()) == (0, False)
    assert again.merge(first, second, show_progress=False).num_copied == 9


def test_a_refused_merge_leaves_nothing_behind_and_names_the_input_that_is_wrong(
    make, folders, tmp_path, small_file, capsys
):
    first, second = make("first", folders[0]), make("second", folders[1])
    other = index_of(tmp_path / "other", small_file)
    damaged = make("damaged", draw(tmp_path / "c" / "9.png", 9)).path
    with sqlite3.connect(damaged / INDEX) as db:
        db.execute("UPDATE embeddings SET embedding = x'00' WHERE id = (SELECT max(id) FROM embeddings)")
    before = sorted(path.name for path in tmp_path.iterdir())
    for wrong in (other.path, damaged, tmp_path / "nothing"):
        with pytest.raises(SystemExit):
            main(["merge", str(first.path), str(second.path), str(wrong), "-o", str(tmp_path / "joined")])
        told = capsys.readouterr().err.replace("\n", " ")
        assert str(wrong) in told
        assert str(tmp_path / "joined") not in told
        assert str(second.path) not in told
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_concepts_and_tags_come_along_and_are_joined(make, folders, tmp_path):
    first, second = make("first", folders[0]), make("second", folders[1])
    zero, one, two = folders[0] / "0.png", folders[1] / "1.png", folders[0] / "2.png"
    first.concepts.add("mein Rad", text="a bike", positive=[zero, two])
    second.concepts.add("mein Rad", text="a bike", positive=[zero, one], negative=[draw(tmp_path / "no.png", 40)])
    second.concepts.add("hers", text="a hat")
    for index, words in ((first, ["a kite", "a hill"]), (second, ["A hill", "a boat"])):
        index.tag(words, template="a photo of {}", share=0.3, show_progress=False)
    joined = Collection.create_like(tmp_path / "joined", first)
    for _ in range(2):  # the second time, nothing is new
        joined.merge(first, second, show_progress=False)
        concepts = joined.concepts
        assert list(concepts) == ["hers", "mein Rad"]
        examples = [(Path(each.path).name, each.is_positive) for each in concepts["mein Rad"].examples]
        assert examples == [("0.png", True), ("2.png", True), ("no.png", False), ("1.png", True)]
    whole = make("whole", *folders)
    tags = whole.tag(["a kite", "a hill", "a boat"], template="a photo of {}", share=0.3, show_progress=False)
    found = joined.snapshot.words
    assert (found.words, found.template, found.share) == (tags.words, tags.template, tags.share)
    np.testing.assert_array_equal(found.vectors, tags.vectors)
    np.testing.assert_allclose(found.levels, tags.levels, atol=1e-6)
    copied, _ = Collection.create_merged(tmp_path / "copied", second, show_progress=False)
    assert copied.concepts["mein Rad"].is_same(second.concepts["mein Rad"])
    np.testing.assert_array_equal(copied.snapshot.words.levels, second.snapshot.words.levels)


def test_what_is_two_things_is_refused_with_the_way_out_and_nothing_is_copied(make, folders, tmp_path, capsys):
    first, second = make("first", folders[0]), make("second", folders[1])
    picture = draw(tmp_path / "one.png", 50)

    def refused(code, *named):
        joined = make(f"joined{len(list(tmp_path.iterdir()))}")
        with fails(code, *named):
            joined.merge(first, second, show_progress=False)
        assert (len(joined.store.values("id")), len(joined.concepts)) == (0, 0)

    first.concepts.add("rad", text="a bike", positive=[picture])
    second.concepts.add("rad", text="a wheel", negative=[picture])
    refused(ValueError, "rad", "a bike", "a wheel", str(second.path))
    second.concepts.add("rad", text="a bike")
    refused(ValueError, "one.png", "rad", str(second.path))
    main(["concept", "add", "rad", "--unlabel", str(picture), "--index", str(second.path)])
    first.tag(["a kite"], show_progress=False)
    second.tag(["a kite"], template="a photo of {}", show_progress=False)
    refused(ValueError, "a photo of {}", "0.05", str(second.path))
    main(["tag", "--index", str(second.path), "--template", "{}", "--quiet"])
    main(["merge", str(first.path), str(second.path), "-o", str(tmp_path / "whole")])
    whole = Collection.open(tmp_path / "whole")
    assert [len(one.examples) for one in whole.concepts.values()] == [1]
    assert whole.snapshot.words.words == ("a kite",)


def test_an_index_that_is_written_to_meanwhile_is_told(make, folders, monkeypatch, tmp_path):
    index, rows = make("index", folders[0]), Store.rows

    def written(self, ids=None):
        monkeypatch.undo()
        index.forget(folders[0])
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
    """Make an index of rows whose embeddings tell their numbers."""
    store = Store.create(folder, IndexMetadata(weights_sha256="0" * 64, spec="{}", version="1", dim=64))
    about = {"size": 1, "mtime_ns": 1}
    with store.writing():
        store.append(
            Row(path=f"/p/{one}", sha256=str(one), embedding=np.full(64, one / 65536, np.float16), **about)
            for one in numbers
        )
    return store


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_a_merge_has_copied_all_or_nothing(tmp_path, num_kills):
    own, others = range(100), (range(50, 20_000), range(19_000, 40_000))
    sources = [numbered(tmp_path / f"other{number}", one).folder for number, one in enumerate(others)]
    draw_moment, undisturbed = random.Random(0), None
    for _ in range(num_kills + 1):
        target = numbered(tmp_path / "target", own).folder
        job = preloaded().start("-c", MERGE, target, *sources, folder=tmp_path)
        begun = time.monotonic()
        if undisturbed is None:
            job.communicate()
            undisturbed = time.monotonic() - begun
        else:
            time.sleep(draw_moment.uniform(0, undisturbed))
            job.kill()
            job.communicate()
        paths = {path for (path,) in Store.open(target).values("path")}
        assert len(paths) in ({40_000} if job.returncode == 0 else {100, 40_000})
        assert len(take_snapshot(Store.open(target))) == len(paths)
        merged = Collection.open(target)
        merged.merge(*map(Collection.open, sources), show_progress=False)
        assert len(merged) == 40_000
        numbers = [int(row["path"].removeprefix("/p/")) for row in rows_of(merged.snapshot)]
        expected = (np.array(numbers) / 65536).astype(np.float16)
        np.testing.assert_array_equal(merged.snapshot.vectors[:, 0], expected)
        shutil.rmtree(target)
