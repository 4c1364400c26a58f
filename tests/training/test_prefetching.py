"""Batches reach the device in their order, no more of them than a run takes, and a GPU's while it computes."""

import signal
import time
from contextlib import contextmanager
from itertools import count

import attrs
import pytest
import torch

from mobileclip.terminal.interruption import Interrupted
from mobileclip.training.distributed import Prefetcher
from tests.training.runs import KilledError, batch_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICES = [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)]


class Source:
    """Batches that are counted as they are asked for."""

    def __init__(self, *, killed_at=None):
        self.given, self.killed_at = 0, killed_at

    def __iter__(self):
        for number in count():
            if number == self.killed_at:
                raise KilledError
            self.given += 1
            yield batch_of(number)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_batches_come_in_order_and_end_where_the_run_does(device):
    source = Source()
    prefetcher = Prefetcher(iter(source), count=3, device=device)
    for number in range(3):
        batch = prefetcher.take()
        expected = batch_of(number)
        assert batch.keys == expected.keys
        assert all(tensor.device.type == device.type for tensor in batch.tensors())
        assert torch.equal(batch.image.cpu(), expected.image)
        assert batch.image.stride() == expected.image.stride()
        prefetcher.advance()
        prefetcher.advance()
        assert source.given == min(3, number + 2)
    assert prefetcher.take() is None


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_an_error_is_of_the_batch_it_stands_for(device):
    prefetcher = Prefetcher(iter(Source(killed_at=2)), count=9, device=device)
    for _ in range(2):
        assert prefetcher.take() is not None
        prefetcher.advance()
    with pytest.raises(KilledError):
        prefetcher.take()


def test_a_signal_while_the_source_is_waited_for_is_of_the_batch_that_did_not_come():
    @contextmanager
    def interrupted():
        if source.given == 2:
            raise Interrupted(signal.SIGTERM)
        yield

    source = Source()
    prefetcher = Prefetcher(iter(source), count=9, device=CPU, waiting=interrupted)
    for number in range(2):
        assert prefetcher.take().keys == batch_of(number).keys
        prefetcher.advance()
    with pytest.raises(Interrupted):
        prefetcher.take()
    assert source.given == 2


def test_on_the_cpu_batches_are_handed_out_as_they_are():
    batch = batch_of(0)
    assert Prefetcher(iter([batch]), count=1, device=CPU).take().image is batch.image


def test_waiting_is_counted_by_the_step():
    def slow():
        for number in range(2):
            time.sleep(0.5 * (1 - number))
            yield batch_of(number)

    prefetcher = Prefetcher(slow(), count=2, device=CPU)
    prefetcher.take()
    assert prefetcher.seconds_waiting >= 0.5
    prefetcher.take()
    assert prefetcher.seconds_waiting < 0.5


@pytest.mark.gpu
def test_a_gpu_s_batches_are_not_written_over_while_it_computes():
    batches = [torch.full((64, 3, 128, 128), number, dtype=torch.uint8) for number in range(30)]
    prefetcher = Prefetcher((attrs.evolve(batch_of(0), image=one) for one in batches), count=30, device=CUDA)
    work = torch.rand(4096, 4096, device=CUDA)
    sums = []
    for _ in range(30):
        image = prefetcher.take().image
        for _ in range(4):
            work = (work @ work).clamp(0, 1)
        sums.append(image.double().mean())
        prefetcher.advance()
    assert [int(one) for one in sums] == list(range(30))
