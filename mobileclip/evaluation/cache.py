"""Features kept in files, so that what was encoded once is never encoded again by the same weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import safetensors.torch
import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.datasets.content import hash_of
from mobileclip.evaluation.encoding.features import Features
from mobileclip.machine import raise_machine_fault
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# Raised whenever equal arguments begin to give other embeddings.
_VERSION = 3
_CHECKSUM, _HEADER = "sha256", "header"
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

        The file is not mapped, which a bad disk would make a crash.

        Args:
            name: of the data, for people who look into the folder.
            content: what the features depend on beside the model.
        """
        path = self._path(name, content)
        if not path.exists():
            return None
        try:
            data = path.read_bytes()
            described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            tensors, header = safetensors.torch.load(data), json.loads(described[_HEADER])
            is_whole = _checksum(tensors, described[_HEADER]) == described[_CHECKSUM]
            report = _report(header["report"])
            features = Features(tensors=tensors, header=header["header"], report=report, is_kept=True)
            wrong: object = "its content is not what was written"
        except Exception as error:  # noqa: BLE001 - whatever is wrong, encoding it anew is right
            raise_machine_fault(error)
            is_whole, wrong = False, error
        if is_whole:
            return features
        logger.warning("%s is damaged and made again: %s", path, wrong)
        return None

    def write(self, name: str, content: str, features: Features) -> None:
        """Keep what `read` returns."""
        path = self._path(name, content)
        tensors = {key: tensor.contiguous() for key, tensor in features.tensors.items()}
        text = json.dumps({"header": dict(features.header), "report": _report_values(features.report)})
        data = safetensors.torch.save(tensors, {_HEADER: text, _CHECKSUM: _checksum(tensors, text)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with storage.atomic_write(path) as stream:
                stream.write(data)
        except OSError as error:
            logger.warning("embeddings are not kept: %s", error)

    def _path(self, name: str, content: str) -> Path:
        key = hash_of([_VERSION, self.model, content])
        return self.folder / self.weights_sha256[:16] / f"{_NOT_A_NAME.sub('-', name)[:80]}-{key[:16]}.safetensors"


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
