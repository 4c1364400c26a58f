import pytest

from tests.collections.web.served import make_index


@pytest.fixture(scope="module")
def collection(tmp_path_factory, telling_file):
    """The index that is served to the tests of a module."""
    return make_index(tmp_path_factory.mktemp("served"), telling_file)
