"""Encodes the data of a task once, and caches the embeddings in files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs
import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.data import Benchmark, fingerprint, hash_of
from mobileclip.evaluation.results import Latency
from mobileclip.evaluation.suite import suite_entry
from mobileclip.extras import VERSION
from mobileclip.inference import prepared, processor
from mobileclip.inference.bulk_encoding import view_of
from mobileclip.inference.image_text_model import ImageTextModel, Views
from mobileclip.inference.texts import ensemble_prompts, fill_templates
from mobileclip.machine import raise_machine_fault
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

_SUFFIX, _CHECKSUM, _HEADER = ".safetensors", "sha256", "header"


@attrs.frozen(kw_only=True, eq=False)
class Features:
    """A model's embeddings of a task's data, with the other tensors that scoring needs.

    `Features.of` defines the tensors of zero-shot tasks and linear probes; other tasks define their own tensors.

    Args:
        tensors: tensors by name, on the CPU.
        header: JSON values, such as `keys`, the names of the samples in order.
        report: number of samples read, and skipped samples by reason.
        from_cache: whether the features come from a cache file.
    """

    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]
    report: SkipReport = attrs.field(factory=SkipReport)
    from_cache: bool = False

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
        """Return the features of images with labels or captions.

        Shape:
            image: `(images, dim)`; text: `(classes * templates, dim)`, with the prompts of the first class first, or
                `(captions, dim)`, with the captions of the first image first; labels, num_captions: `(images,)`;
                metadata: `(images, fields)`, int64.

        Args:
            keys: names of the samples, in order.
            image: image embeddings, float32, not normalised.
            text: text embeddings, float32, not normalised; None if the texts are encoded later.
            labels: class index of each image; None for retrieval.
            num_captions: number of captions of each image; None for classification.
            metadata: integers that identify the groups of each image, see `metadata_fields`; None if the data set has
                no groups, or if an image lacks the integers.
            report: number of samples read, and skipped samples by reason; None for an empty report.

        Raises:
            ValueError: if a tensor has an unexpected shape or dtype, or the tensors have different numbers of images.
        """
        given = {"image": image, "text": text, "labels": labels, "num_captions": num_captions, "metadata": metadata}
        tensors = {name: value for name, value in given.items() if value is not None}
        _require_fitting(len(keys), tensors)
        return cls(tensors=tensors, header={"keys": list(keys)}, report=report or SkipReport(log=False))

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the samples, in order."""
        return tuple(self.header["keys"])

    @property
    def image(self) -> Tensor:
        """Image embeddings, float32, not normalised."""
        return self.tensors["image"]

    @property
    def text(self) -> Tensor:
        """Text embeddings, float32, not normalised."""
        return self.tensors["text"]

    @property
    def labels(self) -> Tensor | None:
        """Class index of each image; None for retrieval."""
        return self.tensors.get("labels")

    @property
    def num_captions(self) -> Tensor | None:
        """Number of captions of each image; None for classification."""
        return self.tensors.get("num_captions")

    @property
    def metadata(self) -> Tensor | None:
        """Integers that identify the groups of each image; None without groups."""
        return self.tensors.get("metadata")

    def with_tensors(self, **tensors: Tensor) -> Features:
        """Return a copy of the features with added or replaced tensors, given by name."""
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
        raise ValueError(f"expected one entry per image: there are {len(image)} images, but {wrong}")
    if "num_captions" in tensors and int(tensors["num_captions"].sum()) != len(text):
        raise ValueError(f"there are {int(tensors['num_captions'].sum())} captions, but {len(text)} text embeddings")


def num_images(benchmark: Benchmark) -> int:
    """Return the approximate number of images, or 0 if counting would require reading the data."""
    try:
        count = benchmark.num_samples()
    except ValueError:  # the reader reports a damaged shard later
        return 0
    if count is None:
        entry = suite_entry(benchmark.name)
        return 0 if entry is None else entry.num_images
    return count


# Larger batches are not faster: a CPU encodes only a few images at a time, and these batches keep a GPU busy.
MOST_ON_CPU, MOST_ON_GPU = 64, 1024
# Memory per image, in multiples of the model input in float32: the batch itself, the images that threads decode ahead,
# and each image's file and pixels before resizing.
_COPIES = 8
# Share of the free memory for a batch; other processes and the allocator's overhead need the rest.
_SHARE = 0.5


def find_batch_size(clip: ImageTextModel) -> int:
    """Return the largest batch size, a power of two, whose images fit into half of the free memory.

    The batch size is at most 1024 on a CUDA GPU and at most 64 on any other device. On a CUDA GPU, the function
    measures the memory by encoding batches of growing size.

    Args:
        clip: the model, on the device that encodes the images.
    """
    image_size = clip.image_input.size
    if clip.device.type != "cuda":
        return fitting(free_memory(), 4 * 3 * image_size**2 * _COPIES, most=MOST_ON_CPU)
    return _tried_out(clip, image_size)


def fitting(free: int | None, bytes_each: int, *, most: int) -> int:
    """Return the largest number of items, a power of two up to `most`, that fits into half of the free memory.

    Args:
        free: free memory in bytes; None if unknown.
        bytes_each: memory per item, in bytes.
        most: largest number of items to return, a power of two.
    """
    size = most
    while size > 1 and free is not None and size * bytes_each > _SHARE * free:
        size //= 2
    return size


def free_memory() -> int | None:
    """Return the free memory of the machine in bytes, or None if the operating system does not report it."""
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


_WARM_UP, _FEWEST, _MOST = 3, 5, 50
_SECONDS = 2.0
_TEXT = "a photo of two people who walk along an old harbour"


def measure_latency(clip: ImageTextModel) -> Latency:
    """Measure the median latency of one image and of one text at batch size 1, with the model as evaluated.

    The measurement takes a few seconds. The latency is reliable only if no other process uses the machine; a high
    `load` in the result reveals other processes.

    Args:
        clip: the model, on the device to measure.
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
    """Return the device and precision of a model, for display."""
    weight = clip.model.logit_scale
    return f"{device_name(weight.device)}, {str(weight.dtype).removeprefix('torch.')}"


def device_name(device: torch.device) -> str:
    """Return the display name of a device: the name of the GPU, or of the CPU with its number of threads."""
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


NOT_A_NAME = re.compile(r"[^\w.+-]+")


@attrs.frozen(kw_only=True)
class FeatureCache:
    """Cache of features, keyed by a hash of the weights, the image reader, the input settings and the data.

    A data set takes 4 bytes times the embedding dim for each image and for each caption or prompt. The 38 data sets
    of the suite take about 1.4 GB per model with 512 dims.

    Args:
        folder: folder of the cache, created if missing. The cache treats a damaged file as missing. If a file cannot be
            written, the cache only logs a warning.
        weights_sha256: SHA-256 hash of the model's weights.
        model: fingerprint of the model, see `Candidate.fingerprint`.
    """

    folder: Path = attrs.field(converter=Path)
    weights_sha256: str
    model: str

    @classmethod
    def of(cls, candidate: Candidate, folder: Path | str) -> FeatureCache:
        """Return the cache for a candidate's features in a folder."""
        return cls(folder=Path(folder), weights_sha256=candidate.weights_sha256, model=candidate.fingerprint)

    def read(self, name: str, content: str) -> Features | None:
        """Return the cached features, bit-exact, or None if they are not cached.

        Args:
            name: name of the data, used in the file name.
            content: hash of everything that the features depend on except the model.
        """
        kept = _read_cached(self._path(name, content))
        if kept is None:
            return None
        tensors, text = kept
        header = json.loads(text)
        return Features(tensors=tensors, header=header["header"], report=_report(header["report"]), from_cache=True)

    def write(self, name: str, content: str, features: Features) -> None:
        """Store features for `read`."""
        text = json.dumps({"header": dict(features.header), "report": _report_values(features.report)})
        _write_cached(self._path(name, content), features.tensors, text)

    def _path(self, name: str, content: str) -> Path:
        key = hash_of([self.model, content])
        return self.folder / self.weights_sha256[:16] / f"{NOT_A_NAME.sub('-', name)[:80]}-{key[:16]}{_SUFFIX}"


def _read_cached(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Return the tensors and header that `_write_cached` stored, or None if the file is missing or damaged.

    Do not memory-map the file, since a faulty disk would then crash the process.
    """
    import safetensors.torch

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read; the features in the file are computed again: %s", path, error)
        return None
    try:
        described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors, header = safetensors.torch.load(data), str(described[_HEADER])
        wrong: object = "its content has changed"
        if _checksum(tensors, header) == described[_CHECKSUM]:
            return tensors, header
    except Exception as error:  # noqa: BLE001 - for any error, the cache computes the features again
        raise_machine_fault(error)
        wrong = error
    logger.warning("%s is damaged; the features in the file are computed again: %s", path, wrong)
    return None


def _write_cached(path: Path, tensors: Mapping[str, Tensor], header: str) -> None:
    """Write a file for `_read_cached`; log a warning if the file cannot be written.

    Args:
        path: path of the file, written atomically; the function creates missing folders.
        tensors: tensors by name.
        header: text stored with the tensors.
    """
    import safetensors.torch

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(whole, {_HEADER: header, _CHECKSUM: _checksum(whole, header)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.atomic_write(path) as stream:
            stream.write(data)
    except OSError as error:
        logger.warning("embeddings are not cached: %s", error)


def _checksum(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _report_values(report: SkipReport) -> dict[str, Any]:
    return {
        "num_read": report.num_read,
        "counts": dict(report.counts),
        "named": [attrs.asdict(skip) for skips in report.named.values() for skip in skips],
    }


def _report(values: dict[str, Any]) -> SkipReport:
    report = SkipReport(num_read=values["num_read"], counts=Counter(values["counts"]))
    for one in values["named"]:
        report.named.setdefault(one["reason"], []).append(Skip(**one))
    return report


# Encoding this many texts takes only seconds.
_FEW_TEXTS = 256


class Keyed(Protocol):
    """Interface of an object with a `key`."""

    @property
    def key(self) -> str:
        """Name of the object in a report."""


Item = TypeVar("Item")
KeyedItem = TypeVar("KeyedItem", bound=Keyed)
Kept = TypeVar("Kept")


def _as_clip(model: DualEncoder | ImageTextModel) -> ImageTextModel:
    return ImageTextModel.of(model) if isinstance(model, DualEncoder) else model


@attrs.define(eq=False)
class Session:
    """Encodes the data of several tasks with one model; the embeddings are not normalised.

    Args:
        clip: the model. A `DualEncoder` in any mode is also accepted; the session then uses a folded copy.
        batch_size: number of images or texts per batch, at least 1.
        num_threads: number of threads that decode images while the model runs; by default one per core, at most eight.
        show_progress: whether to show a progress bar, with the remaining time if the number of images is known.
        cache: cache for the embeddings of data sets; None to cache nothing.
    """

    clip: ImageTextModel = attrs.field(converter=_as_clip)
    batch_size: int = attrs.field(default=64, kw_only=True, validator=attrs.validators.ge(1))
    num_threads: int | None = attrs.field(default=None, kw_only=True)
    show_progress: bool = attrs.field(default=True, kw_only=True)
    cache: FeatureCache | None = attrs.field(default=None, kw_only=True)

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        *,
        batch_size: int | None = None,
        num_threads: int | None = None,
        show_progress: bool = True,
        cache: Path | str | None = None,
    ) -> Session:
        """Return the session of a candidate.

        Args:
            candidate: the model.
            batch_size: number of images or texts per batch; by default as many as fit into memory, see
                `find_batch_size`.
            num_threads: number of threads that decode images; see `Session`.
            show_progress: whether to show a progress bar.
            cache: folder of the cache for embeddings of data sets; None to cache nothing.
        """
        return cls(
            candidate.clip,
            batch_size=find_batch_size(candidate.clip) if batch_size is None else batch_size,
            num_threads=num_threads,
            show_progress=show_progress,
            cache=None if cache is None else FeatureCache.of(candidate, cache),
        )

    def cached_features(
        self, name: str, content: Callable[[], str | None], make: Callable[[Session], Features]
    ) -> Features:
        """Return features from the cache; if the cache lacks the features, compute and store them.

        Args:
            name: name of the data, used in the name of the cache file.
            content: function that returns a hash of everything that the features depend on except the model, or None to
                disable the cache. The hash excludes data that only scoring needs.
            make: function that computes the features with the given session.

        Raises:
            ValueError: if the data change during the evaluation, or no sample is usable.
        """
        before = content()
        stored = None if self.cache is None or before is None else self.cache.read(name, before)
        if stored is not None:
            return stored
        features = make(self)
        features = attrs.evolve(features, header={**features.header, **origin(self.clip), "data": before or ""})
        if content() != before:
            raise ValueError(
                f"{name} changed during the evaluation; evaluate the data set again when all files are complete"
            )
        if self.cache is not None and before is not None:
            self.cache.write(name, before, features)
        return features

    def image_features(self, benchmark: Benchmark) -> Features:
        """Return a data set's image embeddings and, for retrieval, caption embeddings, see `cached_features`.

        Raises:
            ValueError: if no image is usable, or the data set changes during the evaluation.
        """
        return self.cached_features(benchmark.name, lambda: fingerprint(benchmark), lambda _: self._encoded(benchmark))

    def _encoded(self, benchmark: Benchmark) -> Features:
        report = SkipReport()
        samples, embeddings = self.embed_images(
            benchmark.samples(report),
            lambda sample: sample.image,
            keep=lambda sample: attrs.evolve(sample, image=b""),
            report=report,
            title=benchmark.name,
            total=num_images(benchmark) or None,
        )
        if not samples:
            raise ValueError(f"no image of {benchmark.name} is usable: {report}")
        retrieval = benchmark.kind == "retrieval"
        metadata = [sample.metadata for sample in samples if sample.metadata is not None]
        return Features.of(
            keys=[sample.key for sample in samples],
            image=embeddings,
            text=self.encode_texts([caption for one in samples for caption in one.captions]) if retrieval else None,
            labels=None if retrieval else torch.tensor([sample.label for sample in samples]),
            num_captions=torch.tensor([len(sample.captions) for sample in samples]) if retrieval else None,
            metadata=torch.tensor(metadata) if len(metadata) == len(samples) else None,
            report=report,
        )

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, in order, see `cached_features`.

        Shape:
            result: `(texts, dim)`.
        """

        def made(session: Session) -> Features:
            return Features(tensors={"text": session.encode_texts(texts)}, header={})

        return self.cached_features("texts", lambda: hash_of(list(texts)), made).text

    def features(self, benchmark: Benchmark) -> tuple[Features, SkipReport]:
        """Return the image and text embeddings of a data set, and the report of skipped samples.

        Raises:
            ValueError: if no image is usable, or the data set changes during the evaluation.
        """
        features = self.image_features(benchmark)
        if benchmark.kind == "classification":
            prompts = fill_templates(benchmark.class_names, benchmark.templates)
            features = features.with_tensors(text=self.text_features(prompts))
        return features, features.report

    def embed_images(
        self,
        items: Iterable[KeyedItem],
        content: Callable[[KeyedItem], bytes],
        *,
        keep: Callable[[KeyedItem], Kept],
        report: SkipReport,
        title: str,
        total: int | None = None,
    ) -> tuple[list[Kept], Tensor]:
        """Return the `keep` values and the embeddings of the items with usable images, in order.

        Shape:
            embeddings: `(usable items, dim)`; `(0,)` if no item is usable.

        Args:
            items: items, consumed in the caller's thread.
            content: function that returns the encoded image of an item, called in several threads. If the function
                raises `BadSampleError`, the item is skipped.
            keep: function that returns the value that represents an item in the result, without the image.
            report: report that receives the key of every skipped item. The caller counts every item in `num_read`; this
                function subtracts the skipped items.
            title: title of the progress bar, and name of the data in the report.
            total: number of items; None if unknown.
        """
        kept: list[Kept] = []
        rows: list[Tensor] = []
        views = self.encode_images(
            items, lambda item: [view_of(content(item), self.clip.transform)], title=title, total=total
        )
        for item, found in views:
            if isinstance(found, BadSampleError):
                report.num_read -= 1
                report.add(found.skip(key=item.key, shard=title))
            else:
                kept.append(keep(item))
                rows += [row for row in found if row is not None]
        return kept, torch.stack(rows) if rows else torch.empty(0)

    def encode_images(
        self,
        items: Iterable[Item],
        views: Callable[[Item], Views],
        *,
        title: str,
        total: int | None = None,
        weigh: Callable[[Item], int] = lambda _: 1,
    ) -> Iterator[tuple[Item, list[Tensor | None] | BadSampleError]]:
        """Yield the items in order, each with the embeddings of its views; see `ImageTextModel.encode_views`."""
        return self.clip.encode_views(
            items,
            views,
            title=title,
            total=total,
            weigh=weigh,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            progress=self.show_progress,
        )

    def encode_texts(self, texts: Sequence[str], *, show_progress: bool | None = None) -> Tensor:
        """Return the embeddings of texts; each distinct text is encoded once.

        Shape:
            result: `(texts, dim)`, float32 on the CPU.

        Args:
            texts: texts to encode, at least one.
            show_progress: whether to show a progress bar for more than 256 texts; None for the setting of the session.

        Raises:
            ValueError: if `texts` is empty.
        """
        if not texts:
            raise ValueError("there are no texts to embed")
        shown = self.show_progress if show_progress is None else show_progress
        return self.clip.encode_text(
            texts,
            normalize=False,
            keep=True,
            batch_size=self.batch_size,
            progress=shown and len(texts) > _FEW_TEXTS,
        )

    def embed_classes(self, class_names: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Return one unit-length embedding per class name, averaged over the prompts from `templates`.

        Shape:
            result: `(classes, dim)`.

        Args:
            class_names: class names in the order of the labels.
            templates: prompts with one `{}` for the class name, see `fill_templates`.

        Raises:
            ValueError: if there is no class name or no template, or a template has no `{}`.
        """
        text = self.encode_texts(fill_templates(class_names, templates))
        return ensemble_prompts(text.reshape(len(class_names), len(templates), -1))


def origin(clip: ImageTextModel) -> dict[str, str]:
    """Return the time, library version and device of features computed now."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"when": when, "version": VERSION, "device": machine_name(clip)}
