import pytest

from tests.collections.pictures import index_of


@pytest.fixture
def make(tmp_path, telling_file):
    """What makes an index in a folder of a name, of inputs, by a model that tells pictures apart."""
    return lambda name, *inputs, **choices: index_of(tmp_path / name, telling_file, *inputs, **choices)


@pytest.fixture
def index(make):
    """An empty index."""
    return make("index")
