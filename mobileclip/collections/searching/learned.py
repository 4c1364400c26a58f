"""What examples add to a text's score: a cache of them, as Tip-Adapter has it, and whether it helps.

    score(x) = cos(x, text) + alpha * (sum_yes exp(-beta (1 - cos(x, yes))) - sum_no exp(-beta (1 - cos(x, no))))

Source: Tip-Adapter (arXiv 2111.03930), section 3.2; alpha and beta are its first values. Differs: scores are cosines,
and not 100 times as large, and pictures that do not show a concept count against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.searching.neighbours import Found
from mobileclip.collections.store.concepts import Concept
from mobileclip.collections.store.words import Vectors
from mobileclip.collections.store.words import BLOCK, cosines

ALPHA, BETA = 1.0, 5.5

# Of one example, none can be held back: the text stands alone where it finds it among so many.
_FOUND = 5
# Of many, so many are held back.
_HELD_BACK = 20
_NAMED = re.compile('@["\u201c\u201d]([^"\u201c\u201d]+)["\u201c\u201d]')

Matrix = NDArray[np.float32]


@attrs.frozen(kw_only=True, eq=False)
class Cache:
    """Examples, and what each adds to the score of a picture that is the same.

    Shape:
        vectors: `(examples, dim)`; weights: `(examples,)`.

    Args:
        vectors: of unit length.
        weights: above 0 of what is wanted.
    """

    vectors: Matrix
    weights: Matrix

    @classmethod
    def of(cls, yes: Matrix, no: Matrix, *, weight: float = 1.0) -> Cache:
        """Return that of some examples.

        Args:
            yes: embeddings of those that show what is wanted.
            no: of those that do not.
            weight: of all of them beside others.
        """
        signs = np.repeat(np.array([ALPHA, -ALPHA], np.float32), (len(yes), len(no)))
        return cls(vectors=np.concatenate([yes, no]), weights=weight * signs)

    def added(self, vectors: Vectors | Matrix) -> Matrix:
        """Return what is added to the score of each picture.

        Shape:
            `(pictures, dim)` to `(pictures,)`.
        """
        added = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), BLOCK):
            similar = cosines(vectors[start : start + BLOCK], self.vectors)
            added[start : start + BLOCK] = np.exp(BETA * (similar - 1)) @ self.weights
        return added


@attrs.frozen(kw_only=True, eq=False)
class Taught:
    """The concepts of a query that examples help, each with its weight, that of its text.

    Args:
        concepts: with their weights, below 0 of what is not wanted.
    """

    concepts: tuple[tuple[Concept, float], ...]

    @classmethod
    def of(cls, wanted: Sequence[Concept], without: Sequence[Concept], *, num_wanted: int, share: float) -> Taught:
        """Return those of a query.

        Args:
            wanted: among what is wanted.
            without: among what is not.
            num_wanted: texts, pictures and concepts whose mean is asked for.
            share: of what is not wanted.
        """
        weighed = [(one, 1 / num_wanted) for one in wanted] + [(one, -share) for one in without]
        return cls(concepts=tuple((one, weight) for one, weight in weighed if one.uses_examples))

    def followed(self, follow: Callable[[Concept], Concept | None]) -> Taught | None:
        """Return them in another space; None where one cannot follow.

        Args:
            follow: takes a concept there, if it can.
        """
        there = [(one, weight) for concept, weight in self.concepts if (one := follow(concept)) is not None]
        return Taught(concepts=tuple(there)) if len(there) == len(self.concepts) else None

    def cache(self) -> Cache | None:
        """Return what their examples add; None without any."""
        caches = [Cache.of(one.of(is_yes=True), one.of(is_yes=False), weight=weight) for one, weight in self.concepts]
        if not caches:
            return None
        vectors, weighed = (
            np.concatenate(several) for several in zip(*((c.vectors, c.weights) for c in caches), strict=True)
        )
        return Cache(vectors=vectors, weights=weighed)


def nearest_with(vectors: Vectors, places: NDArray[np.int64] | None, query: Matrix, cache: Cache, k: int) -> Found:
    """Return the pictures of the highest scores, of which all are compared.

    Args:
        vectors: of unit length.
        places: of those that may be found; None for all.
        query: the direction, of shape (dim,).
        cache: of examples.
        k: how many.
    """
    places = np.arange(len(vectors)) if places is None else places
    some = vectors if len(places) == len(vectors) else vectors[places]
    scores = cosines(some, query[None])[:, 0] + cache.added(some)
    best = np.argsort(-scores, kind="stable")[:k]
    return places[best], scores[best]


def examples_help(vectors: Vectors, text: Matrix, yes: Matrix, no: Matrix, own: Sequence[int]) -> bool:
    """Return whether examples find one of them that is held back better than the text alone, one after the other.

    Better is a smaller logarithm of its rank among the pictures of the collection, on average. Of a single example,
    none can be held back: it is used where the text alone does not find it among the first five.

    Args:
        vectors: of the collection, of shape (pictures, dim).
        text: embedding of the text, of shape (dim,).
        yes: of the examples that show the concept.
        no: of those that do not.
        own: places of examples in the collection, which are not ranked.
    """
    if not len(yes):
        return False
    pictures, held = cosines(vectors, text[None])[:, 0], yes @ text
    pictures[np.asarray(own, np.int64)] = -np.inf
    alone = [_rank(pictures, one) for one in held]
    if len(yes) == 1:
        return alone[0] >= _FOUND
    # What each that is held back adds itself is taken from the sum of all.
    rest, learned = pictures + Cache.of(yes, no).added(vectors), []
    chosen = np.unique(np.linspace(0, len(yes) - 1, min(len(yes), _HELD_BACK)).astype(np.int64))
    shares = ALPHA * np.exp(BETA * (cosines(vectors, yes[chosen]) - 1))
    for share, place in zip(shares.T, chosen, strict=True):
        others = Cache.of(np.delete(yes, place, axis=0), no)
        learned.append(_rank(rest - share, held[place] + others.added(yes[[place]])[0]))
    alone = [alone[place] for place in chosen]
    return float(np.mean(np.log1p(learned))) < float(np.mean(np.log1p(alone)))


def named_concepts(text: str) -> tuple[str, list[str]]:
    """Return a query's text without the concepts that it names, and their names.

    Examples:
        >>> named_concepts('@"my bike" in snow')
        ('in snow', ['my bike'])
    """
    return " ".join(_NAMED.sub(" ", text).split()) if _NAMED.search(text) else text, _NAMED.findall(text)


def _rank(scores: Matrix, score: float) -> int:
    """Return how many pictures come before one of a score."""
    return int(np.count_nonzero(scores > score))
