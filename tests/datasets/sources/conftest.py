"""Stores that fail at once, and two that run here."""

from __future__ import annotations

import pytest

from benchmarks.object_store import object_store
from mobileclip import storage
from tests.stores import web_server


@pytest.fixture(autouse=True)
def _no_pauses():
    with storage.use_limits(storage.StoreLimits(retry_delays_seconds=(0.0, 0.0, 0.0))):
        yield


@pytest.fixture(scope="package")
def s3():
    with object_store(buckets={"data"}) as server:
        yield server


@pytest.fixture
def site():
    with web_server() as server:
        yield server
