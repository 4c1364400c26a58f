"""The compared training variants, and the parts of the study."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from examples.quickstart.emoji.teachers import emoji_augmentation
from mobileclip.data import AugmentationSpec, crop_augmentation

# The names of `EfficiencySpec.teachers`.
FIRST, SECOND, OTHER = "first", "second", "other"
NUM_VIEWS = 10


WEAK, MEDIUM, STRONG = "weak", "medium", "strong"
VIEWS = (WEAK, MEDIUM, STRONG)


def view_augmentation(view: str, size: int) -> AugmentationSpec:
    """Return the augmentation policy for a strength of views.

    Args:
        view: `weak` for crops of 90 to 100 % of the image; `medium` for crops of 50 to 100 % and one operation of
            RandAugment; `strong` for crops of 30 to 100 % and two operations, the published policy with larger crops.
        size: side of the output, in pixels.
    """
    if view == WEAK:
        return crop_augmentation(size)
    if view == MEDIUM:
        return AugmentationSpec(
            size=size, scale=(0.5, 1.0), num_operations=1, reference_size=224, scale_translations=True
        )
    return emoji_augmentation(size)


@attrs.frozen(kw_only=True)
class Variant:
    """One way to train.

    Args:
        title: title in tables and legends.
        synthetic_captions: whether every image has a synthetic caption in addition to the real caption.
        names: whether the real caption is the image's name instead of its noisy keywords.
        view: strength of the augmentation; one of `VIEWS`.
        teachers: names of the distilled teachers; empty for the contrastive loss alone.
        distill_weight: weight of the distillation term; the contrastive term has the remaining weight.
        scale_factor: factor of the teachers' logit scales.
        num_views: number of stored augmentations to use per image.
        num_captions: number of synthetic captions to use per image; None for all.
        matched: whether the student sees the same augmentation as the teachers.
        sigmoid: whether SigLIP's loss replaces the contrastive and the reinforced loss.
    """

    title: str
    synthetic_captions: bool = True
    names: bool = False
    view: str = WEAK
    teachers: tuple[str, ...] = ()
    distill_weight: float = 1.0
    scale_factor: float = 1.0
    num_views: int = NUM_VIEWS
    num_captions: int | None = None
    matched: bool = True
    sigmoid: bool = False


# Each adds one thing to the one before, as the paper's Table 2 does.
LADDER = {
    "plain": Variant(title="plain", synthetic_captions=False),
    "captions": Variant(title="+ synthetic captions"),
    "distillation": Variant(title="+ distillation", teachers=(FIRST,)),
    "augmentation": Variant(title="+ medium augmentation", teachers=(FIRST,), view=MEDIUM),
    "ensemble": Variant(title="+ ensemble", teachers=(FIRST, SECOND), view=MEDIUM),
}
# Whether stronger views pay once the teachers read them, with one teacher, with two, and with none.
STRENGTHS = {
    "captions": attrs.evolve(LADDER["captions"], title="no teacher, weak views"),
    "captions-medium": Variant(title="no teacher, medium views", view=MEDIUM),
    "captions-strong": Variant(title="no teacher, strong views", view=STRONG),
    "distillation": attrs.evolve(LADDER["distillation"], title="one teacher, weak views"),
    "augmentation": attrs.evolve(LADDER["augmentation"], title="one teacher, medium views"),
    "distillation-strong": Variant(title="one teacher, strong views", teachers=(FIRST,), view=STRONG),
    "ensemble-weak": Variant(title="two teachers, weak views", teachers=(FIRST, SECOND)),
    "ensemble": attrs.evolve(LADDER["ensemble"], title="two teachers, medium views"),
    "ensemble-strong": Variant(title="two teachers, strong views", teachers=(FIRST, SECOND), view=STRONG),
    "other": Variant(title="the other kind of teacher, weak views", teachers=(OTHER,)),
    "kinds": Variant(title="two kinds of teachers, weak views", teachers=(FIRST, OTHER)),
}
_ONE = attrs.evolve(LADDER["distillation"], title="one teacher, 10 augmentations, 4 captions, weight 1")
# One choice at a time, away from one teacher with weak views.
ABLATIONS = {
    "captions": attrs.evolve(LADDER["captions"], title="no teacher"),
    "distillation": _ONE,
    "views-1": attrs.evolve(_ONE, title="1 stored augmentation", num_views=1),
    **{f"views-{n}": attrs.evolve(_ONE, title=f"{n} stored augmentations", num_views=n) for n in (2, 5, 30)},
    "captions-1": attrs.evolve(_ONE, title="1 synthetic caption", num_captions=1),
    **{f"captions-{n}": attrs.evolve(_ONE, title=f"{n} synthetic captions", num_captions=n) for n in (2, 3)},
    "captions-0": attrs.evolve(_ONE, title="a teacher, no synthetic captions", synthetic_captions=False),
    **{
        f"weight-{n}": attrs.evolve(_ONE, title=f"distillation weight {n}", distill_weight=n) for n in (0.25, 0.5, 0.75)
    },
    **{f"scale-{n}": attrs.evolve(_ONE, title=f"teacher's scale times {n}", scale_factor=n) for n in (0.5, 2, 4)},
    "unmatched": attrs.evolve(_ONE, title="the teacher saw another augmentation", matched=False),
    "unmatched-strong": attrs.evolve(_ONE, title="another augmentation, strong views", matched=False, view=STRONG),
    "siglip": attrs.evolve(LADDER["captions"], title="SigLIP's loss, no teacher", sigmoid=True),
    "siglip-distillation": attrs.evolve(_ONE, title="SigLIP's loss with a teacher", sigmoid=True),
}
# How much of what synthetic captions add is that they hold the name, which the noisy ones mostly lack.
CAPTIONS = {
    "plain": attrs.evolve(LADDER["plain"], title="noisy keywords"),
    "names": Variant(title="the name alone", synthetic_captions=False, names=True),
    "captions": attrs.evolve(LADDER["captions"], title="noisy keywords + synthetic captions"),
}
# Whether one rate for all favours one of them.
RATED = {**CAPTIONS, **LADDER}
VARIANTS: Mapping[str, Variant] = {**ABLATIONS, **STRENGTHS, **CAPTIONS, **LADDER}


@attrs.frozen(kw_only=True)
class Part:
    """A part of the study.

    Args:
        title: title of the part's tables.
        variants: variants by name.
        budgets: budgets of each share of the images, as indices in `EfficiencySpec.shares` and `.budgets`.
        most_seeds: maximum number of seeds; None for no maximum.
        learning_rates: learning rates for each variant; None for the study's learning rate.
        reference: baseline variant of the comparisons.
        less: name of the baseline in tables.
        has_intervals: whether tables show the intervals of differences.
    """

    title: str
    variants: Mapping[str, Variant]
    budgets: Mapping[int, tuple[int, ...]]
    most_seeds: int | None = None
    learning_rates: tuple[float | None, ...] = (None,)
    reference: str = "distillation"
    less: str = "the ladder's one teacher"
    has_intervals: bool = False


PARTS: Mapping[str, Part] = {
    # With the smallest share, the third budget would show each picture a thousand times.
    "ladder": Part(title="The ladder", variants=LADDER, budgets={0: (0, 1), 1: (0, 1, 2), 2: (0, 1, 2)}),
    "strengths": Part(title="Strength of the views", variants=STRENGTHS, budgets={1: (1, 2)}),
    "ablations": Part(title="One choice at a time", variants=ABLATIONS, budgets={1: (1,)}),
    "captions": Part(
        title="Names, noise and synthetic captions",
        variants=CAPTIONS,
        budgets={1: (0, 1, 2)},
        reference="captions",
        less="keywords + synthetic captions",
        has_intervals=True,
    ),
    "rates": Part(
        title="A learning rate for each",
        variants=RATED,
        budgets={1: (1,)},
        learning_rates=(1e-3, None, 1e-2),
    ),
    "long": Part(title="Long trainings", variants=LADDER, budgets={2: (3,)}, most_seeds=1),
}
