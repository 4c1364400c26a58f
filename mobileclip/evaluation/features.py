"""What a model computes for a task: features, encoded once and kept in files."""

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
from mobileclip.inference.image_text_model import ImageTextModel, Views
from mobileclip.inference.pictures import view_of
from mobileclip.inference.texts import ensemble_prompts, fill_templates
from mobileclip.machine import raise_machine_fault
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

_SUFFIX, _CHECKSUM, _HEADER = ".safetensors", "sha256", "header"


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


_WARM_UP, _FEWEST, _MOST = 3, 5, 50
_SECONDS = 2.0
_TEXT = "a photo of two people who walk along an old harbour"


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


_NOT_A_NAME = re.compile(r"[^\w.+-]+")


@attrs.frozen(kw_only=True)
class FeatureCache:
    """Features by what they depend on: the weights, how pictures are read, the contract of the inputs, and the data.

    A data set takes four bytes for each of its images, and of its captions or prompts, times the dim of the embedding:
    the 38 together about 1.4 GB a model of 512 dims.

    Args:
        folder: made where it is missing. A file that is not to the bit what was written is made again, and one that
            cannot be written is left out with a warning.
        weights_sha256: hash of the model's weights.
        model: the candidate's fingerprint.
    """

    folder: Path = attrs.field(converter=Path)
    weights_sha256: str
    model: str

    @classmethod
    def of(cls, candidate: Candidate, folder: Path | str) -> FeatureCache:
        """Return the cache of a model."""
        return cls(folder=Path(folder), weights_sha256=candidate.weights_sha256, model=candidate.fingerprint)

    def read(self, name: str, content: str) -> Features | None:
        """Return what was kept, to the bit, or None where it must be made.

        Args:
            name: name of the data, for people who look into the folder.
            content: what the features depend on beside the model.
        """
        kept = _read_kept(self._path(name, content))
        if kept is None:
            return None
        tensors, text = kept
        header = json.loads(text)
        return Features(tensors=tensors, header=header["header"], report=_report(header["report"]), is_kept=True)

    def write(self, name: str, content: str, features: Features) -> None:
        """Keep what `read` returns."""
        text = json.dumps({"header": dict(features.header), "report": _report_values(features.report)})
        _write_kept(self._path(name, content), features.tensors, text)

    def _path(self, name: str, content: str) -> Path:
        key = hash_of([self.model, content])
        return self.folder / self.weights_sha256[:16] / f"{_NOT_A_NAME.sub('-', name)[:80]}-{key[:16]}{_SUFFIX}"


def _read_kept(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Return the tensors in a file with their header, to the bit as `_write_kept` was given them; else None.

    The file is not mapped, which a bad disk would make a crash.
    """
    import safetensors.torch

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read, and is made again: %s", path, error)
        return None
    try:
        described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors, header = safetensors.torch.load(data), str(described[_HEADER])
        wrong: object = "its content is not what was written"
        if _checksum(tensors, header) == described[_CHECKSUM]:
            return tensors, header
    except Exception as error:  # noqa: BLE001 - whatever is wrong, making it anew is right
        raise_machine_fault(error)
        wrong = error
    logger.warning("%s is damaged and made again: %s", path, wrong)
    return None


def _write_kept(path: Path, tensors: Mapping[str, Tensor], header: str) -> None:
    """Keep what `_read_kept` returns; where that cannot be, a warning says so.

    Args:
        path: whose folder is made; the file appears whole or not at all.
        tensors: by name.
        header: text that goes with them.
    """
    import safetensors.torch

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(whole, {_HEADER: header, _CHECKSUM: _checksum(whole, header)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.atomic_write(path) as stream:
            stream.write(data)
    except OSError as error:
        logger.warning("embeddings are not kept: %s", error)


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


# These take seconds.
_FEW_TEXTS = 256


class Keyed(Protocol):
    """Interface of anything with a key."""

    @property
    def key(self) -> str:
        """The name in a report."""


Item = TypeVar("Item")
KeyedItem = TypeVar("KeyedItem", bound=Keyed)
Kept = TypeVar("Kept")


def _as_clip(model: DualEncoder | ImageTextModel) -> ImageTextModel:
    return ImageTextModel.of(model) if isinstance(model, DualEncoder) else model


@attrs.define(eq=False)
class Session:
    """A model which encodes for one task after another; no text is encoded twice. Embeddings are not normalised.

    Args:
        clip: the model; of a dual encoder, in any mode, a folded copy.
        batch_size: images, or texts, encoded at once, at least 1.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is, and, where the number of images is known, how long it takes.
        cache: where embeddings of data sets are kept; without, they are not.
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
            batch_size: by default as many as fit into memory; see `find_batch_size`.
            num_threads: see the class.
            show_progress: see the class.
            cache: folder in which embeddings of data sets are kept.
        """
        return cls(
            candidate.clip,
            batch_size=find_batch_size(candidate.clip) if batch_size is None else batch_size,
            num_threads=num_threads,
            show_progress=show_progress,
            cache=None if cache is None else FeatureCache.of(candidate, cache),
        )

    def kept(self, name: str, content: Callable[[], str | None], make: Callable[[Session], Features]) -> Features:
        """Return features from the cache where they are there, and made and kept otherwise.

        Args:
            name: name of the data, for people who look into the cache's folder.
            content: returns what the features depend on beside the model, such as a hash of the data, or None where
                nothing says, so that nothing is kept. Questions that only scoring needs are no part of it.
            make: returns the features, encoded by `clip`.

        Raises:
            ValueError: if the data change meanwhile, or nothing can be used.
        """
        before = content()
        stored = None if self.cache is None or before is None else self.cache.read(name, before)
        if stored is not None:
            return stored
        features = make(self)
        features = attrs.evolve(features, header={**features.header, **origin(self.clip), "data": before or ""})
        if content() != before:
            raise ValueError(f"{name} was changed while it was evaluated; evaluate it again when it is complete")
        if self.cache is not None and before is not None:
            self.cache.write(name, before, features)
        return features

    def pictures(self, benchmark: Benchmark) -> Features:
        """Return the embeddings of a data set's pictures, and of its captions where there are any; see `kept`.

        Raises:
            ValueError: if no image can be used, or the data set changes meanwhile.
        """
        return self.kept(benchmark.name, lambda: fingerprint(benchmark), lambda _: self._encoded(benchmark))

    def _encoded(self, benchmark: Benchmark) -> Features:
        report = SkipReport()
        samples, embeddings = self.embed_pictures(
            benchmark.samples(report),
            lambda sample: sample.image,
            keep=lambda sample: attrs.evolve(sample, image=b""),
            report=report,
            title=benchmark.name,
            total=num_images(benchmark) or None,
        )
        if not samples:
            raise ValueError(f"no image of {benchmark.name} can be evaluated: {report}")
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

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, in order; see `kept`.

        Shape:
            result: `(texts, dim)`.
        """

        def made(session: Session) -> Features:
            return Features(tensors={"text": session.encode_texts(texts)}, header={})

        return self.kept("texts", lambda: hash_of(list(texts)), made).text

    def features(self, benchmark: Benchmark) -> tuple[Features, SkipReport]:
        """Return the embeddings of a data set with those of its prompts or captions, and what could not be used.

        Raises:
            ValueError: if no image can be used, or the data set changes meanwhile.
        """
        features = self.pictures(benchmark)
        if benchmark.kind == "classification":
            prompts = fill_templates(benchmark.class_names, benchmark.templates)
            features = features.with_tensors(text=self.texts(prompts))
        return features, features.report

    def embed_pictures(
        self,
        items: Iterable[KeyedItem],
        content: Callable[[KeyedItem], bytes],
        *,
        keep: Callable[[KeyedItem], Kept],
        report: SkipReport,
        title: str,
        total: int | None = None,
    ) -> tuple[list[Kept], Tensor]:
        """Return what is kept of the items whose pictures can be used, in order, and the embeddings.

        Shape:
            embeddings: `(items that are kept, dim)`; `(0,)` where there is none.

        Args:
            items: drawn from in the caller's thread.
            content: the encoded picture of an item; called in several threads. A `BadSampleError` leaves the item out.
            keep: what is returned of an item, without its picture.
            report: told of every item that is left out, by its key, which was counted as one that was read.
            title: title of the bar, and what the items are of.
            total: number of items, where it is known.
        """
        kept: list[Kept] = []
        rows: list[Tensor] = []
        views = self.encode_pictures(
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

    def encode_pictures(
        self,
        items: Iterable[Item],
        views: Callable[[Item], Views],
        *,
        title: str,
        total: int | None = None,
        weigh: Callable[[Item], int] = lambda _: 1,
    ) -> Iterator[tuple[Item, list[Tensor | None] | BadSampleError]]:
        """Yield items, in order, with the embeddings of their views; see `ImageTextModel.encode_views`."""
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
        """Return the embeddings; every text is encoded once.

        Shape:
            result: `(texts, dim)`, float32 on the CPU.

        Args:
            texts: at least one.
            show_progress: whether to show how far it is, where there are many; by default as of pictures.

        Raises:
            ValueError: if there is no text.
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
        """Return one unit-length embedding per class name, the ensemble over `templates`.

        Shape:
            result: `(classes, dim)`.

        Args:
            class_names: in the order of the labels.
            templates: see `fill_templates`.

        Raises:
            ValueError: see `fill_templates`.
        """
        text = self.encode_texts(fill_templates(class_names, templates))
        return ensemble_prompts(text.reshape(len(class_names), len(templates), -1))


def origin(clip: ImageTextModel) -> dict[str, str]:
    """Return when, by which version and where the features that a model makes now are made."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"when": when, "version": VERSION, "device": machine_name(clip)}
