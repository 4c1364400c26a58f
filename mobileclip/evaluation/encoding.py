"""What a model computes for a task: features, how many images at once, and how long one image and one text take."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

from mobileclip.data.skips import SkipReport
from mobileclip.evaluation.benchmark import Benchmark
from mobileclip.evaluation.suite import suite_entry
from mobileclip.inference import prepared, processor
from mobileclip.inference.image_text_model import ImageTextModel


@attrs.frozen(kw_only=True, eq=False)
class Features:
    """A model's embeddings of a task's data, and what scoring needs beside them; a file holds them as they are.

    Zero-shot tasks and linear probes have the tensors of `Features.of`; other tasks have those that they name.

    Args:
        tensors: by name, on the CPU.
        header: values of JSON, such as `keys`, what the samples are called, in order.
        report: what was read, and what was left out, by reason.
        is_kept: whether they were read from such a file.
    """

    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]
    report: SkipReport = attrs.field(factory=SkipReport)
    is_kept: bool = False

    @classmethod
    def of(
        cls,
        *,
        keys: Sequence[str],
        image: Tensor,
        text: Tensor | None = None,
        labels: Tensor | None = None,
        num_captions: Tensor | None = None,
        metadata: Tensor | None = None,
        report: SkipReport | None = None,
    ) -> Features:
        """Return the features of pictures with labels or captions.

        Shape:
            image: `(images, dim)`; text: `(classes * templates, dim)`, the templates of the first class first, or
            `(captions, dim)`, those of the first image first; labels, num_captions: `(images,)`;
            metadata: `(images, fields)`, int64.

        Args:
            keys: what the samples are called, in order.
            image: embeddings, float32, not normalised.
            text: embeddings, float32, not normalised; None where they are yet to come.
            labels: index of each image's class; None for retrieval.
            num_captions: how many captions each image has; None for classification.
            metadata: whole numbers that say which groups an image belongs to, see `metadata_fields`; None where the
                data set has no groups, or one of the images does not say.
            report: what was read, and what was left out; nothing, where it is not given.

        Raises:
            ValueError: if the shapes or types do not fit each other.
        """
        given = {"image": image, "text": text, "labels": labels, "num_captions": num_captions, "metadata": metadata}
        tensors = {name: value for name, value in given.items() if value is not None}
        _require_fitting(len(keys), tensors)
        return cls(tensors=tensors, header={"keys": list(keys)}, report=report or SkipReport(log=False))

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the samples, in order."""
        return tuple(self.header["keys"])

    @property
    def image(self) -> Tensor:
        """Embeddings of the pictures."""
        return self.tensors["image"]

    @property
    def text(self) -> Tensor:
        """Embeddings of the texts."""
        return self.tensors["text"]

    @property
    def labels(self) -> Tensor | None:
        """Index of each image's class."""
        return self.tensors.get("labels")

    @property
    def num_captions(self) -> Tensor | None:
        """How many captions each image has."""
        return self.tensors.get("num_captions")

    @property
    def metadata(self) -> Tensor | None:
        """Whole numbers that say which groups an image belongs to."""
        return self.tensors.get("metadata")

    def with_tensors(self, **tensors: Tensor) -> Features:
        """Return them with these tensors, added or in place of those of the same names."""
        return attrs.evolve(self, tensors={**self.tensors, **tensors})


def _require_fitting(num_keys: int, tensors: Mapping[str, Tensor]) -> None:
    image, text = tensors["image"], tensors.get("text", tensors["image"])
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(
            f"expected embeddings (images, dim) and (texts, dim), got {tuple(image.shape)} and {tuple(text.shape)}"
        )
    if (image.dtype, text.dtype) != (torch.float32, torch.float32):
        raise ValueError(f"expected embeddings in float32, got {image.dtype} and {text.dtype}")
    numbers = {"keys": num_keys}
    for name in tensors.keys() & {"labels", "num_captions", "metadata"}:
        value = tensors[name]
        if value.dtype != torch.int64 or value.ndim != 1 + (name == "metadata"):
            raise ValueError(f"expected {name} (images, ...), int64, got {value.dtype} {tuple(value.shape)}")
        numbers[name] = len(value)
    if wrong := {name: number for name, number in numbers.items() if number != len(image)}:
        raise ValueError(f"there are {len(image)} images, but {wrong}")
    if "num_captions" in tensors and int(tensors["num_captions"].sum()) != len(text):
        raise ValueError(f"there are {int(tensors['num_captions'].sum())} captions, but {len(text)} embeddings")


def num_images(benchmark: Benchmark) -> int:
    """Return about how many images there are, or zero where finding out would mean reading them."""
    try:
        count = benchmark.num_samples()
    except ValueError:  # what is wrong with a shard is reported when it is read
        return 0
    if count is None:
        entry = suite_entry(benchmark.name)
        return 0 if entry is None else entry.num_images
    return count


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


def measure_latency(clip: ImageTextModel) -> Latency:
    """Return the median time of an image and of a text, one at a time, in the form that evaluation runs.

    Takes a few seconds, and means what it says where nothing else computes, which the load tells.

    Args:
        clip: the model, on its device.
    """
    load = os.getloadavg()[0]
    side, like = clip.image_input.size, clip.model.logit_scale
    with torch.inference_mode():
        ready = prepared(clip.model)
        tokens = clip.tokenizer([_TEXT]).to(like.device)
        pixels = torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        image_ms = _median_ms(lambda: ready.encode_image(pixels).cpu())
        text_ms = _median_ms(lambda: ready.encode_text(tokens).cpu())
    named = f"{machine_name(clip)}, batch of 1"
    return Latency(image_ms=image_ms, text_ms=text_ms, device=named, source="measured", load=load)


def machine_name(clip: ImageTextModel) -> str:
    """Return where a model computes, and in which precision, as a person says it."""
    weight = clip.model.logit_scale
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
