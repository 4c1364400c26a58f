"""A model on WinoGAViL: the images that are most like a cue, beside those that people chose."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.data.samples.sample import decode_image
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.encoding.decoding import decode_ahead
from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize
from mobileclip.evaluation.encoding.features import Transform
from mobileclip.evaluation.encoding.inference import Encoders, KnownTexts, encoding
from mobileclip.evaluation.metrics.groups import association_score
from mobileclip.evaluation.metrics.outcomes import outcomes_of
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult
from mobileclip.evaluation.tasks.winogavil.opening import WinoGavil, WinoGavilInstance
from mobileclip.evaluation.tasks.winogavil.pictures import Picture, read_pictures
from mobileclip.evaluation.tasks.zero_shot.evaluate import Evaluation
from mobileclip.progress import Progress
from mobileclip.terminal import console

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


def evaluate_winogavil(
    model: ImageTextModel,
    winogavil: WinoGavil,
    *,
    transform: Transform,
    tokenize: Tokenize,
    batch_size: int = 64,
    num_threads: int | None = None,
    show_progress: bool = True,
    known_texts: KnownTexts | None = None,
) -> Evaluation:
    """Evaluate a model on WinoGAViL; every image is encoded once, and so is every cue.

    Gives `avg_jaccard_score`, the mean of `association_score` over all instances, and by their number of candidates
    `jaccard_score_N` for N of 5, 6, 10, 12, 5-6 and 10-12, with `count_N`, the number of instances; where there are
    none, both are left out. That of 10-12, instances with ten candidates or more, is the one that counts.

    Args:
        model: evaluated in evaluation mode, and left in the mode it came in.
        winogavil: the data set.
        transform: from a picture, RGB and not turned by its EXIF orientation, to the model's input.
        tokenize: from texts to the model's ids.
        batch_size: images, or texts, encoded at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is.
        known_texts: embeddings that this model gave of texts with this `tokenize`; see `extract_features`.

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
    with encoding(model, known_texts) as encoders:
        image = _embed_images(
            encoders,
            winogavil,
            report,
            transform,
            batch_size=batch_size,
            num_threads=num_threads,
            show_progress=show_progress,
        )
        complete = [instance for instance in winogavil.instances if _is_complete(instance, image, winogavil, report)]
        report.num_read = len(complete)
        if not any(_GROUPS[_MAIN](len(instance.candidates)) for instance in complete):
            raise ValueError(f"no instance of WinoGAViL with ten candidates or more can be evaluated: {report}")
        cues = encoders.encode_texts(tokenize, [instance.prompt for instance in complete], batch_size=batch_size)
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


def _embed_images(
    encoders: Encoders,
    winogavil: WinoGavil,
    report: SkipReport,
    transform: Transform,
    *,
    batch_size: int,
    num_threads: int | None,
    show_progress: bool,
) -> dict[str, Tensor]:
    """Return the embeddings of all images that can be used, by name."""

    def decode(picture: Picture) -> Tensor:
        return transform(decode_image(picture.content))

    names = winogavil.names
    embeddings: dict[str, Tensor] = {}
    with Progress("WinoGAViL", total=len(names), unit="images", console=console(shown=show_progress)) as progress:
        pictures = read_pictures(winogavil.images, names, report)
        decoded = decode_ahead(pictures, decode, ahead=2 * batch_size, num_threads=num_threads)
        while batch := list(islice(decoded, batch_size)):
            usable: dict[str, Tensor] = {}
            for picture, pixels in batch:
                if isinstance(pixels, BadSampleError):
                    skip = Skip(reason=pixels.reason, key=picture.name, shard=winogavil.images, detail=pixels.detail)
                    report.add(skip)
                else:
                    usable[picture.name] = pixels
            if usable:
                encoded = encoders.encode_images(torch.stack(list(usable.values())))
                embeddings |= dict(zip(usable, encoded, strict=True))
            progress.advance(len(batch))
    return embeddings


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
