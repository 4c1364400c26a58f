"""Measures whether teachers still recognise the stored views, on the first shard.

A student learns what the teachers say of views. Where a view shows too little for them, they say little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mobileclip.data import (
    AugmentationSpec,
    ReinforcedSample,
    ViewAgreement,
    augmentation_rng,
    decode_image,
)
from mobileclip.inference.encoding import encode_each
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import NotFiniteError, TeacherEnsemble
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# Below it, most of what is stored of the pictures is said of something else.
LOW_AGREEMENT = 0.5
CHANGED_BY = "larger crops or fewer operations of the spec's augmentation raise it; in a recipe, --augmentation crop"
_FEWEST = 2

_Matrix = npt.NDArray[np.float32]


def plain_augmentation(size: int) -> AugmentationSpec:
    """Return the policy that does nothing: the largest central square, resized.

    Args:
        size: side of the output, in pixels.
    """
    return AugmentationSpec(size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), num_operations=0)


def plain_views(images: Sequence[Image.Image], policy: AugmentationSpec) -> Tensor:
    """Return pictures as they are, as teachers take them.

    Shape:
        (pictures, 3, size, size) uint8.

    Args:
        images: at least one.
        policy: see `plain_augmentation`.
    """
    views = [np.asarray(policy.apply(one, policy.sample(augmentation_rng(0, "", 0), one.size))) for one in images]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


def encode_plain(teachers: TeacherEnsemble, images: Sequence[bytes], spec: ReinforcementSpec) -> _Matrix:
    """Return the teachers' embeddings of pictures as they are.

    Shape:
        (pictures, sum of dims).

    Args:
        teachers: the ensemble.
        images: the pictures, encoded.
        spec: its limits, batch size and resizing.
    """
    policies = [
        attrs.evolve(plain_augmentation(size), interpolation=spec.augmentation.interpolation)
        for size in teachers.image_sizes
    ]
    raw = partial(decode_image, orient=False, background=teachers.background, limits=spec.limits)

    def encode(batch: list[bytes]) -> _Matrix:
        decoded = [raw(one) for one in batch]
        return teachers.encode_images({policy.size: plain_views(decoded, policy) for policy in policies}).numpy()

    return np.stack(list(encode_each(images, encode, batch_size=spec.batch_size)))


def measure_agreement(
    samples: Sequence[ReinforcedSample], teachers: TeacherEnsemble, spec: ReinforcementSpec
) -> ViewAgreement | None:
    """Measure how often a teacher takes the stored views of samples for the same caption as the plain pictures.

    A picture is taken for the one whose caption, real or synthetic, is the nearest. Captions that several of the
    pictures have tell nothing apart and are left out, and so are pictures without one of their own.

    Args:
        samples: with their images.
        teachers: those that gave the samples' embeddings.
        spec: the choices.

    Returns:
        The measurement, or None where fewer than two samples have captions of their own, as there is nothing to choose
        from, or the teachers' embeddings of a plain picture are not finite.
    """
    count = Counter(text for sample in samples for text in dict(_captions(sample)))
    own = [{text: row for text, row in _captions(sample) if count[text] == 1} for sample in samples]
    compared = [(sample, captions) for sample, captions in zip(samples, own, strict=True) if captions]
    if len(compared) < _FEWEST:
        return None
    texts = np.stack([row for _, captions in compared for row in captions.values()])
    owner = np.repeat(np.arange(len(compared)), [len(captions) for _, captions in compared])
    try:
        encoded = encode_plain(teachers, [_image(sample) for sample, _ in compared], spec)
    except NotFiniteError as error:
        logger.warning("it was not measured how far the teachers recognise the stored views: %s", error)
        return None
    plain = owner[(encoded @ texts.T).argmax(-1)]
    views = owner[(np.stack([sample.image_emb for sample, _ in compared]) @ texts.T).argmax(-1)]
    places = np.arange(len(compared))
    return ViewAgreement(
        num_samples=len(compared),
        num_views=views.size,
        agreement=float((views == plain[:, None]).mean()),
        plain_accuracy=float((plain == places).mean()),
        view_accuracy=float((views == places[:, None]).mean()),
    )


def _captions(sample: ReinforcedSample) -> Iterator[tuple[str, _Matrix]]:
    yield from zip(sample.captions, sample.text_emb, strict=True)
    for name, texts in sample.syn_captions.items():
        yield from zip(texts, sample.syn_text_emb[name], strict=True)


def _image(sample: ReinforcedSample) -> bytes:
    assert sample.image is not None, "what has no image is not reinforced"
    return sample.image
