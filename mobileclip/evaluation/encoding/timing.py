"""How long one image and one text take on the machine at hand, for a plot of latency against accuracy."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Literal

import attrs
import torch
from attrs import validators

from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize
from mobileclip.evaluation.encoding.encoders import fastest_form
from mobileclip.inference import processor
from mobileclip.inference.modes import evaluating

Source = Literal["measured", "published"]

_WARM_UP, _FEWEST, _MOST = 3, 5, 50
_SECONDS = 2.0
_TEXT = "a photo of two people who walk along an old harbour"


@attrs.frozen(kw_only=True)
class Latency:
    """Milliseconds of one image and of one text, with the device that they were measured on.

    Args:
        image_ms: of the image tower, in milliseconds.
        text_ms: of the text tower, in milliseconds.
        device: where it was measured, such as `iPhone 12 Pro Max, Core ML, batch of 1`; only latencies of one device
            are compared.
        source: whether it was measured here or published.
        load: processes that wanted a core in the minute before, on average; None where nobody knows.
    """

    image_ms: float = attrs.field(validator=validators.gt(0))
    text_ms: float = attrs.field(validator=validators.gt(0))
    device: str = attrs.field(validator=validators.min_len(1))
    source: Source = attrs.field(validator=validators.in_(("measured", "published")))
    load: float | None = None

    @property
    def total_ms(self) -> float:
        """Image and text together, in milliseconds."""
        return self.image_ms + self.text_ms


def measure_latency(model: ImageTextModel, tokenize: Tokenize, image_size: int) -> Latency:
    """Return the median time of an image and of a text, one at a time, in the form that evaluation runs.

    Takes a few seconds, and means what it says where nothing else computes, which the load tells.

    Args:
        model: on its device.
        tokenize: from texts to the model's ids.
        image_size: side of the images that it takes, in pixels.
    """
    load = os.getloadavg()[0]
    first = next(model.parameters())
    device, dtype = first.device, first.dtype
    with evaluating(model), torch.inference_mode():
        ready = fastest_form(model)
        tokens = tokenize([_TEXT]).to(device)
        pixels = torch.zeros(1, 3, image_size, image_size, device=device, dtype=dtype)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        image_ms = _median_ms(lambda: ready.encode_image(pixels).cpu())
        text_ms = _median_ms(lambda: ready.encode_text(tokens).cpu())
    named = f"{machine_name(model)}, batch of 1"
    return Latency(image_ms=image_ms, text_ms=text_ms, device=named, source="measured", load=load)


def machine_name(model: ImageTextModel) -> str:
    """Return where a model computes, and in which precision, as a person says it."""
    weight = next(model.parameters())
    return f"{device_name(weight.device)}, {str(weight.dtype).removeprefix('torch.')}"


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
