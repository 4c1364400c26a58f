"""The parts of ARO as tasks: of its own files, or of the captions of another data set."""

from __future__ import annotations

import attrs

from mobileclip.evaluation.datasets.benchmark import Benchmark, open_benchmark
from mobileclip.evaluation.datasets.content import fingerprint, hash_of
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.aro.evaluate import evaluate_aro
from mobileclip.evaluation.tasks.aro.opening import has_annotations, open_aro, order_task
from mobileclip.evaluation.tasks.aro.tagging import SpacyTagger
from mobileclip.evaluation.tasks.aro.tasks import PARTS, Aro, OrderTask
from mobileclip.evaluation.tasks.folder_task import FolderTask
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask, TaskOptions


@attrs.frozen(kw_only=True)
class AroTask(FolderTask):
    """A part of ARO.

    Args:
        key, name, path: see `FolderTask`.
        tagger: name of the model that finds nouns and adjectives.
        aro: what is asked.
    """

    tagger: str
    aro: Aro

    @property
    def choices(self) -> tuple[str, ...]:
        """The tagger's name."""
        return (self.tagger,)

    def content(self) -> str | None:
        """Return a hash of the files and the tagger's name, or of the data set whose captions are put out of order."""
        if isinstance(self.aro, OrderTask) and isinstance(self.aro.source, Benchmark):
            return hash_of([self.key, self.path, self.tagger, fingerprint(self.aro.source)])
        return super().content()

    def evaluate(self, session: Session) -> Evaluation:
        """Return what `evaluate_aro` returns."""
        return evaluate_aro(session, self.aro)


def open_aro_task(found: FoundTask, options: TaskOptions) -> AroTask:
    """Return a part of ARO, from its own files where they are there; orders from a data set of captions otherwise.

    Raises:
        ValueError: if neither is there, or malformed; see `open_aro` and `order_task`.
        OSError: if a store cannot be reached.
    """
    part = next(part for part in PARTS if found.key == f"aro/{part}")
    if not part.endswith("_order"):
        return AroTask(key=found.key, name=found.name, path=found.path, tagger="", aro=open_aro(part, found.path))
    tagger = SpacyTagger(options.tagger)
    if has_annotations(part, found.path):
        aro = open_aro(part, found.path, tagger=tagger)
    else:
        benchmark = open_benchmark(found.path, allow_missing=options.allow_missing, rows=options.rows)
        aro = order_task(benchmark, tagger=tagger)
    return AroTask(key=found.key, name=found.name, path=found.path, tagger=options.tagger, aro=aro)


def require_tagger(options: TaskOptions) -> None:
    """Refuse, before any work, a tagger that is not installed."""
    SpacyTagger(options.tagger)
