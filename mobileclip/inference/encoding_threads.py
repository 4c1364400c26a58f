"""Threads that encode small batches side by side."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mobileclip.hardware.threads import torch_threads


class EncodingThreads:
    """The threads of a model, in each of which torch uses one; they start when they are first needed.

    A team of torch's own threads waits for its slowest after every layer, and spins while it waits. What is pickled, or
    forked, has no threads yet.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._of = (0, 0)

    def __reduce__(self) -> tuple[type[EncodingThreads], tuple[()]]:
        """Return what makes another one, without threads."""
        return type(self), ()

    def map(self, encode: Callable[[Tensor], Tensor], parts: Iterable[Tensor], *, count: int) -> list[Tensor]:
        """Return what `encode` makes of the parts, in order, by so many threads, without gradients."""

        @torch.inference_mode()
        def encoded(part: Tensor) -> Tensor:
            return encode(part)

        with torch_threads(1):
            return list(self._started(count).map(encoded, parts))

    def _started(self, count: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._of != (os.getpid(), count):
                self._of = os.getpid(), count
                self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
            return self._pool
