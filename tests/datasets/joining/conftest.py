"""A small world to join."""

import pytest

from tests.datasets.joining.world import Data


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


@pytest.fixture
def empty(tmp_path):
    """Data without samples and images yet."""
    return Data(tmp_path, count=0)
