import pytest

from tests.training.program import finish, write_data


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """These models are far too small for two threads."""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """What the training program trains on."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(request, data, tmp_path_factory, one_thread):
    """What a run of it leaves that nothing happened to."""
    output = tmp_path_factory.mktemp("whole")
    finish(data, output, num_steps=request.module.NUM_STEPS)
    return output
