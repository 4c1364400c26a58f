"""The nearest of many embeddings: all compared, or proposed by a graph."""

import numpy as np
import pyarrow as pa
import pytest
from usearch.index import Index

from mobileclip.collections.searching import neighbours
from mobileclip.collections.searching.neighbours import GRAPH, nearest_of, open_graph, renew_graph
from mobileclip.collections.store.snapshot import Snapshot


def snapshot_of(vectors, ids=None):
    ids = np.arange(len(vectors)) if ids is None else ids
    return Snapshot(table=pa.table({"id": ids}), vectors=vectors, ids=ids, num_unreadable=0)


@pytest.fixture
def vectors():
    rows = np.random.default_rng(0).normal(size=(600, 24)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def from_200(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 200)


def test_the_nearest_come_first_with_their_cosines(vectors, monkeypatch):
    monkeypatch.setattr(neighbours, "_SPARE", 3)
    query = vectors[17].astype(np.float32)
    scores = vectors.astype(np.float32) @ query
    places, found = nearest_of(vectors, None, query, 5)
    assert places.tolist() == np.argsort(-scores)[:5].tolist()
    np.testing.assert_allclose(found, np.sort(scores)[::-1][:5], rtol=1e-5)
    some = np.array([3, 17, 400])
    assert nearest_of(vectors, some, query, 10)[0][0] == 17
    assert len(nearest_of(vectors, some, query, 10)[0]) == 3
    assert len(nearest_of(vectors[:0], None, query, 10)[0]) == 0


def test_the_best_of_many_are_those_of_32_bits(vectors):
    draw = np.random.default_rng(1)
    queries = vectors[:20].astype(np.float32) + 0.3 * draw.normal(size=(20, 24)).astype(np.float32)
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        scores = vectors.astype(np.float32) @ query
        for some in (None, np.sort(draw.permutation(600)[:300])):
            among = scores if some is None else scores[some]
            places, found = nearest_of(vectors, some, query, 20)
            expected = np.argsort(-among, kind="stable")[:20]
            assert places.tolist() == (expected if some is None else some[expected]).tolist()
            np.testing.assert_allclose(found, np.sort(among)[::-1][:20], rtol=1e-5)


def test_of_equal_ones_the_first_comes_first(vectors):
    same = np.repeat(vectors[:1], 6, axis=0)
    assert nearest_of(same, None, vectors[0].astype(np.float32), 6)[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_graph_finds_what_comparing_finds(vectors, tmp_path, from_200):
    snapshot = snapshot_of(vectors)
    renew_graph(tmp_path, snapshot, show_progress=False)
    graph = open_graph(tmp_path, snapshot)
    assert graph.num_missing == 0
    hits = 0
    for query in vectors[:40].astype(np.float32):
        expected, scores = nearest_of(vectors, None, query, 5)
        found, found_scores = graph.nearest(query, 5)
        hits += len(set(expected) & set(found))
        assert found_scores[0] == scores[0]
    assert hits >= 0.98 * 200


def test_a_graph_that_was_made_with_the_cosine_is_used_and_added_to(vectors, tmp_path, from_200):
    before = Index(ndim=24, metric="cos", dtype="i8")
    before.add(np.arange(400, dtype=np.uint64), vectors[:400].astype(np.float32))
    before.save(tmp_path / GRAPH)
    assert open_graph(tmp_path, snapshot_of(vectors)).num_missing == 200
    renew_graph(tmp_path, snapshot_of(vectors), show_progress=False)
    graph = open_graph(tmp_path, snapshot_of(vectors))
    assert graph.num_missing == 0
    for place in (5, 399, 401, 599):
        assert graph.nearest(vectors[place].astype(np.float32), 3)[0][0] == place


def test_a_graph_that_was_not_finished_is_gone_on_with(vectors, tmp_path, from_200, monkeypatch):
    monkeypatch.setattr(neighbours, "_ADDED", 100)
    monkeypatch.setattr(neighbours, "_SECONDS_BETWEEN_WRITES", 0.0)
    wrote, writes = neighbours._write, []

    def killed(index, path):
        wrote(index, path)
        writes.append(len(index))
        if len(index) == 300:
            raise KeyboardInterrupt

    monkeypatch.setattr(neighbours, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        renew_graph(tmp_path, snapshot_of(vectors), show_progress=False)
    graph = open_graph(tmp_path, snapshot_of(vectors))
    assert graph.num_missing == 300
    assert graph.nearest(vectors[450].astype(np.float32), 3)[0][0] == 450
    renew_graph(tmp_path, snapshot_of(vectors), show_progress=False)
    assert writes[:4] == [100, 200, 300, 400]
    assert open_graph(tmp_path, snapshot_of(vectors)).num_missing == 0


def test_a_graph_knows_what_came_and_what_went_since(vectors, tmp_path, from_200):
    renew_graph(tmp_path, snapshot_of(vectors[:500]), show_progress=False)
    later = snapshot_of(vectors[100:], np.arange(100, 600))
    graph = open_graph(tmp_path, later)
    assert graph.num_missing == 100
    for place in (0, 250, 499):
        assert graph.nearest(later.vectors[place].astype(np.float32), 3)[0][0] == place
    gone = graph.nearest(vectors[50].astype(np.float32), 500)[0]
    assert len(set(gone.tolist())) == 500
    renew_graph(tmp_path, later, show_progress=False)
    assert open_graph(tmp_path, later).num_missing == 0


def test_few_pictures_need_no_graph_and_a_damaged_one_is_not_used(vectors, tmp_path, from_200, caplog):
    snapshot = snapshot_of(vectors)
    assert open_graph(tmp_path, snapshot) is None
    (tmp_path / GRAPH).write_bytes(b"no graph")
    assert open_graph(tmp_path, snapshot) is None
    assert "is not used" in caplog.text
    renew_graph(tmp_path, snapshot, show_progress=False)
    assert open_graph(tmp_path, snapshot).num_missing == 0
    few = snapshot_of(vectors[:200])
    assert open_graph(tmp_path, few) is None
    renew_graph(tmp_path, few)
    assert not (tmp_path / GRAPH).exists()
