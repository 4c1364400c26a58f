"""Memory for batches: used again once nobody looks at it any longer, since new memory costs as much as filling it."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

_MOST_KEPT = 4


class BatchMemory:
    """Hands out float32 tensors and takes their memory back by itself, when the last tensor on it has gone.

    The kernel clears memory that a process writes to for the first time, page by page; for a batch of images that takes
    about as long as normalising them.
    """

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[np.float32]] = deque(maxlen=_MOST_KEPT)

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor that holds anything; as long as it, or a part of it, is in use, nobody else gets it."""
        owner = self._free.pop() if self._free else None
        if owner is None or owner.shape != shape:
            # Unlike torch, numpy asks for huge pages, which cost half as much when they are first written to.
            owner = np.empty(shape, np.float32)
        # The tensor keeps the view alive, and the end of the view gives the memory back.
        view = owner[:]
        weakref.finalize(view, self._free.append, owner).atexit = False
        return torch.from_numpy(view)

    def empty_batch(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor for a batch; a worker's is one that another process reads without a copy."""
        return self.empty(shape) if get_worker_info() is None else empty_shared(shape)


def empty_shared(shape: tuple[int, ...]) -> torch.Tensor:
    """Return a float32 tensor that holds anything, where another process can read it without a copy."""
    new_shared = torch.UntypedStorage._new_shared  # noqa: SLF001  what torch's own collate function calls
    storage = new_shared(4 * math.prod(shape), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0).set_(storage).resize_(shape)
