"""Copies the next batch to the device while the current one is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Generic, TypeVar

import attrs
import torch

from mobileclip.data import Batch

BatchType = TypeVar("BatchType", bound=Batch)


@attrs.frozen
class _OnTheWay(Generic[BatchType]):
    """A batch that is being copied, or the error in place of one.

    Args:
        batch: on the device, and complete there after the event; None where the source has ended.
        copied: the event; None where there is nothing to wait for.
        error: that the source raised, or what ended the waiting for it: a signal, or the person at the keyboard.
    """

    batch: BatchType | None = None
    copied: torch.cuda.Event | None = None
    error: BaseException | None = None


class Feed(Generic[BatchType]):
    """Hands out the batches of a source on a device.

    The source is one batch ahead of what was handed out: `advance` waits for it. To a CUDA device it is copied from
    page-locked memory on a stream of its own, while the device computes on the batch before. The source is asked for no
    batch beyond `count`.

    Args:
        source: of batches.
        count: batches that will be taken.
        device: where they go.
        waiting: entered for as long as the source is waited for; a signal may be raised there.
    """

    def __init__(
        self,
        source: Iterator[BatchType],
        *,
        count: int,
        device: torch.device,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._source = islice(source, count)
        self._device = device
        self._waiting = waiting
        is_ahead = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_ahead else None  # type: ignore[no-untyped-call]
        self._next: _OnTheWay[BatchType] | None = None
        self.seconds_waiting = 0.0
        """Since the last `take` began, for which this process waited for batches."""

    def advance(self) -> None:
        """Wait for the next batch, and start to copy it; call this when the work for a step is queued.

        An error of the source, or a signal meanwhile, is raised by the `take` whose batch it is.
        """
        if self._next is not None:
            return
        started = time.perf_counter()
        self._next = self._fetch()
        self.seconds_waiting += time.perf_counter() - started

    @property
    def has_failed(self) -> bool:
        """Whether the next `take` will raise an error of the source, as far as is known."""
        return self._next is not None and isinstance(self._next.error, Exception)

    def take(self) -> BatchType | None:
        """Return the next batch, on the device; None where the source has ended.

        Raises:
            Exception: whatever the source does.
            Interrupted: if a signal has ended the waiting.
        """
        started = time.perf_counter()
        batch = self._copied()
        self.seconds_waiting = time.perf_counter() - started
        return batch

    def _fetch(self) -> _OnTheWay[BatchType]:
        try:
            with self._waiting():
                batch = next(self._source, None)
        except BaseException as error:  # noqa: BLE001 - raised when its turn comes
            return _OnTheWay(error=error)
        if batch is None:
            return _OnTheWay()
        if self._stream is None:
            return _OnTheWay(batch=batch.to(self._device))
        with torch.cuda.stream(self._stream):
            # Page-locked memory is used again when the copy from it has ended: PyTorch sees to that.
            there = batch.pin_memory().to(self._device, non_blocking=True)
            return _OnTheWay(batch=there, copied=self._stream.record_event())

    def _copied(self) -> BatchType | None:
        found, self._next = self._next or self._fetch(), None
        if found.error is not None:
            raise found.error
        if found.batch is None or found.copied is None:
            return found.batch
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(found.copied)
        # Its memory belongs to the stream that copied: not before this one has used it may it be used again.
        for tensor in found.batch.tensors():
            tensor.record_stream(computing)
        return found.batch
