"""Memory that a process keeps, so that no side pays for what the sides before it made of the heap."""

from __future__ import annotations

import ctypes

# Numbers of glibc's malloc.h: freed memory beyond this goes back to the system; so many blocks may be of their own.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep what is freed, where the C library is glibc; return whether it will.

    By default, feature maps beyond 32 MiB, and smaller ones at the end of the heap, go back to the system after each
    layer, and the next layer's come as pages of zeros. Whether they do depends on what else the process has done: an
    eager batch of 32 takes up to twice as long behind a compiler's run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
