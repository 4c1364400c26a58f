"""Finds each teacher's best logit scale for held-out pairs, from stored embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt
import torch
from attrs import validators
from torch import Tensor
from torch.nn import functional as F

from mobileclip.data.randomness import random_index, seeded_rng
from mobileclip.data.samples.sample import ReinforcedSample
from mobileclip.data.shards.files import Shards, expand_shards, read_reinforced_samples
from mobileclip.data.shards.sidecars import card_of_shards
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.curation.scores import columns_of
from mobileclip.progress import track
from mobileclip.strict import strict

Table = npt.NDArray[np.float64]

# From a nearly uniform softmax to a nearly one-hot softmax, in steps of 12 %.
SCALES = tuple(float(value) for value in np.round(np.geomspace(1.0, 1000.0, 61), 4))
"""Logit scales to try; `tune_scales` computes the loss at every scale, and interpolates the best scale."""

_NUM_RESAMPLES = 1000
_INTERVAL = (2.5, 97.5)


@attrs.frozen(kw_only=True, field_transformer=strict)
class LogitScaleSpec:
    """The settings for tuning logit scales: the held-out pairs and the batch size.

    Args:
        shards: held-out reinforced shards, with or without images: paths, URLs or patterns. `tune_scales` reads the
            first `num_pairs` pairs.
        caption: `real` for the first real caption, `synthetic` for a random synthetic caption.
        num_pairs: maximum number of pairs. A pair takes about 12 kB of memory for two teachers of dim 768.
        batch_size: number of pairs per similarity matrix; a larger batch has more negatives.
        seed: random seed for choosing each sample's stored view and synthetic caption, and for resampling the 95 %
            interval.
    """

    shards: Shards
    caption: Literal["real", "synthetic"] = attrs.field(default="real", validator=validators.in_(("real", "synthetic")))
    num_pairs: int = attrs.field(default=8192, validator=validators.ge(2))
    batch_size: int = attrs.field(default=1024, validator=validators.ge(2))
    seed: int = 0


@attrs.frozen(kw_only=True, eq=False)
class TeacherScale:
    """The tuned logit scale of a teacher, with its 95 % interval and the losses at all scales.

    Shape:
        losses: (`SCALES`,).

    Args:
        name: name of the teacher.
        own: the teacher's stored logit scale; None for shards without a card.
        losses: mean cross-entropy of the pairs at every scale.
        best: scale with the minimum loss.
        low: lower end of the 95 % interval of the best scale.
        high: upper end of the 95 % interval of the best scale.
    """

    name: str
    own: float | None
    losses: Table
    best: float
    low: float
    high: float

    @property
    def is_found(self) -> bool:
        """Whether the best scale lies inside the tried range."""
        return SCALES[0] < self.best < SCALES[-1]

    def __str__(self) -> str:
        """Return a one-line summary of the tuned scale."""
        own = "" if self.own is None else f"; the stored scale {self.own:.4g} has the loss {self.loss_at(self.own):.4f}"
        text = (
            f"{self.name}: best {self.best:.4g} (95 % from {self.low:.4g} to {self.high:.4g}), loss "
            f"{self.loss_at(self.best):.4f}{own}"
        )
        return text if self.is_found else f"{text}; at the end of the tried range: these pairs determine no scale"

    def loss_at(self, scale: float) -> float:
        """Return the loss at a scale by linear interpolation."""
        return float(np.interp(np.log(scale), np.log(SCALES), self.losses))


@attrs.frozen(kw_only=True, eq=False)
class LogitScaleReport:
    """The tuned logit scales, with the losses at all tried scales.

    Args:
        teachers: tuned scales, in the order of the teachers' embeddings.
        num_pairs: number of compared pairs.
        batch_size: number of pairs per similarity matrix.
        skipped: counter of read and skipped samples.
    """

    teachers: tuple[TeacherScale, ...]
    num_pairs: int
    batch_size: int
    skipped: SkipReport


def tune_scales(spec: LogitScaleSpec) -> LogitScaleReport:
    """Find, for every teacher, the logit scale that makes the pairs most probable.

    For a batch of pairs, `L_k(s) = (CE(s I_k T_k', i) + CE(s T_k I_k', i)) / 2` is the contrastive loss of the stored
    embeddings of teacher `k` at the scale `s`, with one stored view and one caption per sample. The loss is convex in
    `s`. Duplicate captions in a batch do not count as negatives. The interval comes from a bootstrap over pairs with
    1,000 resamples.

    Args:
        spec: the options.

    Raises:
        ValueError: if fewer than two pairs have a caption of the chosen kind, or the embedding dims of the samples and
            the card differ.

    Source: MobileCLIP2, section 3: tune the temperature of each teacher instead of using its trained temperature.
        Differs: no student is trained; the scale with the highest likelihood of held-out pairs is a first guess.
    """
    shards = expand_shards(spec.shards)
    card = card_of_shards(shards)
    report = SkipReport()
    images, captions, texts = _pairs(spec, shards, report)
    teachers = [(one.name, one.dim, one.logit_scale) for one in card.teachers] if card else []
    known: list[tuple[str, int, float | None]] = [*teachers] or [("teachers", images.shape[1], None)]
    if sum(dim for _, dim, _ in known) != images.shape[1]:
        raise ValueError(
            f"the shards hold {images.shape[1]} embedding values per image, but the card has teachers with dims "
            f"{[dim for _, dim, _ in known]}; use shards of one reinforcement"
        )
    size = min(spec.batch_size, len(images))
    batches = [slice(start, start + size) for start in range(0, len(images) - size + 1, size)]
    found = []
    for (name, _, own), columns in zip(known, columns_of(dim for _, dim, _ in known), strict=True):
        parts = track(batches, total=len(batches), title=f"scales of {name}", unit="batches")
        losses = torch.cat([_losses(images[one, columns], captions[one, columns], texts[one]) for one in parts]).numpy()
        mean, (low, high) = losses.mean(0), np.percentile(_resampled(losses, spec.seed), _INTERVAL).tolist()
        best = float(_least(mean[None])[0])
        found.append(TeacherScale(name=name, own=own, losses=mean, best=best, low=low, high=high))
    return LogitScaleReport(teachers=tuple(found), num_pairs=len(batches) * size, batch_size=size, skipped=report)


def _pairs(spec: LogitScaleSpec, shards: Sequence[str], report: SkipReport) -> tuple[Tensor, Tensor, list[str]]:
    """Return the teachers' stored embeddings of images and captions, one row per pair, and the captions' texts."""
    chosen = list(islice(_chosen(spec, read_reinforced_samples(shards, report)), spec.num_pairs))
    if len(chosen) < 2:
        raise ValueError(f"there are {len(chosen)} pairs with {spec.caption} captions, expected at least two: {report}")
    if len({image.shape for image, _, _ in chosen}) > 1:
        raise ValueError("the samples have embeddings of different dims; use shards of one reinforcement")
    images, captions = (torch.from_numpy(np.stack([pair[side] for pair in chosen])) for side in (0, 1))
    return images, captions, [text for _, _, text in chosen]


def _chosen(
    spec: LogitScaleSpec, samples: Iterator[ReinforcedSample]
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], str]]:
    """Yield the view embedding, caption embedding and caption of every sample with a caption of the chosen kind."""
    for sample in samples:
        rng = seeded_rng(spec.seed, "logit scale", sample.key)
        view = sample.image_emb[random_index(rng, len(sample.image_emb))]
        if spec.caption == "real":
            yield view, sample.text_emb[0], sample.captions[0]
        elif written := [
            (text, row)
            for name, rows in sample.syn_text_emb.items()
            for text, row in zip(sample.syn_captions[name], rows, strict=True)
        ]:
            text, row = written[random_index(rng, len(written))]
            yield view, row, text


def _losses(images: Tensor, captions: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the loss of every pair at every scale.

    Shape:
        images, captions: (pairs, D); returns (pairs, scales), float64.
    """
    similarities = F.normalize(images, dim=1) @ F.normalize(captions, dim=1).mT
    number: dict[str, int] = {}
    ids = torch.tensor([number.setdefault(text, len(number)) for text in texts])
    alike = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool)
    similarities.masked_fill_(alike, -torch.inf)
    own = similarities.diagonal()
    columns = []
    for scale in SCALES:
        logits = scale * similarities
        columns.append((logits.logsumexp(0) + logits.logsumexp(1)).double() / 2 - scale * own.double())
    return torch.stack(columns, dim=1)


def _resampled(losses: Table, seed: int) -> Table:
    """Return the best scale of each bootstrap resample of the pairs."""
    rng = np.random.default_rng(seed)
    means = np.empty((_NUM_RESAMPLES, losses.shape[1]))
    for row in means:
        row[:] = np.bincount(rng.integers(len(losses), size=len(losses)), minlength=len(losses)) @ losses
    return _least(means)


def _least(curves: Table) -> Table:
    """Return the scale with the minimum loss for each curve, from a parabola through the minimum and neighbours."""
    step = np.log(SCALES[1] / SCALES[0])
    place = np.clip(curves.argmin(1), 1, len(SCALES) - 2)
    rows = np.arange(len(curves))
    below, at, above = (curves[rows, place + shift] for shift in (-1, 0, 1))
    bend = below - 2 * at + above
    shift = np.divide(below - above, 2 * bend, out=np.zeros_like(bend), where=bend > 0)
    inside = np.exp(np.log(np.asarray(SCALES))[place] + step * np.clip(shift, -1, 1))
    at_end = np.isin(curves.argmin(1), (0, len(SCALES) - 1))
    scales: Table = np.where(at_end, np.asarray(SCALES)[curves.argmin(1)], inside)
    return scales
