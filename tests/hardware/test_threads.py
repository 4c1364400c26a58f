"""How many threads a model computes with: those that were asked for, as long as it is asked for."""

import pytest
import torch

from mobileclip.hardware import threads_or_default, torch_threads
from tests.errors import fails

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_runtime_takes_as_many_as_were_asked_for_or_as_pytorch_has():
    assert threads_or_default(None) == torch.get_num_threads() == 1
    assert (threads_or_default(1), threads_or_default(3)) == (1, 3)
    for count in (0, -1):
        with fails(ValueError, "num_threads", str(count)):
            threads_or_default(count)


@pytest.mark.parametrize(("count", "inside"), [(3, 3), (1, 1), (None, 1)])
def test_pytorch_has_them_for_a_while(count, inside):
    with torch_threads(count):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 1


def test_pytorch_has_as_many_as_before_after_an_error():
    with pytest.raises(KeyError), torch_threads(2):
        raise KeyError
    assert torch.get_num_threads() == 1
