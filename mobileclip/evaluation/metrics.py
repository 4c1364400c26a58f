"""Metrics of embeddings and labels: accuracy, macro F1 and recall, with expected values for ties."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.hardware import in_float64


def require_embeddings(name: str, embeddings: Tensor, *, dim: int | None = None) -> None:
    """Raise an error if a matrix of embeddings cannot be ranked.

    Args:
        name: kind of embeddings, such as `image`, for the message.
        embeddings: floating point matrix `(count, dim)`.
        dim: expected embedding dim; None to accept any dim.

    Raises:
        ValueError: if `embeddings` is not a floating point matrix, has no rows, or has a dim other than `dim`, or if a
            value is NaN or infinite; the message gives the row.
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"{name} embeddings must be a floating point (count, dim) matrix, got {embeddings.dtype} of shape "
            f"{tuple(embeddings.shape)}"
        )
    if embeddings.shape[0] == 0:
        raise ValueError(f"there are no {name} embeddings; an evaluation needs at least one")
    if dim is not None and embeddings.shape[1] != dim:
        raise ValueError(
            f"{name} embeddings have {embeddings.shape[1]} dimensions, expected {dim}; "
            f"image and text embeddings must come from the same model"
        )
    finite = embeddings.isfinite().all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name} embedding {row} contains NaN or infinity; check the weights of the model")


def hit_probability(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Return, for each row, the probability that at least one relevant column is among the `k` best.

    Without ties, the probability is 0 or 1. Columns with equal scores are in random order: if `m` of the `k` places are
    left for a tie of `wrong` irrelevant and `right` relevant columns, the probability is `1 - C(wrong, m) / C(wrong +
    right, m)`. A model that gives every pair the same score therefore gets exactly the result of random guessing.

    Shape:
        scores, relevant: `(rows, columns)`; result: `(rows,)`, float64.

    Args:
        scores: finite score of each column; higher is better.
        relevant: boolean mask with at least one true column per row.
        k: number of best columns that count, at least 1.
    """
    scores = in_float64(scores)
    relevant = relevant.to(scores.device)
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    better = (scores > best).sum(dim=1).double()
    tied = scores == best
    right = (tied & relevant).sum(dim=1).double()
    wrong = (tied & ~relevant).sum(dim=1).double()
    places = (k - better).clamp(min=0)
    certain = places > wrong
    places = torch.where(certain, torch.zeros_like(places), places)
    return torch.where(
        certain,
        torch.ones_like(places),
        1 - torch.exp(_log_orders(wrong, places) - _log_orders(wrong + right, places)),
    )


def _log_orders(total: Tensor, places: Tensor) -> Tensor:
    """Return the logarithm of the number of ways to fill `places` from `total` items: `total! / (total - places)!`."""
    return torch.lgamma(total + 1) - torch.lgamma(total - places + 1)


@attrs.frozen(kw_only=True)
class ClassificationResult:
    """Classification accuracies, as fractions from 0 to 1.

    Args:
        top1: fraction of images whose class has the best score.
        top5: fraction of images whose class is among the five best.
        mean_per_class: mean of the top-1 accuracies of the classes, so that frequent and rare classes count equally.
        num_images: number of classified images.
        num_classes: number of classes, with or without images.
    """

    top1: float
    top5: float
    mean_per_class: float
    num_images: int
    num_classes: int


@attrs.frozen(kw_only=True, eq=False)
class Hits:
    """Per image: the predicted class, and whether the true class is in the top 1 and the top 5.

    Shape:
        predicted, top1, top5, margin: `(images,)`.

    Args:
        predicted: index of the class with the best score; in a tie, the first such class.
        top1: probability that the image's class has the best score: 0 or 1 without ties, see `hit_probability`.
        top5: probability that the image's class is among the five best.
        margin: score of the predicted class minus score of the image's true class.
    """

    predicted: Tensor
    top1: Tensor
    top5: Tensor
    margin: Tensor

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor) -> Hits:
        """Compute the hits from class scores, and return the hits on the CPU.

        Shape:
            scores: `(images, classes)`; labels: `(images,)`.
        """
        relevant = F.one_hot(labels, scores.shape[1]).bool()
        return cls(
            predicted=scores.argmax(dim=1).cpu(),
            top1=hit_probability(scores, relevant, 1).cpu(),
            top5=hit_probability(scores, relevant, 5).cpu(),
            margin=(scores.amax(dim=1) - scores.gather(1, labels[:, None])[:, 0]).float().cpu(),
        )

    @classmethod
    def joined(cls, parts: Sequence[Hits]) -> Hits:
        """Concatenate the hits of several batches."""
        return cls(**{name: torch.cat([getattr(one, name) for one in parts]) for name in attrs.fields_dict(cls)})


def classification_hits(image: Tensor, classes: Tensor, labels: Tensor, *, chunk_size: int = 4096) -> Hits:
    """Compare images with classes by cosine similarity, and return the result of each image.

    Shape:
        image: `(images, dim)`; classes: `(classes, dim)`; labels: `(images,)`.

    Args:
        image: image embeddings, normalised or not.
        classes: one embedding per class, see `ensemble_prompts`, normalised or not.
        labels: class index of each image.
        chunk_size: number of images per batch.

    Raises:
        ValueError: if the shapes are inconsistent or a label is not a valid class index.
    """
    require_embeddings("image", image)
    require_embeddings("class", classes, dim=image.shape[1])
    _require_labels(labels, image.shape[0], classes.shape[0])
    image, classes = F.normalize(image.float(), dim=-1), F.normalize(classes.float(), dim=-1)
    labels = labels.to(image.device)
    chunks = zip(torch.split(image, chunk_size), torch.split(labels, chunk_size), strict=True)
    return Hits.joined([Hits.of(rows @ classes.T, own) for rows, own in chunks])


def mean_hits(hits: Hits, labels: Tensor, *, num_classes: int) -> ClassificationResult:
    """Return the accuracies over the images, and the mean accuracy over the classes that have images.

    Args:
        hits: hits of at least one image.
        labels: class index of each image.
        num_classes: number of classes.
    """
    labels = labels.cpu()
    counts = torch.bincount(labels, minlength=num_classes)
    per_class = torch.bincount(labels, weights=hits.top1, minlength=num_classes)
    present = counts > 0
    return ClassificationResult(
        top1=float(hits.top1.mean()),
        top5=float(hits.top5.mean()),
        mean_per_class=float((per_class[present] / counts[present]).mean()),
        num_images=len(labels),
        num_classes=num_classes,
    )


def classification_accuracy(
    image: Tensor,
    classes: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str] | None = None,
    allow_absent: bool = False,
    chunk_size: int = 4096,
) -> ClassificationResult:
    """Classify images by cosine similarity, and return the accuracies.

    Shape:
        image: `(images, dim)`; classes: `(classes, dim)`; labels: `(images,)`.

    Args:
        image: image embeddings, normalised or not.
        classes: one embedding per class, see `ensemble_prompts`, normalised or not.
        labels: class index of each image.
        class_names: names of the classes, for error messages.
        allow_absent: whether to allow classes without images, which then serve only as wrong answers; `mean_per_class`
            ignores these classes.
        chunk_size: number of images per batch.

    Raises:
        ValueError: if the shapes are inconsistent, a label is not a valid class index, or a class has no image and
            `allow_absent` is false.
    """
    hits = classification_hits(image, classes, labels, chunk_size=chunk_size)
    if not allow_absent:
        _require_images(torch.bincount(labels.cpu(), minlength=classes.shape[0]), class_names)
    return mean_hits(hits, labels, num_classes=classes.shape[0])


def _require_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    if labels.shape != (num_images,) or labels.is_floating_point():
        raise ValueError(
            f"expected {num_images} integer labels, one per image, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels go from {low} to {high}, expected at least 0 and less than {num_classes}")


def _require_images(counts: Tensor, class_names: Sequence[str] | None) -> None:
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        shown = ", ".join(repr(class_names[index]) if class_names else str(index) for index in absent[:5])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise ValueError(
            f"there is no image of class {shown}{more}; leave the class out, or pass allow_absent=True to keep the "
            f"class as a wrong answer"
        )


@attrs.frozen(kw_only=True)
class GroupAccuracy:
    """Accuracies by group, as fractions from 0 to 1.

    Args:
        average: accuracy over all images.
        groups: accuracy by group index, for groups with images.
        counts: number of images by group index.
    """

    average: float
    groups: dict[int, float]
    counts: dict[int, int]

    @property
    def worst(self) -> float:
        """The lowest group accuracy, the main metric of FMoW, GeoDE and Dollar Street."""
        return min(self.groups.values())


def group_accuracy(hits: Tensor, groups: Tensor, *, ignore: Sequence[int] = ()) -> GroupAccuracy:
    """Return the accuracy of each group of images.

    Shape:
        hits, groups: `(images,)`.

    Args:
        hits: for each image, whether the classification is correct, or the probability of a correct classification;
            see `hit_probability`.
        groups: group index of each image, from 0.
        ignore: groups to leave out of `groups` and `counts`, such as FMoW's region "Other" in the metrics of WILDS; the
            average still includes the images of these groups.

    Raises:
        ValueError: if the shapes are inconsistent, a group index is negative, or every image is in an ignored group.
    """
    if hits.shape != groups.shape or hits.ndim != 1 or groups.is_floating_point():
        raise ValueError(
            f"expected one hit and one integer group index per image, got {tuple(hits.shape)} and "
            f"{groups.dtype} of shape {tuple(groups.shape)}"
        )
    if hits.numel() and int(groups.min()) < 0:
        raise ValueError(f"group indices start at 0, but the minimum is {int(groups.min())}")
    counts = torch.bincount(groups)
    sums = torch.bincount(groups, weights=hits.double())
    kept = [group for group in counts.nonzero().flatten().tolist() if group not in ignore]
    if not kept:
        raise ValueError(f"every image is in an ignored group; ignored groups: {list(ignore)}")
    return GroupAccuracy(
        average=float(hits.double().mean()),
        groups={group: float(sums[group] / counts[group]) for group in kept},
        counts={group: int(counts[group]) for group in kept},
    )


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Return macro F1, the mean over the classes of the harmonic mean of precision and recall, as for iWildCam.

    The mean excludes classes without images. However, predicting a class without images lowers the recall of the true
    class.

    Shape:
        predicted, labels: `(images,)`, integers.

    Raises:
        ValueError: if the shapes are inconsistent or there are no images.

    Source: Koh et al. 2021 (WILDS), section 4.1.1.
    """
    f1, _, there = _f1_by_class(predicted, labels)
    return float(f1[there > 0].mean())


def macro_f1_values(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return one value per image; the mean of the values is macro F1 and, to first order, has the variance of macro F1.

    `F1 + mean over classes c of ([c right] - F1_c ([c there] + [c said]) / 2) 2 n / (there_c + said_c)`. For an image,
    `[c there]` is 1 if `c` is the label, `[c said]` is 1 if `c` is the prediction, and `[c right]` is the product of
    `[c there]` and `[c said]`. Over all `n` images, `there_c` is the number of labels `c`, and `said_c` is the number
    of predictions `c`. The second term is the infinitesimal jackknife: the derivative of macro F1 with respect to the
    weight of the image.

    Shape:
        predicted, labels: `(images,)`, integers; result: `(images,)`.

    Raises:
        ValueError: if the shapes are inconsistent or there are no images.

    Source: Efron, "The jackknife, the bootstrap and other resampling plans", 1982, section 6.1.
    """
    f1, seen, there = _f1_by_class(predicted, labels)
    counted = there > 0
    num_classes = int(counted.sum())
    # Classes without an image have no influence.
    weight = torch.where(counted, len(labels) / (num_classes * seen.clamp(min=1)), 0)
    change = 2 * (predicted == labels) * weight[labels] - (f1 * weight)[labels] - (f1 * weight)[predicted]
    return f1[counted].mean() + change


def _f1_by_class(predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return three values per class: F1, the number of labels and predictions together, and the number of labels."""
    if predicted.shape != labels.shape or labels.ndim != 1 or labels.numel() == 0:
        raise ValueError(
            f"expected one prediction and one label per image, and at least one image; got shapes "
            f"{tuple(predicted.shape)} and {tuple(labels.shape)}"
        )
    classes = int(torch.maximum(predicted.max(), labels.max())) + 1
    right = torch.bincount(labels[predicted == labels], minlength=classes).double()
    there = torch.bincount(labels, minlength=classes)
    seen = there + torch.bincount(predicted, minlength=classes)
    return 2 * right / seen.clamp(min=1), seen.double(), there


def association_score(similarity: Tensor, associated: Tensor) -> float:
    """Return the WinoGAViL score of a cue: the agreement of a model with people about the associated images.

    The score is the Jaccard index of the `n` candidates that people associated with the cue and the `n` candidates that
    are most similar to the cue.

    Shape:
        similarity, associated: `(candidates,)`.

    Args:
        similarity: similarity of each candidate to the cue; finite.
        associated: mask of the candidates that people associated with the cue; at least one is true.

    Raises:
        ValueError: if the shapes are inconsistent or no candidate is associated.

    Source: Bitton et al. 2022 (WinoGAViL), section 3.
    """
    count = int(associated.sum())
    if similarity.shape != associated.shape or similarity.ndim != 1 or count == 0:
        raise ValueError(
            f"expected one similarity per candidate and at least one associated candidate, got "
            f"{tuple(similarity.shape)} and {count} of {tuple(associated.shape)}"
        )
    found = int(associated[similarity.topk(count).indices].sum())
    return found / (2 * count - found)


@attrs.frozen(kw_only=True)
class Recall:
    """Fractions of queries with a correct answer among the 1, 5 and 10 best answers."""

    at1: float
    at5: float
    at10: float


@attrs.frozen(kw_only=True)
class RetrievalResult:
    """Recall of image-to-text and text-to-image retrieval.

    Args:
        image_to_text: recall with the images as queries.
        text_to_image: recall with the texts as queries.
        num_images: number of ranked images.
        num_texts: number of ranked texts.
    """

    image_to_text: Recall
    text_to_image: Recall
    num_images: int
    num_texts: int


@attrs.frozen(kw_only=True, eq=False)
class Ranking:
    """Retrieval results per query in both directions: recall at 1, 5 and 10.

    Shape:
        by_image: `(images, 3)`; by_text: `(texts, 3)`; text_ids: `(texts,)`.

    Args:
        by_image: for each image, the probability that one of its texts is among the 1, 5 and 10 best; see
            `hit_probability`.
        by_text: for each text, the probability that one of its images is among the 1, 5 and 10 best.
        text_ids: ids of the texts; if each text is a caption of one image, the index of that image.
    """

    by_image: Tensor
    by_text: Tensor
    text_ids: Tensor

    @property
    def recall(self) -> RetrievalResult:
        """Mean recall over the queries of each direction."""
        return RetrievalResult(
            image_to_text=_recall(self.by_image),
            text_to_image=_recall(self.by_text),
            num_images=len(self.by_image),
            num_texts=len(self.by_text),
        )

    @property
    def caption_hits(self) -> Tensor:
        """Score of each image; the mean score is the mean of the recalls at 1 of both directions.

        Each text must be a caption of one image. The score of an image is the mean of two numbers: the image's recall
        at 1, and the recalls at 1 of its captions, summed and divided by the mean number of captions per image.
        Captions of one image are not independent; a paired test of two models therefore needs one score per image.

        Shape:
            `(images,)`.
        """
        found = torch.zeros(len(self.by_image), dtype=self.by_text.dtype)
        found.index_add_(0, self.text_ids, self.by_text[:, 0])
        return (self.by_image[:, 0] + found * len(self.by_image) / len(self.by_text)) / 2


def rank(image: Tensor, text: Tensor, *, image_ids: Tensor, text_ids: Tensor, chunk_size: int = 2048) -> Ranking:
    """Rank all texts for every image and all images for every text by cosine similarity.

    A pair is correct if its ids are equal: five captions of one image share an id, and two images of one object may
    share an id too. A query succeeds at k if any correct answer is among the k best; for ties, see `hit_probability`.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`; image_ids: `(images,)`; text_ids: `(texts,)`.

    Args:
        image: image embeddings, normalised or not.
        text: text embeddings, normalised or not.
        image_ids: integer id of each image.
        text_ids: integer id of each text.
        chunk_size: number of queries per batch; memory use grows with `chunk_size` times the number of answers.

    Raises:
        ValueError: if the shapes are inconsistent or a query has no correct answer; the message names the query.
    """
    require_embeddings("image", image)
    require_embeddings("text", text, dim=image.shape[1])
    image_ids, text_ids = image_ids.to(image.device), text_ids.to(image.device)
    _require_answers("image", image, image_ids, "text", text_ids)
    _require_answers("text", text, text_ids, "image", image_ids)
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    by_image = _ranked(image, image_ids, text, text_ids, chunk_size)
    by_text = _ranked(text, text_ids, image, image_ids, chunk_size)
    return Ranking(by_image=by_image, by_text=by_text, text_ids=text_ids.cpu())


def rank_captions(image: Tensor, text: Tensor, counts: Sequence[int] | Tensor) -> Ranking:
    """Rank images and texts with `rank`, where each text is a caption of one image.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`, with the captions in the order of the images.

    Args:
        image: image embeddings, normalised or not.
        text: text embeddings, normalised or not.
        counts: number of captions of each image.

    Raises:
        ValueError: if the shapes are inconsistent or an image has no caption; see `rank`.
    """
    image_ids = torch.arange(len(counts))
    return rank(image, text, image_ids=image_ids, text_ids=image_ids.repeat_interleave(torch.as_tensor(counts)))


def _recall(hits: Tensor) -> Recall:
    at1, at5, at10 = hits.mean(dim=0).tolist()
    return Recall(at1=at1, at5=at5, at10=at10)


def _ranked(query: Tensor, query_ids: Tensor, answer: Tensor, answer_ids: Tensor, chunk_size: int) -> Tensor:
    """Return, for each query, the probability that a correct answer is among the 1, 5 and 10 best."""
    hits = []
    for start in range(0, len(query), chunk_size):
        scores = query[start : start + chunk_size] @ answer.T
        relevant = query_ids[start : start + chunk_size, None] == answer_ids
        hits.append(torch.stack([hit_probability(scores, relevant, k) for k in (1, 5, 10)], dim=1).cpu())
    return torch.cat(hits)


def _require_answers(query: str, embeddings: Tensor, query_ids: Tensor, answer: str, answer_ids: Tensor) -> None:
    if query_ids.shape != (len(embeddings),) or query_ids.is_floating_point():
        raise ValueError(
            f"expected {len(embeddings)} integer {query} ids, got {query_ids.dtype} of shape {tuple(query_ids.shape)}"
        )
    lonely = (~torch.isin(query_ids, answer_ids)).nonzero().flatten().tolist()
    if lonely:
        raise ValueError(
            f"{query} {lonely[0]} (id {int(query_ids[lonely[0]])}) and {len(lonely) - 1} others have no {answer} with "
            f"the same id; remove every query without an answer"
        )
