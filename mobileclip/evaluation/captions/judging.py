"""How good sets of captions are: by models that look at pictures and texts, and by the texts themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.captions.measures import distinct_ngrams, mean_words, names_recalled
from mobileclip.evaluation.captions.sets import Captioned
from mobileclip.evaluation.session import Session


@attrs.frozen(kw_only=True)
class Agreement:
    """How well captions match their images, by the similarities of one model.

    Args:
        cosine: mean over the captions; of one model alone these compare.
        found: share of captions whose own picture fits best of all.
    """

    cosine: float
    found: float


@attrs.frozen(kw_only=True)
class Judgement:
    """Statistics of a set of captions: size, length, variety, and match with the images.

    Args:
        name: of the set.
        num_pictures: that it describes.
        num_captions: in all.
        words: mean length.
        distinct: share of n-grams that differ, for n of 1 to 3.
        recalled: share of captions that hold the picture's name; None where pictures have none.
        agreements: by the name of the model.
    """

    name: str
    num_pictures: int
    num_captions: int
    words: float
    distinct: tuple[float, float, float]
    recalled: float | None
    agreements: Mapping[str, Agreement]


def judge_captions(captioned: Captioned, models: Sequence[Candidate] = ()) -> list[Judgement]:
    """Return the statistics of each set of captions.

    Args:
        captioned: pictures and sets.
        models: that look at both; none judges by the texts alone.
    """
    agreements: dict[str, dict[str, Agreement]] = {name: {} for name in captioned.sets}
    for model in models:
        session = Session.of(model)
        images = _images(session, captioned)
        for name, texts in captioned.sets.items():
            agreements[name][model.name] = agreement(images, texts, session.encode_texts)
    return [
        Judgement(
            name=name,
            num_pictures=len(texts),
            num_captions=sum(map(len, texts)),
            words=mean_words(texts),
            distinct=(distinct_ngrams(texts, 1), distinct_ngrams(texts, 2), distinct_ngrams(texts, 3)),
            recalled=names_recalled(texts, captioned.names) if captioned.names else None,
            agreements=agreements[name],
        )
        for name, texts in captioned.sets.items()
    ]


def _images(session: Session, captioned: Captioned) -> Tensor:
    return session.clip.encode_image(captioned.images, batch_size=session.batch_size)


def agreement(images: Tensor, texts: Sequence[Sequence[str]], embed: Callable[[list[str]], Tensor]) -> Agreement:
    """Return how well captions match their images.

    Shape:
        images `(images, dim)`; embed gives `(texts, dim)`.

    Args:
        images: embeddings of unit length.
        texts: captions of each image, at least one in all.
        embed: texts to embeddings, of any length.
    """
    rows = torch.tensor([row for row, several in enumerate(texts) for _ in several])
    embedded = F.normalize(embed([text for several in texts for text in several]), dim=-1)
    cosines, found = [], []
    for part, own in zip(torch.split(embedded, 4_096), torch.split(rows, 4_096), strict=True):
        fits = part @ images.T
        cosines.append(fits.gather(1, own[:, None])[:, 0])
        found.append(fits.argmax(dim=1) == own)
    return Agreement(cosine=torch.cat(cosines).mean().item(), found=torch.cat(found).double().mean().item())
