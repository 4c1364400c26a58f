from benchmarks.index_store import IndexStoreSpec, measure


def test_the_store_is_timed(tmp_path):
    costs = measure(tmp_path, IndexStoreSpec(num_rows=5000, dim=8))
    assert len(costs) == 12
    assert min(costs.values()) >= 0
