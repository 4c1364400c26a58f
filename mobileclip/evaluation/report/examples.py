"""What a model finds for some queries: images for texts, and captions for images."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.report.pictures import Found, Picture


@attrs.frozen(kw_only=True)
class FoundImage:
    """An image that was found for a text.

    Args:
        caption: its first one, to say in words what it shows.
        right: whether the text is one of its captions.
        similarity: cosine of text and image.
        picture: where it could be read again.
    """

    caption: str
    right: bool
    similarity: float
    picture: Picture | None


@attrs.frozen(kw_only=True)
class FoundText:
    """A caption that was found for an image.

    Args:
        text: the caption.
        right: whether it is one of the image's.
        similarity: cosine of text and image.
    """

    text: str
    right: bool
    similarity: float


@attrs.frozen(kw_only=True)
class TextQuery:
    """A text and the images found for it.

    Args:
        text: the query.
        answers: the best, the best first.
        rank: place of the image that it is a caption of, from 1.
        right: that image.
    """

    text: str
    answers: tuple[FoundImage, ...]
    rank: int
    right: FoundImage


@attrs.frozen(kw_only=True)
class ImageQuery:
    """An image and the captions found for it.

    Args:
        caption: its first one, to say in words what it shows.
        picture: where it could be read again.
        answers: the best, the best first.
        rank: place of the first of its own captions, from 1.
    """

    caption: str
    picture: Picture | None
    answers: tuple[FoundText, ...]
    rank: int


@attrs.frozen(kw_only=True, eq=False)
class Ranking:
    """One query with its answers, as numbers in the data set.

    Args:
        query: number of the text, or of the image.
        answers: numbers of the images, or of the texts; the best first.
        similarities: of the answers.
        rank: place of the best right answer, from 1.
        right: number of the best right answer.
        right_similarity: of the best right answer.
    """

    query: int
    answers: tuple[int, ...]
    similarities: tuple[float, ...]
    rank: int
    right: int
    right_similarity: float


@attrs.frozen(kw_only=True, eq=False)
class Rankings:
    """Some queries of a data set for retrieval, both ways.

    Args:
        texts: queries that are texts.
        images: queries that are images.
        owner: number of the image that each text is a caption of.
        first: number of each image's first text.
    """

    texts: tuple[Ranking, ...]
    images: tuple[Ranking, ...]
    owner: Tensor
    first: Tensor

    def wanted_images(self) -> set[int]:
        """Return the numbers of the images that are shown, or whose captions are."""
        shown = {image for one in self.texts for image in (*one.answers, one.right, int(self.owner[one.query]))}
        texts = {text for one in self.images for text in one.answers}
        return shown | {one.query for one in self.images} | {int(self.owner[text]) for text in texts}

    def shown_images(self) -> set[int]:
        """Return the numbers of the images that are shown."""
        return {image for one in self.texts for image in (*one.answers, one.right)} | {one.query for one in self.images}


def rank_examples(benchmark: Benchmark, features: Features, *, num_queries: int, num_answers: int) -> Rankings:
    """Return what is found for some queries, evenly spread over the data set and so not chosen by how well they go.

    Args:
        benchmark: a data set for retrieval.
        features: a model's embeddings of it.
        num_queries: at most so many of each kind.
        num_answers: at most so many for each query.

    Raises:
        ValueError: if the features are of another data set.
    """
    if features.num_captions is None or len(features.num_captions) != len(features.image):
        raise ValueError(f"{benchmark.name} is for retrieval: its features need a number of captions for each image")
    if int(features.num_captions.sum()) != len(features.text):
        raise ValueError(
            f"the images of {benchmark.name} have {int(features.num_captions.sum())} captions together, but the "
            f"features hold {len(features.text)} texts: they are of another data set"
        )
    owner = torch.arange(len(features.image)).repeat_interleave(features.num_captions)
    first = torch.cumsum(features.num_captions, 0) - features.num_captions
    image, text = F.normalize(features.image.float(), dim=-1), F.normalize(features.text.float(), dim=-1)
    return Rankings(
        texts=tuple(
            _rank(query, image @ text[query], torch.arange(len(image)) == owner[query], num_answers)
            for query in _spread(len(text), num_queries)
        ),
        images=tuple(
            _rank(query, text @ image[query], owner == query, num_answers) for query in _spread(len(image), num_queries)
        ),
        owner=owner,
        first=first,
    )


def text_queries(rankings: Rankings, found: Found) -> tuple[TextQuery, ...]:
    """Return the texts whose words could be read again, with what was found for them."""
    return tuple(
        TextQuery(
            text=_text(rankings, found, one.query),
            answers=tuple(
                _found_image(found, image, similarity, right=image == int(rankings.owner[one.query]))
                for image, similarity in zip(one.answers, one.similarities, strict=True)
            ),
            rank=one.rank,
            right=_found_image(found, one.right, one.right_similarity, right=True),
        )
        for one in rankings.texts
        if _readable(found, (*one.answers, one.right))
    )


def image_queries(rankings: Rankings, found: Found) -> tuple[ImageQuery, ...]:
    """Return the images whose answers could be read again, with what was found for them."""
    return tuple(
        ImageQuery(
            caption=found.captions[one.query][0],
            picture=found.pictures.get(one.query),
            answers=tuple(
                FoundText(
                    text=_text(rankings, found, text),
                    right=int(rankings.owner[text]) == one.query,
                    similarity=similarity,
                )
                for text, similarity in zip(one.answers, one.similarities, strict=True)
            ),
            rank=one.rank,
        )
        for one in rankings.images
        if _readable(found, (one.query, *(int(rankings.owner[text]) for text in one.answers)))
    )


def _rank(query: int, scores: Tensor, relevant: Tensor, num_answers: int) -> Ranking:
    order = scores.argsort(descending=True, stable=True)
    rank = int(relevant[order].nonzero()[0])
    best = order[:num_answers].tolist()
    right = int(order[rank])
    return Ranking(
        query=query,
        answers=tuple(best),
        similarities=tuple(scores[best].tolist()),
        rank=rank + 1,
        right=right,
        right_similarity=float(scores[right]),
    )


def _spread(count: int, num_chosen: int) -> list[int]:
    """Return numbers below `count`, evenly spread."""
    chosen = min(count, num_chosen)
    return [(2 * place + 1) * count // (2 * chosen) for place in range(chosen)]


def _readable(found: Found, images: Sequence[int]) -> bool:
    return all(image in found.captions for image in images)


def _text(rankings: Rankings, found: Found, text: int) -> str:
    image = int(rankings.owner[text])
    return found.captions[image][text - int(rankings.first[image])]


def _found_image(found: Found, image: int, similarity: float, *, right: bool) -> FoundImage:
    return FoundImage(
        caption=found.captions[image][0], right=right, similarity=similarity, picture=found.pictures.get(image)
    )
