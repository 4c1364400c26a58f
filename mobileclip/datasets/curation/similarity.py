"""Similarities of one sample's image and captions by the stored embeddings, and a vector of its image."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import attrs
import numpy as np

from mobileclip.data.samples.readers import Embeddings
from mobileclip.data.samples.sample import ReinforcedSample

_TINY = np.finfo(np.float32).tiny


@attrs.frozen(kw_only=True, eq=False)
class Similarities:
    """Cosine similarities of a sample's image and captions, as the mean over its stored augmentations.

    Shape:
        real, synthetic, best: (teachers,), float32.

    Args:
        real: of the first real caption.
        synthetic: of the synthetic captions, as their mean; NaN where there are none.
        best: of the synthetic caption that fits best, teacher by teacher; NaN where there are none.
    """

    real: Embeddings
    synthetic: Embeddings
    best: Embeddings


def columns_of(dims: Iterable[int]) -> tuple[slice, ...]:
    """Return each teacher's columns of the stored embeddings."""
    stops = np.cumsum([0, *dims])
    return tuple(slice(int(start), int(stop)) for start, stop in itertools.pairwise(stops))


def similarities(sample: ReinforcedSample, teachers: Sequence[slice]) -> Similarities:
    """Return the similarities of a sample's captions with its image.

    Args:
        sample: with all its embeddings.
        teachers: columns of each.
    """
    synthetic = [row for rows in sample.syn_text_emb.values() for row in rows]
    real = np.empty(len(teachers), np.float32)
    mean, best = np.full(len(teachers), np.nan, np.float32), np.full(len(teachers), np.nan, np.float32)
    for number, columns in enumerate(teachers):
        # The mean of cosines is the cosine's numerator with the mean of unit vectors.
        image = _unit(sample.image_emb[:, columns]).mean(0)
        real[number] = _unit(sample.text_emb[:1, columns])[0] @ image
        if synthetic:
            fits = _unit(np.stack([row[columns] for row in synthetic])) @ image
            mean[number], best[number] = fits.mean(), fits.max()
    return Similarities(real=real, synthetic=mean, best=best)


def image_vector(sample: ReinforcedSample, teachers: Sequence[slice]) -> Embeddings:
    """Return a unit vector whose dot product with another image's is the mean of the teachers' cosine similarities.

    Each teacher's part is the mean direction of the stored augmentations.

    Shape:
        (D,), float32.

    Args:
        sample: with all its embeddings.
        teachers: columns of each.
    """
    parts = [_unit(_unit(sample.image_emb[:, columns]).mean(0, keepdims=True))[0] for columns in teachers]
    vector: Embeddings = np.concatenate(parts) * np.float32(len(parts) ** -0.5)
    return vector


def _unit(rows: Embeddings) -> Embeddings:
    unit: Embeddings = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY).astype(np.float32)
    return unit
