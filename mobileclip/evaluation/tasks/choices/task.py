"""Tasks that ask which of several texts, or of several pictures, is the right one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs
import torch
from torch import Tensor

from mobileclip.data.skips import BadSampleError, SkipReport
from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.datasets.content import fingerprint, folder_content, hash_of
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.metrics.outcomes import Outcomes
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.choices.case import Box, Case, Picture, View
from mobileclip.evaluation.tasks.task import Evaluation, Task
from mobileclip.inference.batching import encode_each
from mobileclip.inference.image_text_model import Views
from mobileclip.inference.reading import views_of

Question = Case | Picture
Scored = tuple[dict[str, float], Outcomes]


@attrs.frozen(kw_only=True)
class ChoiceTask(Task):
    """Cases, their pictures, and what is counted.

    Args:
        key: what results call it.
        name: what tables call it.
        path: folder or URL of its data.
        ask: yields the cases and the pictures, each picture once and behind the cases about it; tells a report what it
            leaves out.
        count: from features to metrics, the main one among them, and the outcomes of that.
        num_pictures: about how many there are; zero where that is not known.
        benchmark: the data set whose pictures are asked about; None where they are files in `path`.
        orders: a hash of the orders that cases are made of; empty where there are none.
    """

    key: str
    name: str
    path: str
    ask: Callable[[SkipReport], Iterable[Question]] = attrs.field(repr=False)
    count: Callable[[Features], Scored] = attrs.field(repr=False)
    num_pictures: int = 0
    benchmark: Benchmark | None = attrs.field(default=None, repr=False)
    orders: str = ""

    def content(self) -> str | None:
        """Return a hash of the files."""
        files = folder_content(self.path) if self.benchmark is None else fingerprint(self.benchmark)
        return None if files is None else hash_of([self.key, self.path, files, self.orders])

    def features(self, session: Session) -> Features:
        """Return the embeddings of all parts of pictures, and of all texts that differ for the model, each once.

        The header has, by case, `keys`, `pictures`, the first one's name, `views` and `texts`, rows of the embeddings,
        `right` and `groups`.

        Returns:
            The report counts cases. What lacks a picture is left out with its reason: image_missing, image_unreadable,
            box_outside, and those of pictures that cannot be decoded, which start with `image_`.

        Raises:
            ValueError: if no case is left; the message says why.
            OSError: if the pictures cannot be read.
        """
        return session.kept(self.key, self.content, self._encoded)

    def score(self, features: Features) -> Evaluation:
        """Return the metrics over the cases that are left."""
        metrics, outcomes = self.count(features)
        report = features.report
        result = DatasetResult(
            key=self.key,
            dataset=self.name,
            metrics=metrics,
            num_images=report.num_read,
            num_skipped=report.num_skipped,
        )
        return Evaluation(result=result, report=report, outcomes=outcomes)

    def _encoded(self, session: Session) -> Features:
        report, cases = SkipReport(), []
        found: dict[View, Tensor | BadSampleError] = {}
        boxes: dict[str, dict[Box | None, None]] = {}

        def asked() -> Iterator[tuple[Picture, tuple[Box | None, ...]]]:
            for one in self.ask(report):
                if isinstance(one, Case):
                    cases.append(one)
                    for view in one.views:
                        boxes.setdefault(view.picture, {})[view.box] = None
                elif one.name in boxes:
                    yield one, tuple(boxes[one.name])

        def parts(item: tuple[Picture, tuple[Box | None, ...]]) -> Views:
            return views_of(item[0].read(), session.clip.transform, item[1])

        encoded = session.encode_pictures(
            asked(), parts, title=self.name, total=self.num_pictures or None, weigh=lambda item: len(item[1])
        )
        for (picture, looked_at), views in encoded:
            for number, box in enumerate(looked_at):
                embedding = views if isinstance(views, BadSampleError) else views[number]
                outside = BadSampleError("box_outside", f"{box} lies outside of {picture.name}")
                found[View(picture.name, box)] = outside if embedding is None else embedding
        kept = [case for case in cases if self._is_whole(case, found, report)]
        report.num_read = len(kept)
        if not kept:
            raise ValueError(f"no image of {self.name} can be evaluated: {report}")
        rows = {view: row for row, view in enumerate(dict.fromkeys(view for case in kept for view in case.views))}
        text, row_of = _encode_distinct(session, [text for case in kept for text in case.texts])
        return Features(
            tensors={"image": torch.stack([found[view] for view in rows]), "text": text},  # type: ignore[misc]
            header={
                "keys": [case.key for case in kept],
                "pictures": [case.views[0].picture for case in kept],
                "views": [[rows[view] for view in case.views] for case in kept],
                "texts": [[row_of[text] for text in case.texts] for case in kept],
                "right": [list(case.right) for case in kept],
                "groups": [case.group for case in kept],
            },
            report=report,
        )

    def _is_whole(self, case: Case, found: dict[View, Tensor | BadSampleError], report: SkipReport) -> bool:
        """Return whether all pictures of a case were encoded; a report is told what is wrong with the first other."""
        for view in case.views:
            error = found[view]
            if isinstance(error, BadSampleError):
                report.add(error.skip(key=case.key, shard=self.path))
                return False
        return True


def _encode_distinct(session: Session, texts: Sequence[str]) -> tuple[Tensor, dict[str, int]]:
    """Return the embeddings of the texts that differ for the model, and every text's row.

    Texts that become the same ids have one row, such as `a cat, a dog` and `a cat , a dog`: encoded in two batches,
    their embeddings would differ in the last bit, and one of them would be said to be better.
    """
    distinct = list(dict.fromkeys(texts))
    first: dict[bytes, str] = {}
    ids = encode_each(distinct, lambda part: session.clip.tokenizer(part).numpy(), batch_size=session.batch_size)
    same_as = {text: first.setdefault(row.tobytes(), text) for text, row in zip(distinct, ids, strict=True)}
    rows = {text: row for row, text in enumerate(first.values())}
    return session.encode_texts(list(rows)), {text: rows[same] for text, same in same_as.items()}
