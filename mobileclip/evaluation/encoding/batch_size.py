"""How many images a model can encode at once on the machine at hand."""

from __future__ import annotations

import os

import torch

from mobileclip.inference.image_text_model import ImageTextModel

# More gains nothing: on a CPU images are encoded a few at a time, and a GPU is busy by then.
MOST_ON_CPU, MOST_ON_GPU = 64, 1024
# The batch itself, those that threads decode ahead, and the file and pixels of each before they are resized.
_COPIES = 8
# What others on the machine may need meanwhile, and what an allocator cannot use.
_SHARE = 0.5


def find_batch_size(clip: ImageTextModel) -> int:
    """Return a power of two: as many images as fit into half of the memory that is free.

    On a GPU it is tried out with twice as many images as before until they do not fit.

    Args:
        clip: the model, on its device.
    """
    image_size = clip.image_input.size
    if clip.device.type != "cuda":
        return fitting(free_memory(), 4 * 3 * image_size**2 * _COPIES, most=MOST_ON_CPU)
    return _tried_out(clip, image_size)


def fitting(free: int | None, bytes_each: int, *, most: int) -> int:
    """Return the largest power of two, up to `most` and at least 1, of things that fit into half of what is free.

    Args:
        free: in bytes; None where that is unknown.
        bytes_each: what one of them takes.
        most: a power of two.
    """
    size = most
    while size > 1 and free is not None and size * bytes_each > _SHARE * free:
        size //= 2
    return size


def free_memory() -> int | None:
    """Return the memory of the machine that is free, in bytes, or None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123  no file on a disk
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(available.split()[1])
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _tried_out(clip: ImageTextModel, image_size: int) -> int:
    free, _ = torch.cuda.mem_get_info(clip.device)
    size = 1
    while size < MOST_ON_GPU:
        torch.cuda.reset_peak_memory_stats(clip.device)
        before = torch.cuda.memory_allocated(clip.device)
        try:
            clip.encode_pixels(torch.zeros(2 * size, image_size, image_size, 3, dtype=torch.uint8))
        except torch.OutOfMemoryError:
            break
        if torch.cuda.max_memory_allocated(clip.device) - before > _SHARE * free:
            break
        size *= 2
    torch.cuda.empty_cache()
    return size
