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


@attrs.frozen(kw_only=True, eq=False)
class Ranking:
    """Retrieval outcomes per query in both directions: recall at 1, 5 and 10.

    Shape:
        by_image: `(images, 3)`; by_text: `(texts, 3)`; text_ids: `(texts,)`.

    Args:
        by_image: how likely one of an image's texts is among the 1, 5 and 10 best; see `hit_probability`.
        by_text: the same of a text's images.
        text_ids: of the texts: where every text is a caption of one image, the number of that.
    """

    by_image: Tensor
    by_text: Tensor
    text_ids: Tensor

    @property
    def recall(self) -> RetrievalResult:
        """The means over the queries."""
        return RetrievalResult(
            image_to_text=_recall(self.by_image),
            text_to_image=_recall(self.by_text),
            num_images=len(self.by_image),
            num_texts=len(self.by_text),
        )

    @property
    def caption_hits(self) -> Tensor:
        """How well every image does, where every text is a caption of one: the mean is that of recall at 1 both ways.

        An image's own share is whether the best text is one of its captions, and how many of these find it. Captions of
        one image are no independent questions, and images are: of these values the difference of two models can be
        tested.

        Shape:
            `(images,)`.
        """
        found = torch.zeros(len(self.by_image), dtype=self.by_text.dtype)
        found.index_add_(0, self.text_ids, self.by_text[:, 0])
        return (self.by_image[:, 0] + found * len(self.by_image) / len(self.by_text)) / 2


def rank(image: Tensor, text: Tensor, *, image_ids: Tensor, text_ids: Tensor, chunk_size: int = 2048) -> Ranking:
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
    by_image = _ranked(image, image_ids, text, text_ids, chunk_size)
    by_text = _ranked(text, text_ids, image, image_ids, chunk_size)
    return Ranking(by_image=by_image, by_text=by_text, text_ids=text_ids.cpu())


def rank_captions(image: Tensor, text: Tensor, counts: Sequence[int] | Tensor) -> Ranking:
    """Rank as `rank` does, where every text is a caption of one image.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`, those of the first image first.

    Args:
        image: embeddings, normalised here.
        text: embeddings, normalised here.
        counts: how many captions each image has.

    Raises:
        ValueError: see `rank`.
    """
    image_ids = torch.arange(len(counts))
    return rank(image, text, image_ids=image_ids, text_ids=image_ids.repeat_interleave(torch.as_tensor(counts)))


def retrieval_recall(
    image: Tensor, text: Tensor, *, image_ids: Tensor, text_ids: Tensor, chunk_size: int = 2048
) -> RetrievalResult:
    """Return the recall of `rank`; arguments and errors are its own."""
    return rank(image, text, image_ids=image_ids, text_ids=text_ids, chunk_size=chunk_size).recall


def caption_recall(image: Tensor, text: Tensor, counts: Sequence[int]) -> RetrievalResult:
    """Return the recall of `rank_captions`; arguments and errors are its own."""
    return rank_captions(image, text, counts).recall


def caption_hits(image: Tensor, text: Tensor, counts: Sequence[int]) -> Tensor:
    """Return `Ranking.caption_hits` of `rank_captions`, whose arguments and errors are these."""
    return rank_captions(image, text, counts).caption_hits


def _recall(hits: Tensor) -> Recall:
    at1, at5, at10 = hits.mean(dim=0).tolist()
    return Recall(at1=at1, at5=at5, at10=at10)


def _ranked(query: Tensor, query_ids: Tensor, answer: Tensor, answer_ids: Tensor, chunk_size: int) -> Tensor:
    """Return how likely a right answer is among the 1, 5 and 10 best of every query."""
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
            f"{query} {lonely[0]} (id {int(query_ids[lonely[0]])}) has no {answer} of the same id, and so have "
            f"{len(lonely) - 1} others; leave them out"
        )
