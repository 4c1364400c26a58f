"""Features kept in files, so that what was encoded once is never encoded again by the same weights."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import attrs

from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.datasets.content import hash_of
from mobileclip.evaluation.encoding.features import Features
from mobileclip.inference.kept_files import SUFFIX, read_kept, write_kept

# Raised whenever equal arguments begin to give other embeddings.
_VERSION = 3
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
            name: of the data, for people who look into the folder.
            content: what the features depend on beside the model.
        """
        kept = read_kept(self._path(name, content))
        if kept is None:
            return None
        tensors, text = kept
        header = json.loads(text)
        return Features(tensors=tensors, header=header["header"], report=_report(header["report"]), is_kept=True)

    def write(self, name: str, content: str, features: Features) -> None:
        """Keep what `read` returns."""
        text = json.dumps({"header": dict(features.header), "report": _report_values(features.report)})
        write_kept(self._path(name, content), features.tensors, text)

    def _path(self, name: str, content: str) -> Path:
        key = hash_of([_VERSION, self.model, content])
        return self.folder / self.weights_sha256[:16] / f"{_NOT_A_NAME.sub('-', name)[:80]}-{key[:16]}{SUFFIX}"


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
