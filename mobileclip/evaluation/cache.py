"""Embeddings kept in files, so that what was encoded once is never encoded again by the same weights."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import safetensors.torch
import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.encoding.features import Features, extract_features
from mobileclip.evaluation.encoding.inference import KnownTexts, encoding
from mobileclip.evaluation.metrics.classification import fill_templates
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# Raised whenever equal arguments begin to give other embeddings.
_VERSION = 2
_CHECKSUM, _HEADER = "sha256", "header"


@attrs.frozen(kw_only=True)
class FeatureCache:
    """Embeddings of data sets, by what they depend on: the weights, the inputs' contract and the shards.

    A data set takes four bytes for each of its images, and of its captions or prompts, times the dim of the embedding:
    the 38 together about 1.4 GB a model of 512 dims.

    Args:
        folder: made where it is missing. A file that is not to the bit what was written is made again, and one that
            cannot be written is left out with a warning.
    """

    folder: Path = attrs.field(converter=Path)

    def features(
        self,
        candidate: Candidate,
        benchmark: Benchmark,
        *,
        batch_size: int,
        num_threads: int | None = None,
        show_progress: bool = True,
        known_texts: KnownTexts | None = None,
        content: str | None = None,
    ) -> tuple[Features, SkipReport]:
        """Return a model's embeddings of a data set, and what could not be used; see `extract_features`.

        Args:
            candidate: the model.
            benchmark: the data set.
            batch_size: images, or texts, encoded at once.
            num_threads: that decode images beside the model.
            show_progress: whether to show how far it is.
            known_texts: embeddings of texts that need not be encoded; what is encoded comes to them.
            content: the data set's `fingerprint`, where the caller watches it; see `unchanging`.

        Raises:
            ValueError: if the data set changes meanwhile, or no image can be used.
        """
        named = benchmark.kind == "classification"
        with unchanging(benchmark) if content is None else nullcontext(content) as made_of:
            path = self._path(candidate, benchmark.name, made_of)
            stored = _stored_features(path, benchmark)
            texts = self._class_texts(candidate, benchmark, batch_size, show_progress, known_texts) if named else None
            if stored is not None:
                features, report = stored
                return features if texts is None else attrs.evolve(features, text=texts), report
            report = SkipReport()
            features = extract_features(
                candidate.model,
                benchmark,
                report,
                transform=candidate.transform,
                tokenize=candidate.tokenize,
                batch_size=batch_size,
                num_threads=num_threads,
                show_progress=show_progress,
                class_texts=texts,
                known_texts=known_texts,
            )
        tensors = {name: value for name, value in _tensors(features).items() if not (named and name == "text")}
        _write(path, tensors, {"keys": features.keys, "report": _report_values(report)})
        return features, report

    def holds(self, candidate: Candidate, benchmark: Benchmark) -> bool:
        """Return whether the images of a data set were encoded before."""
        return self._path(candidate, benchmark.name, fingerprint(benchmark)).exists()

    def _class_texts(
        self,
        candidate: Candidate,
        benchmark: Benchmark,
        batch_size: int,
        show_progress: bool,  # noqa: FBT001
        known_texts: KnownTexts | None,
    ) -> Tensor:
        prompts = fill_templates(benchmark.class_names, benchmark.templates)
        path = self._path(candidate, "texts", hash_of(prompts))
        stored = _stored_texts(path, len(prompts))
        if stored is not None:
            return stored
        with encoding(candidate.model, known_texts) as encoders:
            text = encoders.encode_texts(
                candidate.tokenize, prompts, batch_size=batch_size, show_progress=show_progress
            )
        _write(path, {"text": text}, {})
        return text

    def _path(self, candidate: Candidate, name: str, what: str) -> Path:
        key = hash_of([_VERSION, candidate.fingerprint, what])
        return self.folder / candidate.weights_sha256[:16] / f"{name}-{key[:16]}.safetensors"


def fingerprint(benchmark: Benchmark) -> str:
    """Return a hash that changes when the content of a data set's shards does, or which of their samples can be used.

    Raises:
        OSError: if a shard cannot be read, or a store cannot be reached.
    """
    content = storage.content_hashes(benchmark.files)
    about = [benchmark.name, benchmark.kind, len(benchmark.class_names), benchmark.allow_missing]
    return hash_of([*about, content, benchmark.units])


@contextmanager
def unchanging(benchmark: Benchmark) -> Iterator[str]:
    """Yield a data set's fingerprint, and refuse what was made of it if that is another at the end.

    Raises:
        ValueError: if the data set was changed.
    """
    content = fingerprint(benchmark)
    yield content
    if fingerprint(benchmark) != content:
        raise ValueError(f"{benchmark.name} was changed while it was evaluated; evaluate it again when it is complete")


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _tensors(features: Features) -> dict[str, Tensor]:
    values = {field.name: getattr(features, field.name) for field in attrs.fields(Features)}
    return {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}


def _stored_features(path: Path, benchmark: Benchmark) -> tuple[Features, SkipReport] | None:
    """Return what was kept of a data set, without the texts of its classes, or None where it must be encoded."""
    stored = _read(path)
    if stored is None:
        return None
    try:
        tensors, header = stored
        if benchmark.kind == "classification":
            tensors["text"] = torch.empty(0, tensors["image"].shape[1])
        features = Features(keys=tuple(header["keys"]), **tensors)
        report = _report(header["report"])
    except Exception as error:  # noqa: BLE001 - whatever is wrong, encoding it anew is right
        _say_damaged(path, error)
        return None
    return features, report


def _stored_texts(path: Path, num_texts: int) -> Tensor | None:
    """Return what was kept of so many texts, or None where they must be encoded."""
    stored = _read(path)
    if stored is None:
        return None
    text = stored[0].get("text")
    if text is None or text.ndim != 2 or len(text) != num_texts or text.dtype != torch.float32:
        _say_damaged(path, f"expected the embeddings of {num_texts} texts in float32")
        return None
    return text


def _say_damaged(path: Path, error: object) -> None:
    logger.warning("%s is damaged and made again: %s", path, error)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return what `_write` wrote, to the bit, or None; the file is not mapped, which a bad disk would make a crash."""
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
        described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors, header = safetensors.torch.load(data), json.loads(described[_HEADER])
        checksum = _checksum(tensors, described[_HEADER])
        is_whole = checksum == described[_CHECKSUM]
    except Exception as error:  # noqa: BLE001 - whatever is wrong, encoding it anew is right
        _say_damaged(path, error)
        return None
    if not is_whole:
        _say_damaged(path, "its content is not what was written")
        return None
    return tensors, header


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    text = json.dumps(header)
    data = safetensors.torch.save(tensors, {_HEADER: text, _CHECKSUM: _checksum(tensors, text)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.atomic_write(path) as stream:
            stream.write(data)
    except OSError as error:
        logger.warning("embeddings are not kept: %s", error)


def _checksum(tensors: dict[str, Tensor], header: str) -> str:
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
