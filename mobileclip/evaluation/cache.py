"""Embeddings kept in files, so that what was encoded once is never encoded again by the same weights."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
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
from mobileclip.evaluation.datasets.content import hash_of
from mobileclip.evaluation.encoding.features import Features
from mobileclip.machine import raise_machine_fault
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

    def read(self, benchmark: Benchmark, content: str) -> tuple[Features, SkipReport] | None:
        """Return what was kept of a data set, without the texts of its classes, or None where it must be encoded.

        Args:
            benchmark: the data set.
            content: its `fingerprint`.
        """
        return _stored_features(self._path(benchmark.name, content), benchmark)

    def write(self, benchmark: Benchmark, content: str, features: Features, report: SkipReport) -> None:
        """Keep what `read` returns."""
        tensors = _tensors(features)
        if benchmark.kind == "classification":
            del tensors["text"]
        header = {"keys": features.keys, "report": _report_values(report)}
        _write(self._path(benchmark.name, content), tensors, header)

    def read_texts(self, texts: Sequence[str]) -> Tensor | None:
        """Return the embeddings that were kept of texts, in order, or None where they must be encoded.

        Shape:
            result: `(texts, dim)`.
        """
        return _stored_texts(self._path("texts", hash_of(list(texts))), len(texts))

    def write_texts(self, texts: Sequence[str], embeddings: Tensor) -> None:
        """Keep what `read_texts` returns."""
        _write(self._path("texts", hash_of(list(texts))), {"text": embeddings}, {})

    def _path(self, name: str, what: str) -> Path:
        key = hash_of([_VERSION, self.model, what])
        return self.folder / self.weights_sha256[:16] / f"{name}-{key[:16]}.safetensors"


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
        raise_machine_fault(error)
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
        raise_machine_fault(error)
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
