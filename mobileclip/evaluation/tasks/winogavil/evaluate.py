"""A model on WinoGAViL: the images that are most like a cue, beside those that people chose."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.metrics.groups import association_score
from mobileclip.evaluation.metrics.outcomes import outcomes_of
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.folder_task import FolderTask
from mobileclip.evaluation.tasks.named_pictures import embed_named
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask, TaskOptions
from mobileclip.evaluation.tasks.winogavil.opening import WinoGavil, WinoGavilInstance, open_winogavil

_MAIN = "10-12"
# By the number of candidates, as they are published.
_GROUPS: dict[str, Callable[[int], bool]] = {
    "5": lambda count: count == 5,
    "6": lambda count: count == 6,
    "10": lambda count: count == 10,
    "12": lambda count: count == 12,
    "5-6": lambda count: count <= 6,
    _MAIN: lambda count: count >= 10,
}


def evaluate_winogavil(session: Session, winogavil: WinoGavil) -> Evaluation:
    """Evaluate a model on WinoGAViL; every image is encoded once, and so is every cue.

    Gives `avg_jaccard_score`, the mean of `association_score` over all instances, and by their number of candidates
    `jaccard_score_N` for N of 5, 6, 10, 12, 5-6 and 10-12, with `count_N`, the number of instances; where there are
    none, both are left out. That of 10-12, instances with ten candidates or more, is the one that counts.

    Returns:
        The result counts instances. The report counts those that were used; it names images, image_missing and
        others that start with `image_`, and the instances that lack one, instance_incomplete.

    Raises:
        ValueError: if no instance with ten candidates or more can be used; the message says why.
        OSError: if the images cannot be read.

    Differs:
        The public evaluation encodes in half precision on a GPU, and stops at an image that is missing.

    Source: the public evaluation of DataComp (Gadre et al. 2023).
    """
    report = SkipReport()
    with session.encoding() as encoders:
        image = embed_named(encoders, winogavil.images, winogavil.names, report, title="WinoGAViL")
        complete = [instance for instance in winogavil.instances if _is_complete(instance, image, winogavil, report)]
        report.num_read = len(complete)
        if not any(_GROUPS[_MAIN](len(instance.candidates)) for instance in complete):
            raise ValueError(f"no instance of WinoGAViL with ten candidates or more can be evaluated: {report}")
        cues = encoders.encode_texts([instance.prompt for instance in complete], show_progress=False)
    scores = []
    for instance, cue in zip(complete, F.normalize(cues, dim=-1), strict=True):
        candidates = F.normalize(torch.stack([image[name] for name in instance.candidates]), dim=-1)
        scores.append(
            (len(instance.candidates), association_score(candidates @ cue, torch.tensor(instance.associated)))
        )
    return Evaluation(
        result=DatasetResult(
            key="misc/winogavil",
            dataset="WinoGAViL",
            metrics=_metrics(scores),
            num_images=len(complete),
            num_skipped=len(winogavil.instances) - len(complete),
        ),
        report=report,
        outcomes=outcomes_of(
            [instance.key for instance in complete if _GROUPS[_MAIN](len(instance.candidates))],
            [score for count, score in scores if _GROUPS[_MAIN](count)],
        ),
    )


@attrs.frozen(kw_only=True)
class WinoGavilTask(FolderTask):
    """WinoGAViL in its folder.

    Args:
        key, name, path: see `FolderTask`.
        winogavil: what is asked.
    """

    winogavil: WinoGavil

    def evaluate(self, session: Session) -> Evaluation:
        """Return what `evaluate_winogavil` returns."""
        return evaluate_winogavil(session, self.winogavil)


def open_winogavil_task(found: FoundTask, _: TaskOptions) -> WinoGavilTask:
    """Return the task of WinoGAViL; see `open_winogavil`."""
    return WinoGavilTask(key=found.key, name=found.name, path=found.path, winogavil=open_winogavil(found.path))


def _is_complete(
    instance: WinoGavilInstance, image: dict[str, Tensor], winogavil: WinoGavil, report: SkipReport
) -> bool:
    lacking = [name for name in dict.fromkeys(instance.candidates) if name not in image]
    if lacking:
        detail = f"it lacks the image of {', '.join(map(repr, lacking))}"
        report.add(Skip(reason="instance_incomplete", key=instance.key, shard=winogavil.images, detail=detail))
    return not lacking


def _metrics(scores: list[tuple[int, float]]) -> dict[str, float]:
    metrics = {"avg_jaccard_score": fmean(score for _, score in scores)}
    for name, belongs in _GROUPS.items():
        own = [score for count, score in scores if belongs(count)]
        if own:
            metrics[f"jaccard_score_{name}"] = fmean(own)
            metrics[f"count_{name}"] = len(own)
    metrics[MAIN_METRIC] = metrics[f"jaccard_score_{_MAIN}"]
    return metrics
