import pytest

from examples.quickstart.emoji import build_dataset
from tests.examples.quickstart.drawings import SPEC, write_packages


@pytest.fixture(scope="session")
def build_drawn(tmp_path_factory):
    """What gives a data set of drawings by its spec."""

    def build(spec):
        root = tmp_path_factory.mktemp("emoji")
        write_packages(root / "download" / "node_modules")
        return build_dataset(spec, root)

    return build


@pytest.fixture(scope="session")
def dataset(build_drawn):
    return build_drawn(SPEC)
