"""Embeddings kept in files, so that what was encoded once is never encoded again by the same weights."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mobileclip import storage
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.benchmark import Benchmark
from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.classification import fill_templates
from mobileclip.evaluation.features import Features, extract_features
from mobileclip.evaluation.inference import KnownTexts, encoding
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# Raised whenever equal arguments begin to give other embeddings.
_VERSION = 1


@attrs.frozen(kw_only=True)
class FeatureCache:
    """Embeddings of data sets, by what they depend on: the weights, the inputs' contract and the shards.

    A data set takes four bytes for each of its images, and of its captions or prompts, times the dim of the embedding:
    the 38 together about 1.4 GB a model of 512 dims.

    Args:
        folder: made where it is missing. A file that cannot be read is made again, and one that cannot be written is
            left out with a warning.
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
    ) -> tuple[Features, SkipReport]:
        """Return a model's embeddings of a data set, and what could not be used; see `extract_features`."""
        path = self._path(candidate, benchmark.name, fingerprint(benchmark))
        stored = _read(path)
        named = benchmark.kind == "classification"
        if stored is None:
            report = SkipReport()
            texts = self._class_texts(candidate, benchmark, batch_size, show_progress, known_texts) if named else None
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
        tensors, header = stored
        if named:
            tensors["text"] = self._class_texts(candidate, benchmark, batch_size, show_progress, known_texts)
        return Features(keys=tuple(header["keys"]), **tensors), _report(header["report"])

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
        stored = _read(path)
        if stored is not None:
            return stored[0]["text"]
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
    """Return a hash that changes when the shards of a data set do, or which of their samples can be used.

    Raises:
        OSError: if a store cannot be reached.
    """
    shards = [[shard, _shard_fingerprint(shard)] for shard in benchmark.shards]
    return hash_of([benchmark.name, benchmark.kind, len(benchmark.class_names), benchmark.allow_missing, shards])


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _shard_fingerprint(shard: str) -> str:
    try:
        return storage.fingerprint(shard)
    except FileNotFoundError:
        return "missing"


def _tensors(features: Features) -> dict[str, Tensor]:
    values = {field.name: getattr(features, field.name) for field in attrs.fields(Features)}
    return {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as stored:
            header = json.loads(stored.metadata()["header"])
            return {name: stored.get_tensor(name) for name in stored.keys()}, header  # noqa: SIM118  no mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and made again: %s", path, error)
        return None


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"header": json.dumps(header)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        logger.warning("embeddings are not kept: %s cannot be written: %s", path, error)


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
