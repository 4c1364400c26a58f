"""A model on a data set: classes by their names, or captions."""

from __future__ import annotations

import attrs

from mobileclip.evaluation.datasets.benchmark import Benchmark, open_benchmark
from mobileclip.evaluation.datasets.content import fingerprint
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask, Task, TaskOptions
from mobileclip.evaluation.tasks.zero_shot.multilingual import open_languages
from mobileclip.evaluation.tasks.zero_shot.scoring import require_metric, score


def evaluate_benchmark(session: Session, benchmark: Benchmark) -> Evaluation:
    """Evaluate a model on a data set: its embeddings, then `score`.

    Raises:
        ValueError: if no image can be used; the message says why. If a shard is missing, see `Benchmark.samples`. If
            the data set's main metric cannot be computed.
    """
    require_metric(benchmark)
    return ZeroShotTask(benchmark=benchmark).evaluate(session)


@attrs.frozen(kw_only=True)
class ZeroShotTask(Task):
    """Zero-shot classification, or retrieval where there are captions."""

    benchmark: Benchmark

    @property
    def templates(self) -> tuple[str, ...]:
        """The data set's."""
        return self.benchmark.templates

    def content(self) -> str:
        """Return a hash of the shards."""
        return fingerprint(self.benchmark)

    def features(self, session: Session) -> Features:
        """Return the embeddings of pictures and texts, of which prompts are kept by themselves."""
        return session.features(self.benchmark)[0]

    def score(self, features: Features) -> Evaluation:
        """Return the metrics of classification, or of retrieval; see `score`."""
        return score(self.benchmark, features)


def open_zero_shot(found: FoundTask, options: TaskOptions) -> Task:
    """Return the task of a data set; see `open_benchmark`. Captions that say their languages are ranked by these.

    Raises:
        ValueError: if there is no data set, or its main metric cannot be computed.
        OSError: if a store cannot be reached.
    """
    benchmark = open_benchmark(found.path, allow_missing=options.allow_missing, rows=options.rows)
    require_metric(benchmark)
    languages = open_languages(found, benchmark) if benchmark.kind == "retrieval" else None
    return languages or ZeroShotTask(benchmark=benchmark)
