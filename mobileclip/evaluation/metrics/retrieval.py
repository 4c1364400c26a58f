"""Image-text retrieval: recall at k both ways, with any number of right answers per query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
import torch.nn.functional as F

from mobileclip.evaluation.metrics.ranking import hit_probability, require_embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@attrs.frozen(kw_only=True)
class Recall:
    """Fractions of queries with a right answer among the 1, 5 and 10 best."""

    at1: float
    at5: float
    at10: float


@attrs.frozen(kw_only=True)
class RetrievalResult:
    """Recall of texts for an image and of images for a text.

    Args:
        image_to_text: queries are the images.
        text_to_image: queries are the texts.
        num_images: images ranked.
        num_texts: texts ranked.
    """

    image_to_text: Recall
    text_to_image: Recall
    num_images: int
    num_texts: int


def retrieval_recall(
    image: Tensor, text: Tensor, *, image_ids: Tensor, text_ids: Tensor, chunk_size: int = 2048
) -> RetrievalResult:
    """Rank all texts for every image and all images for every text by cosine similarity.

    A pair is right where its ids are equal: five captions of one image share its id, and so may two images of one
    thing. A query counts as found at k when any right answer is among the k best; ties count as `hit_probability` says.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`; image_ids: `(images,)`; text_ids: `(texts,)`.

    Args:
        image: embeddings, normalised here.
        text: embeddings, normalised here.
        image_ids: integers.
        text_ids: integers.
        chunk_size: queries ranked at once; memory is `chunk_size` times the number of answers.

    Raises:
        ValueError: if shapes disagree or a query has no right answer; the message names it.
    """
    require_embeddings("image", image)
    require_embeddings("text", text, dim=image.shape[1])
    image_ids, text_ids = image_ids.to(image.device), text_ids.to(image.device)
    _require_answers("image", image, image_ids, "text", text_ids)
    _require_answers("text", text, text_ids, "image", image_ids)
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    return RetrievalResult(
        image_to_text=_recall(image, image_ids, text, text_ids, chunk_size),
        text_to_image=_recall(text, text_ids, image, image_ids, chunk_size),
        num_images=image.shape[0],
        num_texts=text.shape[0],
    )


def caption_recall(image: Tensor, text: Tensor, counts: Sequence[int]) -> RetrievalResult:
    """Rank as `retrieval_recall` does, where every text is a caption of one image.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`, those of the first image first.

    Args:
        image: embeddings, normalised here.
        text: embeddings, normalised here.
        counts: how many captions each image has.

    Raises:
        ValueError: see `retrieval_recall`.
    """
    image_ids = torch.arange(len(counts))
    text_ids = image_ids.repeat_interleave(torch.tensor(counts))
    return retrieval_recall(image, text, image_ids=image_ids, text_ids=text_ids)


def caption_hits(image: Tensor, text: Tensor, counts: Sequence[int], *, chunk_size: int = 2048) -> Tensor:
    """Return how well every image does, so that the mean over them is the mean of recall at 1 both ways.

    An image's own share is whether the best text is one of its captions, and how many of these find it. Captions of one
    image are no independent questions, and images are: of these values the difference of two models can be tested.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`, those of the first image first; result: `(images,)`.

    Args:
        image: embeddings, normalised here.
        text: embeddings, normalised here.
        counts: how many captions each image has.
        chunk_size: queries ranked at once.
    """
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    image_ids = torch.arange(len(counts), device=image.device)
    text_ids = image_ids.repeat_interleave(torch.tensor(counts, device=image.device))
    by_image = _hits(image, image_ids, text, text_ids, chunk_size)
    by_text = _hits(text, text_ids, image, image_ids, chunk_size)
    found = torch.zeros_like(by_image).index_add_(0, text_ids.to(by_text.device), by_text)
    return (by_image + found * len(image) / len(text)) / 2


def _hits(query: Tensor, query_ids: Tensor, answer: Tensor, answer_ids: Tensor, chunk_size: int) -> Tensor:
    starts = range(0, len(query), chunk_size)
    return torch.cat(
        [
            hit_probability(
                query[start : start + chunk_size] @ answer.T,
                query_ids[start : start + chunk_size, None] == answer_ids,
                1,
            )
            for start in starts
        ]
    )


def _recall(query: Tensor, query_ids: Tensor, answer: Tensor, answer_ids: Tensor, chunk_size: int) -> Recall:
    totals = dict.fromkeys((1, 5, 10), 0.0)
    for start in range(0, len(query), chunk_size):
        scores = query[start : start + chunk_size] @ answer.T
        relevant = query_ids[start : start + chunk_size, None] == answer_ids
        for k in totals:
            totals[k] += float(hit_probability(scores, relevant, k).sum())
    at1, at5, at10 = (total / len(query) for total in totals.values())
    return Recall(at1=at1, at5=at5, at10=at10)


def _require_answers(query: str, embeddings: Tensor, query_ids: Tensor, answer: str, answer_ids: Tensor) -> None:
    if query_ids.shape != (len(embeddings),) or query_ids.is_floating_point():
        raise ValueError(
            f"expected {len(embeddings)} integer {query} ids, got {query_ids.dtype} of shape {tuple(query_ids.shape)}"
        )
    lonely = (~torch.isin(query_ids, answer_ids)).nonzero().flatten().tolist()
    if lonely:
        raise ValueError(
            f"{query} {lonely[0]} (id {int(query_ids[lonely[0]])}) has no {answer} of the same id, and so have "
            f"{len(lonely) - 1} others; leave them out"
        )
