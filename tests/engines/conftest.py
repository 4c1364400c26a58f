import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobileclip.engines import LocalEngine
from tests.forking import FORKING
from tests.stores import one_store, store  # noqa: F401  fixtures

ROOT = Path(__file__).parents[2]
MODULE = sys.modules[LocalEngine.__module__]


@pytest.fixture(scope="module", autouse=True)
def forked_workers():
    """Workers of `LocalEngine` are forked by a server that has imported what they need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "multiprocessing", SimpleNamespace(get_context=lambda _: FORKING))
        yield


@pytest.fixture
def new_workers(monkeypatch):
    """Workers of `LocalEngine` are new processes, as outside of tests."""
    monkeypatch.setattr(MODULE, "multiprocessing", multiprocessing)


@pytest.fixture(scope="package")
def ray_cluster():
    """A cluster of two machines, as far as Ray can tell, with one core each; more may be added and taken away."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Actors find the tests' modules; nothing is reported.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # or else actors wait for all that the other tests do
        before = signal.getsignal(signal.SIGTERM)  # which Ray takes for itself
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            signal.signal(signal.SIGTERM, before)
