"""Small vectors: what they find, and that all that is done with an index is done with them."""

import os
import shutil
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from mobileclip.cli import main
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.collections.searching import SmallScan, coding, nearest_of
from mobileclip.collections.store import About, Row, Store, fit, small, store
from mobileclip.collections.store.database import changing
from mobileclip.collections.store.vectors import Chosen
from mobileclip.encoders import save_model
from tests.collections.pictures import draw, telling
from tests.encoders.small import SMALL

DIM = SMALL.image.embedding_dim
SIZES = ((96, 80), (100, 84), (88, 80))
LEAST = {"int8": 0.999, "int4": 0.98, "bits": 0.9}
ABOUT = About(weights_sha256="0" * 64, spec="{}", version="1", dim=192)
KINDS = ("int8", "int4", "bits")


def drawn(count, dim, seed=0):
    """Vectors of unit length whose principal components fall slowly: effectively of rank 100 where dim is 128."""
    rows = np.random.default_rng(seed).normal(size=(count, dim)) * np.arange(1, dim + 1) ** -0.25
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def rows_of(vectors, first=0):
    for number, vector in enumerate(vectors, start=first):
        yield Row(path=f"/photos/{number:05d}.png", size=1, mtime_ns=1, sha256=f"{number:064x}", width=number % 100,
                  height=1, embedding=vector)  # fmt: skip


@pytest.fixture
def made(tmp_path, telling_file):
    """Make an index of vectors, whose pictures are not there."""

    def make(vectors, name="index"):
        collection = Collection.create(tmp_path / name, ModelSource(checkpoint=str(telling_file)))
        with collection.store.writing():
            collection.store.append(rows_of(vectors))
        return collection

    return make


def found_share(collection, queries, k=10, among=None):
    """Return the share of the nearest embeddings that small vectors find; each with its exact score."""
    vectors, hits = np.asarray(collection.snapshot.vectors[:]), 0
    for query in queries.astype(np.float32):
        expected, scores = nearest_of(vectors, among, query, k)
        found, found_scores = collection.graphs.nearest(query, k, among)
        hits += len(set(expected) & set(found))
        known = dict(zip(expected.tolist(), scores.tolist(), strict=True))
        assert all(known.get(one, score) == score for one, score in zip(found.tolist(), found_scores, strict=True))
    return hits / (k * len(queries))


@pytest.mark.parametrize(("kind", "least"), [("int8", 0.95), ("int4", 0.75), ("bits", 0.25)])
def test_codes_alone_order_vectors_nearly_as_embeddings_do(kind, least):
    vectors, queries = drawn(4000, 128), drawn(50, 128, seed=1).astype(np.float32)
    coder = fit(kind, vectors[:2000], 4000)
    codes = coder.encode(vectors)
    assert codes.nbytes == 4000 * coder.num_bytes == 4000 * 128 * {"int8": 8, "int4": 4, "bits": 1}[kind] // 8
    exact, told = vectors.astype(np.float32) @ queries.T, coder.scores(codes, queries)
    pairs = zip(*(np.argsort(-one, 0)[:10].T for one in (exact, told)), strict=True)
    assert np.mean([len(set(one) & set(other)) for one, other in pairs]) >= 10 * least
    assert np.sqrt(np.mean((told - exact) ** 2)) < {"int8": 0.02, "int4": 0.15, "bits": 0.6}[kind] * exact.std()


def test_few_directions_need_few_numbers_and_none_at_all_is_no_reason_to_stop():
    low = drawn(600, 16) @ np.linalg.qr(np.random.default_rng(2).normal(size=(128, 16)))[0].T
    assert fit("int8", low, 600).num_bytes == 16
    for vectors in (low[:0], low[:1], np.repeat(low[:1], 40, 0)):
        for kind in KINDS:
            coder = fit(kind, vectors, len(vectors))
            assert np.isfinite(coder.scores(coder.encode(low[:3]), low[:2].astype(np.float32))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_converted_and_finds_what_embeddings_find(made, kind):
    vectors = drawn(9000, DIM)
    collection = made(vectors)
    recall = collection.use_vectors(kind, show_progress=False)
    assert recall.recall >= LEAST[kind]
    assert (recall.kind, recall.num_queries, recall.num_pictures) == (kind, 200, 9000)
    # Another process reads what was written.
    other = Collection.open(collection.path)
    assert isinstance(other.graphs, SmallScan)
    assert other.recall == recall == Collection.open(collection.path).recall
    assert other.described()["vectors"]["recall"] == recall.recall
    queries = drawn(30, DIM, seed=9)
    assert found_share(other, queries) >= LEAST[kind]
    # Conditions leave some of the pictures.
    assert found_share(other, queries, among=np.arange(0, 9000, 7)) >= LEAST[kind]
    assert len(other.graphs.nearest(queries[0].astype(np.float32), 10, np.array([5, 8]))[0]) == 2
    assert collection.use_vectors("float16") is None
    assert Collection.open(collection.path).graphs is None
    assert not list(collection.path.glob("codes-*"))


def test_an_index_goes_on_with_small_vectors(made, caplog):
    vectors = drawn(3000, DIM)
    collection = made(vectors[:1000])
    collection.use_vectors("int4", show_progress=False)
    coder = collection.snapshot.small.coder
    # What was removed is not found, whether codes are mapped or, with some removed, copied.
    with collection.store.writing():
        collection.store.append(rows_of(vectors[1000:1500], 1000), removed=collection.snapshot.ids[10:60].tolist())
    collection.refresh()
    # Rows of which nobody has made codes yet are found as well.
    assert collection.graphs.num_missing == 500
    assert found_share(collection, vectors[1000:1040]) >= 0.98
    collection.use_vectors("int4", show_progress=False)
    assert np.array_equal(collection.snapshot.small.coder.basis, coder.basis)
    assert collection.graphs.num_missing == 0
    assert found_share(collection, vectors[:1500:40]) >= 0.98
    assert len(collection) == 1450
    # When a quarter is gone, embeddings are written anew, and coded anew by what was fitted.
    with collection.store.writing():
        collection.store.append(removed=collection.snapshot.ids[:500].tolist())
        collection.store.compact()
    collection.use_vectors("int4", show_progress=False)
    assert found_share(Collection.open(collection.path), vectors[600:640]) >= 0.98
    assert np.array_equal(collection.snapshot.small.coder.basis, coder.basis)
    assert "fitted anew" not in caplog.text
    with collection.store.writing():
        collection.store.append(rows_of(vectors[1500:], 1500))
    collection.use_vectors("int4", show_progress=False)
    assert "small vectors are fitted anew" in caplog.text
    assert collection.recall.num_pictures == len(collection) == 2450
    assert len(list(collection.path.glob("codes-*"))) == 1


def test_indexes_are_merged_and_copied_with_their_vectors(made, tmp_path):
    vectors = drawn(1200, DIM)
    one, other = made(vectors[:800]), made(vectors, "other")
    one.use_vectors("int4", show_progress=False)
    one.merge(other, show_progress=False)
    assert (len(one), one.recall.kind, one.graphs.num_missing) == (1200, "int4", 0)
    copy = Collection.create_copy(tmp_path / "copy", one)
    assert (copy.recall.kind, len(copy)) == ("int4", 1200)
    assert found_share(copy, vectors[::50]) >= 0.98


def test_a_disk_of_another_machine_is_read_and_not_mapped(made, monkeypatch):
    vectors = drawn(900, DIM)
    collection = made(vectors)
    for module in (store, small):
        monkeypatch.setattr(module, "is_on_network", lambda _: True)
    collection.use_vectors("int4", show_progress=False)
    other = Collection.open(collection.path)
    assert isinstance(other.snapshot.vectors, Chosen)
    assert found_share(other, drawn(10, DIM, seed=4)) >= 0.98
    os.truncate(next(collection.path.glob("embeddings-*")), 100)
    with pytest.raises(OSError, match="shorter"):
        other.graphs.nearest(vectors[0].astype(np.float32), 3)


def test_a_damaged_file_of_codes_is_no_loss(made, caplog):
    vectors = drawn(900, DIM)
    collection = made(vectors)
    collection.use_vectors("bits", show_progress=False)
    (file,) = collection.path.glob("codes-*.bits")
    for content in (bytes(file.stat().st_size), file.read_bytes()[:100], None):
        file.unlink() if content is None else file.write_bytes(content)
        other = Collection.open(collection.path)
        assert other.graphs is None
        query = vectors[7].astype(np.float32)
        assert nearest_of(other.snapshot.vectors, None, query, 3)[0][0] == 7
        assert other.use_vectors("bits", show_progress=False).recall >= LEAST["bits"]
        assert isinstance(Collection.open(collection.path).graphs, SmallScan)
        (file,) = collection.path.glob("codes-*.bits")
    assert "made anew" in caplog.text
    with changing(collection.path) as db:
        db.execute("UPDATE codes SET codes = '../../etc/passwd', coder = x'00'")
    assert Collection.open(collection.path).graphs is None
    assert collection.use_vectors("bits", show_progress=False).recall >= LEAST["bits"]


def test_a_conversion_that_is_killed_loses_nothing(made, monkeypatch):
    vectors = drawn(3000, DIM)
    collection = made(vectors)
    monkeypatch.setattr(coding, "_BLOCK", 100)
    kept, done = coding.append_codes, []

    def ended(*given):
        if len(done) == moments:
            raise KeyboardInterrupt
        done.append(given)
        return kept(*given)

    before = {path.name: path.read_bytes() for path in collection.path.glob("embeddings-*")}
    for moments in (1, 2):
        done.clear()
        monkeypatch.setattr(coding, "append_codes", ended)
        with pytest.raises(KeyboardInterrupt):
            Collection.open(collection.path).use_vectors("int4", show_progress=False)
        monkeypatch.setattr(coding, "append_codes", kept)
        other = Collection.open(collection.path)
        assert len(other.snapshot.small.codes) == 800 * moments + 800 * (moments - 1)
        for query in vectors[::300].astype(np.float32):
            ways = [partial(nearest_of, other.snapshot.vectors, None), *(one.nearest for one in [other.graphs] if one)]
            assert {way(query, 5)[0][0] for way in ways} == {nearest_of(vectors, None, query, 5)[0][0]}
    assert {path.name: path.read_bytes() for path in collection.path.glob("embeddings-*")} == before
    assert collection.use_vectors("int4", show_progress=False).recall >= LEAST["int4"]
    assert Collection.open(collection.path).graphs.num_missing == 0


def run(*arguments):
    with suppress(SystemExit):  # what it prints tells
        main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        draw(folder / f"{number // 3}" / f"{number:02d}.png", number // 3, SIZES[number % 3])
    return folder


def test_pictures_are_indexed_found_moved_and_upgraded(photos, tmp_path, telling_file, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    index = ("-i", tmp_path / "index", "-j", "1")
    run("index", tmp_path / "photos", "-m", telling_file, *index, "--vectors", "int4")
    said = capsys.readouterr().out
    assert "int4 vectors, " in said
    assert "of the ten nearest are found" in said
    collection, plain = Collection.open(tmp_path / "index"), tmp_path / "plain"
    run("index", tmp_path / "photos", "-m", telling_file, "-i", plain, "-j", "1")
    exact = Collection.open(plain)
    for asked in ({"text": "a cat"}, {"text": "a cat", "where": ["width>90"]}, {"text": "a", "without": "a dog"}):
        found = [[(one.path, one.score) for one in of.search(**asked)] for of in (collection, exact)]
        assert found[0] == found[1] != []
    groups = [of.duplicates(threshold=0.9, show_progress=False) for of in (collection, exact)]
    assert groups[0] == groups[1]
    assert groups[0]
    # A folder that moved is recognised; a new picture is coded by what was fitted.
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    draw(tmp_path / "moved" / "new.png", 77)
    capsys.readouterr()
    run("index", tmp_path / "moved", *index)
    assert "1 encoded" in capsys.readouterr().out
    moved = Collection.open(tmp_path / "index")
    assert (len(moved), moved.graphs.num_missing) == (41, 0)
    (first, *_) = moved.search(image=tmp_path / "moved" / "new.png")
    assert first.path.endswith("new.png")
    # Without inputs it is converted, though no picture is there any more.
    shutil.move(tmp_path / "moved", tmp_path / "gone")
    run("index", *index, "--vectors", "bits")
    assert "bits vectors, " in capsys.readouterr().out
    shutil.move(tmp_path / "gone", tmp_path / "moved")
    save_model(telling(3), tmp_path / "new.safetensors")
    upgraded = Collection.open(tmp_path / "index")
    upgraded.upgrade_to(ModelSource(checkpoint=str(tmp_path / "new.safetensors")), force=True, sample=8)
    assert len(upgraded.search("a cat", k=3)) == 3
    upgraded.upgrade(options=IndexOptions(show_progress=False, precision="float32"))
    done = Collection.open(tmp_path / "index")
    assert done.upgrade_state is None
    assert (done.recall.kind, done.graphs.num_missing) == ("bits", 0)
    assert len(done.search("a cat", k=3)) == 3


def compared(collection, query):
    """Return the share of the codes in lists that a query is compared with."""
    lists = collection.snapshot.small.lists
    ranges = lists.ranges(query.astype(np.float32), lists.share * len(lists.places))
    return sum(one.stop - one.start for one in ranges) / len(lists.places)


@pytest.mark.parametrize("kind", KINDS)
def test_of_many_codes_those_of_the_nearest_cells_are_compared(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(coding, "_LISTED", 2000)
    # Around centres, as photographs are.
    centres = np.random.default_rng(5).normal(size=(60, 192))
    rows = np.repeat(centres, 75, 0) + 8 * drawn(4500, 192)
    queries = (centres[:30] + 8 * drawn(30, 192, seed=9)).astype(np.float32)
    vectors, queries = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (rows, queries))
    vectors = np.random.default_rng(6).permutation(vectors).astype(np.float16)
    index = Store.create(tmp_path / "index", ABOUT)
    with index.writing():
        index.append(rows_of(vectors[:4000]))
    collection = Collection.open(index.folder)
    recall = collection.use_vectors(kind, show_progress=False)
    other = Collection.open(collection.path)
    assert recall.share < 0.3
    assert recall.recall >= LEAST[kind]
    assert np.mean([compared(other, query) for query in queries]) < 2 * recall.share
    assert found_share(other, queries) >= LEAST[kind] - 0.04
    assert found_share(other, queries, among=np.arange(0, 4000, 7)) >= LEAST[kind] - 0.02
    # All of them are what was coded, whichever their order.
    lists, codes = other.snapshot.small.lists, other.snapshot.small.codes
    assert np.array_equal(lists.codes(np.arange(4000)), codes[lists.places])
    assert np.array_equal(np.sort(lists.places), np.arange(4000))
    # New ones are compared as well, and go into lists when they are many; removed ones are not found, though all that
    # is near was removed.
    near = nearest_of(vectors[:4000], None, queries[0], 150)[0]
    with collection.store.writing():
        collection.store.append(rows_of(vectors[4000:4250], 4000), removed=collection.snapshot.ids[near].tolist())
    names = {path.name for path in collection.path.glob("lists-*")}
    collection.use_vectors(kind, show_progress=False)
    assert {path.name for path in collection.path.glob("lists-*")} == names
    assert found_share(collection, np.concatenate([queries[1:9], vectors[4000:4020]])) >= LEAST[kind] - 0.04
    assert len(collection.graphs.nearest(queries[0], 10)[0]) == 10
    with collection.store.writing():
        collection.store.append(rows_of(vectors[4250:], 4250))
    collection.use_vectors(kind, show_progress=False)
    assert len({path.name for path in collection.path.glob("lists-*")} - names) == 1
    assert len(collection.snapshot.small.lists.places) == len(collection) == 4350
    assert found_share(Collection.open(collection.path), queries[1:]) >= LEAST[kind] - 0.04


def test_damaged_or_unfinished_lists_are_made_anew(made, monkeypatch, caplog):
    monkeypatch.setattr(coding, "_LISTED", 1000)
    vectors = drawn(3000, DIM)
    collection = made(vectors)
    with monkeypatch.context() as ended:
        ended.setattr(small, "write_lists", lambda path, *_: path.write_bytes(b"half") and os.kill(os.getpid(), 2))
        with pytest.raises(KeyboardInterrupt):
            collection.use_vectors("int4", show_progress=False)
    assert Collection.open(collection.path).snapshot.small.lists is None
    assert found_share(Collection.open(collection.path), vectors[:9]) >= LEAST["int4"]
    codes = next(collection.path.glob("codes-*")).read_bytes()
    collection.use_vectors("int4", show_progress=False)
    (file,) = collection.path.glob("lists-*")
    for content in (bytes(file.stat().st_size), file.read_bytes()[:100], None):
        file.unlink() if content is None else file.write_bytes(content)
        other = Collection.open(collection.path)
        assert found_share(other, vectors[:9]) >= LEAST["int4"]
        assert other.use_vectors("int4", show_progress=False).recall >= LEAST["int4"]
        assert len(Collection.open(collection.path).snapshot.small.lists.places) == 3000
        assert next(collection.path.glob("codes-*")).read_bytes() == codes
        (file,) = collection.path.glob("lists-*")
    assert "made anew" in caplog.text
    with changing(collection.path) as db:
        db.execute("UPDATE codes SET lists = '../../etc/passwd'")
    assert Collection.open(collection.path).graphs is None
    with changing(collection.path) as db:
        db.execute("UPDATE codes SET lists = ?, cells = x'00'", (file.name,))
    assert Collection.open(collection.path).graphs is None
    assert collection.use_vectors("int4", show_progress=False).recall >= LEAST["int4"]
