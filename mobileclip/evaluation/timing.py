"""How long one image and one text take on the machine at hand, for a plot of latency against accuracy."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.inference import encoding
from mobileclip.evaluation.report.values import Latency

_WARM_UP, _FEWEST, _MOST = 3, 5, 50
_SECONDS = 2.0
_TEXT = "a photo of two people who walk along an old harbour"


def measure_latency(candidate: Candidate) -> Latency:
    """Return the median time of an image and of a text, one at a time, in the form that evaluation runs.

    Takes a few seconds, and means what it says where nothing else computes.

    Args:
        candidate: on its device.
    """
    tokens = candidate.tokenize([_TEXT])
    pixels = torch.zeros(1, 3, candidate.image_size, candidate.image_size)
    with encoding(candidate.model) as encoders:
        image_ms = _median_ms(lambda: encoders.encode_images(pixels))
        text_ms = _median_ms(lambda: candidate.model.encode_text(tokens.to(encoders.device)).float().cpu())
        device = device_name(encoders.device)
    precision = str(encoders.dtype).removeprefix("torch.")
    return Latency(image_ms=image_ms, text_ms=text_ms, device=f"{device}, {precision}, batch of 1", source="measured")


def device_name(device: torch.device) -> str:
    """Return what a person calls a device: the GPU, or the processor with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _median_ms(encode: Callable[[], object]) -> float:
    for _ in range(_WARM_UP):
        encode()
    times: list[float] = []
    while len(times) < _FEWEST or (sum(times) < _SECONDS and len(times) < _MOST):
        start = time.perf_counter()
        encode()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine() or "CPU"
