"""The nearest of many embeddings: all compared, or proposed by a graph."""

import time
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from usearch.index import Index

from mobileclip.collections.nearest import GRAPH, open_graph, renew_graph
from mobileclip.collections import GraphSizes
from mobileclip.collections.nearest import nearest_of
from mobileclip.collections.snapshot import Snapshot
from mobileclip.progress import Progress

FROM_200 = GraphSizes(exact=200)


def sizes(largest, **others):
    return GraphSizes(exact=200, largest=largest, **others)


def snapshot_of(vectors, ids=None):
    ids = np.arange(len(vectors)) if ids is None else ids
    return Snapshot(vectors=vectors, ids=ids)


def files(folder):
    return sorted(path.name for path in folder.glob(GRAPH))


def assert_found_as_by_comparing(graphs, vectors):
    hits = 0
    for query in vectors[:40].astype(np.float32):
        expected, scores = nearest_of(vectors, None, query, 5)
        found, found_scores = graphs.nearest(query, 5)
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


def test_the_nearest_come_first_with_their_cosines(vectors):
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


def test_a_graph_finds_what_comparing_finds(vectors, tmp_path):
    snapshot = snapshot_of(vectors)
    renew_graph(tmp_path, snapshot, sizes=FROM_200, show_progress=False)
    graphs = open_graph(tmp_path, snapshot, sizes=FROM_200)
    assert graphs.num_missing == 0
    assert_found_as_by_comparing(graphs, vectors)


def test_graphs_that_were_not_finished_are_gone_on_with(vectors, tmp_path, monkeypatch):
    small = sizes(200)
    write, writes = Index.save, []

    def killed(graph, path):
        if len(writes) == 2:
            raise KeyboardInterrupt
        write(graph, path)
        writes.append(len(graph))

    monkeypatch.setattr(Index, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        renew_graph(tmp_path, snapshot_of(vectors[:550]), sizes=small, show_progress=False)
    graphs = open_graph(tmp_path, snapshot_of(vectors), sizes=small)
    assert graphs.num_missing == len(vectors) - sum(writes)
    lost = ({*range(3)} - {int(name[11:15]) for name in files(tmp_path)}).pop()
    place = 200 * lost + 50
    assert graphs.nearest(vectors[place].astype(np.float32), 3)[0][0] == place
    kept = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    monkeypatch.setattr(Index, "save", lambda graph, path: (write(graph, path), writes.append(len(graph))))
    renew_graph(tmp_path, snapshot_of(vectors[:550]), sizes=small, show_progress=False)
    assert len(writes) == 3
    assert {*files(tmp_path)} - {*kept} == {f"neighbours-000{lost}.usearch"}
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    # One graph has room for 50 more, and gets them.
    renew_graph(tmp_path, snapshot_of(vectors), sizes=small, show_progress=False)
    assert len(writes) == 4
    assert files(tmp_path) == [f"neighbours-000{number}.usearch" for number in range(3)]
    assert open_graph(tmp_path, snapshot_of(vectors), sizes=small).num_missing == 0


def test_who_is_stopped_keeps_what_was_added(vectors, tmp_path, monkeypatch, two_threads):
    small = sizes(400, added=50)

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", lambda *_: time.sleep(0.02))
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        renew_graph(tmp_path, snapshot_of(vectors), sizes=small, show_progress=False)
    monkeypatch.undo()
    assert 0 < open_graph(tmp_path, snapshot_of(vectors), sizes=small).num_missing < 600
    renew_graph(tmp_path, snapshot_of(vectors), sizes=small, show_progress=False)
    assert open_graph(tmp_path, snapshot_of(vectors), sizes=small).num_missing == 0


def test_every_row_of_every_graph_is_found(vectors, tmp_path, two_threads):
    small = sizes(150)
    queries = vectors.astype(np.float32)
    for attempt in range(10):
        snapshot = snapshot_of(vectors, np.arange(600) + 1000 * attempt)
        renew_graph(tmp_path, snapshot, sizes=small, show_progress=False)
        graphs = open_graph(tmp_path, snapshot, sizes=small)
        found = [places[0] for places, _ in graphs.nearest_to_each(queries, 1, num_candidates=64)]
        assert found == list(range(600))


def test_several_graphs_find_what_comparing_finds(vectors, tmp_path):
    small = sizes(150, candidates=40)
    renew_graph(tmp_path, snapshot_of(vectors), sizes=small, show_progress=False)
    assert len(files(tmp_path)) == 4
    graphs = open_graph(tmp_path, snapshot_of(vectors), sizes=small)
    assert_found_as_by_comparing(graphs, vectors)


def test_several_queries_at_once_find_what_each_finds_alone(vectors, tmp_path):
    small = sizes(250, candidates=120)
    renew_graph(tmp_path, snapshot_of(vectors[:580]), sizes=small, show_progress=False)
    # The last graph has fewer rows than there are candidates, and 20 rows are in none.
    graphs = open_graph(tmp_path, snapshot_of(vectors), sizes=small)
    queries = vectors[560:].astype(np.float32)
    for query, (places, scores) in zip(queries, graphs.nearest_to_each(queries, 5, num_candidates=120), strict=True):
        expected, expected_scores = graphs.nearest(query, 5)
        assert places.tolist() == expected.tolist()
        assert scores.tolist() == expected_scores.tolist()


def test_of_several_graphs_a_damaged_one_is_made_anew_alone(vectors, tmp_path, caplog):
    small = sizes(200)
    snapshot = snapshot_of(vectors)
    renew_graph(tmp_path, snapshot, sizes=small, show_progress=False)
    kept = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    (tmp_path / "neighbours-0001.usearch").write_bytes(b"no graph")
    graphs = open_graph(tmp_path, snapshot, sizes=small)
    assert graphs.num_missing == 200
    assert "neighbours-0001.usearch is not used" in caplog.text
    assert graphs.nearest(vectors[250].astype(np.float32), 3)[0][0] == 250
    renew_graph(tmp_path, snapshot, sizes=small, show_progress=False)
    assert open_graph(tmp_path, snapshot, sizes=small).num_missing == 0
    for name in ("neighbours-0000.usearch", "neighbours-0002.usearch"):
        assert (tmp_path / name).read_bytes() == kept[name]


def test_a_graph_knows_what_came_and_what_went_since(vectors, tmp_path):
    renew_graph(tmp_path, snapshot_of(vectors[:500]), sizes=FROM_200, show_progress=False)
    later = snapshot_of(vectors[100:], np.arange(100, 600))
    graphs = open_graph(tmp_path, later, sizes=FROM_200)
    assert graphs.num_missing == 100
    for place in (0, 250, 499):
        assert graphs.nearest(later.vectors[place].astype(np.float32), 3)[0][0] == place
    gone = graphs.nearest(vectors[50].astype(np.float32), 500)[0]
    assert len(set(gone.tolist())) == 500
    renew_graph(tmp_path, later, sizes=FROM_200, show_progress=False)
    assert open_graph(tmp_path, later, sizes=FROM_200).num_missing == 0


def test_few_pictures_need_no_graph_and_a_damaged_one_is_not_used(vectors, tmp_path, caplog):
    snapshot = snapshot_of(vectors)
    assert open_graph(tmp_path, snapshot, sizes=FROM_200) is None
    (tmp_path / "neighbours-0000.usearch").write_bytes(b"no graph")
    assert open_graph(tmp_path, snapshot, sizes=FROM_200) is None
    assert "is not used" in caplog.text
    renew_graph(tmp_path, snapshot, sizes=FROM_200, show_progress=False)
    assert open_graph(tmp_path, snapshot, sizes=FROM_200).num_missing == 0
    few = snapshot_of(vectors[:200])
    assert open_graph(tmp_path, few, sizes=FROM_200) is None
    renew_graph(tmp_path, few, sizes=FROM_200)
    assert files(tmp_path) == []
