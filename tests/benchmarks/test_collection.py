import pytest
from PIL import Image

from benchmarks.collection import CollectionBenchSpec, draw_photographs, measure_search
from mobileclip.collections import GraphSizes


def test_photographs_differ_and_have_their_size(tmp_path):
    paths = draw_photographs(tmp_path, CollectionBenchSpec(num_pictures=3, width=128))
    assert len({path.read_bytes() for path in paths}) == 3
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (128, 96)


@pytest.mark.parametrize("num_centres", [0, 20])
def test_searches_are_timed_and_compared(tmp_path, num_centres):
    sizes = {"num_vectors": 500, "num_centres": num_centres, "num_queries": 5, "graph": GraphSizes(exact=100)}
    found = measure_search(tmp_path, CollectionBenchSpec(**sizes))
    assert found["recall of the graph"].number == pytest.approx(1, abs=0.1)
    assert found["the vectors"].number == pytest.approx(500 * 512 * 2 / 1e9)
    assert found["the graph, opened"].number >= 0
    assert {"making the graph", "all compared", "by the graph"} < set(found)
