"""The nearest of many embeddings: all compared, or proposed by a graph."""

import numpy as np
import pytest
import torch

from mobileclip.collections import GraphSizes
from mobileclip.collections.nearest import GRAPH, exact_nearest, open_graph, update_graph
from mobileclip.collections.snapshot import Snapshot
from mobileclip.progress import Progress

FROM_200 = GraphSizes(exact=200, batch_size=50)


def snapshot_of(vectors, first=0):
    return Snapshot(vectors=vectors, ids=np.arange(first, first + len(vectors)))


def opened(folder, snapshot):
    return open_graph(folder, snapshot, FROM_200)


def renewed(folder, snapshot):
    update_graph(folder, snapshot, FROM_200, show_progress=False)
    return opened(folder, snapshot)


def assert_found_as_by_comparing(graph, vectors):
    hits = 0
    for query in vectors[:40].astype(np.float32):
        expected, scores = exact_nearest(vectors, None, query, 5)
        found, found_scores = graph.nearest(query, 5)
        hits += len(set(expected) & set(found))
        assert found_scores[0] == scores[0]
    assert hits >= 0.98 * 200


@pytest.fixture
def vectors():
    rows = np.random.default_rng(0).normal(size=(600, 24)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_best_of_many_are_those_of_32_bits(vectors):
    draw, whole = np.random.default_rng(1), vectors.astype(np.float32)
    queries = whole[:20] + 0.3 * draw.normal(size=(20, 24)).astype(np.float32)
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        for some in (None, np.sort(draw.permutation(600)[:300])):
            places = np.arange(600) if some is None else some
            scores = whole[places] @ query
            found, found_scores = exact_nearest(vectors, some, query, 20)
            assert found.tolist() == places[np.argsort(-scores, kind="stable")[:20]].tolist()
            np.testing.assert_allclose(found_scores, np.sort(scores)[::-1][:20], rtol=1e-5)
    assert exact_nearest(vectors, np.array([3, 17, 400]), whole[17], 10)[0].tolist()[0] == 17
    assert len(exact_nearest(vectors[:0], None, queries[0], 10)[0]) == 0
    assert exact_nearest(np.repeat(vectors[:1], 6, axis=0), None, whole[0], 6)[0].tolist() == list(range(6))


def test_who_is_stopped_keeps_what_was_added_and_the_next_goes_on(vectors, tmp_path, monkeypatch, two_threads):
    advance, done, snapshot = Progress.advance, [], snapshot_of(vectors)

    def stopped(bar, count):
        done.append(count)
        if len(done) == 5:
            raise KeyboardInterrupt
        advance(bar, count)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", stopped)
        with pytest.raises(KeyboardInterrupt):
            renewed(tmp_path, snapshot)
    for graph, num_missing in ((opened(tmp_path, snapshot), 600 - 5 * 50), (renewed(tmp_path, snapshot), 0)):
        assert graph.num_missing == num_missing
        assert_found_as_by_comparing(graph, vectors)


def test_every_row_of_a_graph_is_found(vectors, tmp_path, two_threads):
    for attempt in range(5):
        (tmp_path / GRAPH).unlink(missing_ok=True)
        graph = renewed(tmp_path, snapshot_of(vectors, 1000 * attempt))
        found = graph.nearest_to_each(vectors.astype(np.float32), 1, num_candidates=64)
        assert [places[0] for places, _ in found] == list(range(600))


def test_several_queries_at_once_find_what_each_finds_alone(vectors, tmp_path):
    renewed(tmp_path, snapshot_of(vectors[:580]))
    graph = opened(tmp_path, snapshot_of(vectors))
    assert graph.num_missing == 20
    queries = vectors[560:].astype(np.float32)
    for query, found in zip(queries, graph.nearest_to_each(queries, 5, num_candidates=512), strict=True):
        for one, expected in zip(found, graph.nearest(query, 5), strict=True):
            assert one.tolist() == expected.tolist()


def test_a_graph_knows_what_came_and_what_went_since(vectors, tmp_path):
    renewed(tmp_path, snapshot_of(vectors[:500]))
    later, queries = snapshot_of(vectors[100:], 100), vectors.astype(np.float32)
    graph = opened(tmp_path, later)
    assert graph.num_missing == 100
    for place in (0, 250, 499):
        assert graph.nearest(queries[100 + place], 3)[0][0] == place
    assert len(set(graph.nearest(queries[50], 500)[0].tolist())) == 500
    assert renewed(tmp_path, later).num_missing == 0


def test_few_pictures_need_no_graph_and_one_that_is_damaged_or_of_another_index_is_not_used(vectors, tmp_path, caplog):
    snapshot, other = snapshot_of(vectors), snapshot_of(vectors[::-1].copy())
    assert opened(tmp_path, snapshot) is None
    (tmp_path / GRAPH).write_bytes(b"no graph")
    assert opened(tmp_path, snapshot) is None
    assert GRAPH in caplog.text
    assert renewed(tmp_path, snapshot).num_missing == 0
    assert opened(tmp_path, other) is None
    assert_found_as_by_comparing(renewed(tmp_path, other), other.vectors)
    assert renewed(tmp_path, snapshot_of(vectors[:200])) is None
    assert not (tmp_path / GRAPH).exists()
