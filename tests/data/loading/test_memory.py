"""Memory that comes back when the last tensor on it has gone, and never before."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from mobileclip.data.loading.memory import BatchMemory, empty_shared


def test_memory_in_use_is_nobody_else_s():
    memory = BatchMemory()
    batches = [memory.empty((4, 3)).fill_(number) for number in range(6)]
    assert len({batch.data_ptr() for batch in batches}) == 6
    for number, batch in enumerate(batches):
        assert batch.shape == (4, 3)
        assert batch.dtype == torch.float32
        assert bool((batch == number).all())


@pytest.mark.parametrize("part", [lambda batch: batch[1:], lambda batch: batch.view(-1), lambda batch: batch.numpy()])
def test_it_comes_back_with_the_last_part(part):
    memory = BatchMemory()
    first = memory.empty((4, 3))
    address = first.data_ptr()
    held = part(first)
    del first
    assert memory.empty((4, 3)).data_ptr() != address
    del held
    gc.collect()
    assert address in {memory.empty((4, 3)).data_ptr(), memory.empty((4, 3)).data_ptr()}


def test_another_shape_gets_memory_of_its_own():
    memory = BatchMemory()
    memory.empty((4, 3))
    assert memory.empty((5, 3)).shape == (5, 3)


def test_not_everything_is_kept():
    memory = BatchMemory()
    batches = [memory.empty((2,)) for _ in range(20)]
    batches.clear()
    assert len(memory._free) == 4
    alive = weakref.ref(memory._free)
    del memory
    gc.collect()
    assert alive() is None


def test_shared():
    batch = empty_shared((2, 3, 4))
    assert batch.is_shared()
    assert batch.shape == (2, 3, 4)
    assert batch.is_contiguous()
