"""How long one image and one text take on the machine at hand, for a plot of latency against accuracy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.encoding.embedding import evaluating
from mobileclip.evaluation.encoding.inference import fastest_form
from mobileclip.evaluation.report.values import Latency
from mobileclip.inference import processor

_WARM_UP, _FEWEST, _MOST = 3, 5, 50
_SECONDS = 2.0
_TEXT = "a photo of two people who walk along an old harbour"


def measure_latency(candidate: Candidate) -> Latency:
    """Return the median time of an image and of a text, one at a time, in the form that evaluation runs.

    Takes a few seconds, and means what it says where nothing else computes.

    Args:
        candidate: on its device.
    """
    with evaluating(candidate.model) as device:
        model = fastest_form(candidate.model)
        dtype = next(candidate.model.parameters()).dtype
        tokens = candidate.tokenize([_TEXT]).to(device)
        pixels = torch.zeros(1, 3, candidate.image_size, candidate.image_size, device=device, dtype=dtype)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        image_ms = _median_ms(lambda: model.encode_image(pixels).cpu())
        text_ms = _median_ms(lambda: model.encode_text(tokens).cpu())
    named = f"{device_name(device)}, {str(dtype).removeprefix('torch.')}, batch of 1"
    return Latency(image_ms=image_ms, text_ms=text_ms, device=named, source="measured")


def device_name(device: torch.device) -> str:
    """Return what a person calls a device: the GPU, or the processor with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{processor()}, {count} thread{'' if count == 1 else 's'}"


def _median_ms(encode: Callable[[], object]) -> float:
    for _ in range(_WARM_UP):
        encode()
    times: list[float] = []
    while len(times) < _FEWEST or (sum(times) < _SECONDS and len(times) < _MOST):
        start = time.perf_counter()
        encode()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
