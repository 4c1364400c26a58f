"""Who sees which pictures: the teachers nearly all of them, the student a share, validation and test none of either's.

The pictures are the quickstart's, of all concepts. One vendor's drawing of nearly every concept is held out; settings
are chosen on a part of these, and results are reported on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
from attrs import validators

from examples.quickstart.emoji import DrawnDataset, EmojiDataSpec, build_dataset
from examples.quickstart.emoji.captions import keyword_caption
from examples.quickstart.emoji.concepts import Concept, read_concepts
from examples.quickstart.emoji.splits import TEST_RENDERINGS, TEST_STYLE, chance
from mobileclip.data import ImageTextSample


@attrs.frozen(kw_only=True)
class RolesSpec:
    """The choices of who sees what.

    Args:
        student_share: fraction of the training pictures that the student gets.
        validation_share: fraction of the families of held-out drawings that settings are chosen on.
        real_captions: the student's real captions: `keywords` for a few of them per picture, `names` for the
            quickstart's, which are clean.
        seed: of the choices.
    """

    student_share: float = attrs.field(default=0.1, validator=[validators.gt(0), validators.le(1)])
    validation_share: float = attrs.field(default=0.3, validator=[validators.gt(0), validators.lt(1)])
    real_captions: str = attrs.field(default="keywords", validator=validators.in_(("keywords", "names")))
    seed: int = 0


@attrs.frozen(kw_only=True, eq=False)
class Roles:
    """The pictures by who sees them.

    Args:
        teacher: what the teachers learn from: all vendors' drawings that are not held out, with all their captions.
        student: what the student learns from, with the captions that it gets.
        validation: held-out drawings to choose settings on.
        test: held-out drawings to report.
        class_names: the names that classification chooses from: of all concepts that the teachers saw.
    """

    teacher: tuple[ImageTextSample, ...]
    student: tuple[ImageTextSample, ...]
    validation: tuple[ImageTextSample, ...]
    test: tuple[ImageTextSample, ...]
    class_names: tuple[str, ...]

    def labels(self, samples: Sequence[ImageTextSample]) -> list[int]:
        """Return the samples' classes as indices into `class_names`."""
        index = {name: position for position, name in enumerate(self.class_names)}
        return [index[sample.metadata["label"]] for sample in samples]


def load_roles(spec: RolesSpec, data: EmojiDataSpec, output: Path) -> Roles:
    """Return who sees which pictures, with the data set built where it is not there yet.

    Args:
        spec: who sees what.
        data: the data set, with one vendor's drawings of nearly every concept held out.
        output: directory of the data set.

    Raises:
        ValueError: see `build_dataset`.
    """
    dataset = build_dataset(data, output)
    modules = output / "download" / "node_modules"
    return assign_roles(spec, dataset, read_concepts(modules))


def assign_roles(spec: RolesSpec, dataset: DrawnDataset, concepts: dict[str, Concept]) -> Roles:
    """Return who sees which pictures.

    Args:
        spec: the choices.
        dataset: with one vendor's drawings of nearly every concept held out.
        concepts: by code.
    """

    def with_keywords(sample: ImageTextSample) -> ImageTextSample:
        caption = keyword_caption(concepts[sample.metadata["code"]], key=sample.key, seed=spec.seed)
        return attrs.evolve(sample, captions=(caption,))

    change: Callable[[ImageTextSample], ImageTextSample] = (
        with_keywords if spec.real_captions == "keywords" else lambda sample: sample
    )
    train = list(dataset.train.samples())
    held_out: dict[bool, list[ImageTextSample]] = {True: [], False: []}
    for sample in dataset.splits[TEST_RENDERINGS].samples():
        family = concepts[sample.metadata["code"]].family
        held_out[chance(spec.seed, "validation", family) < spec.validation_share].append(sample)
    teacher = [*train, *dataset.splits[TEST_STYLE].samples()]
    return Roles(
        teacher=tuple(
            attrs.evolve(sample, captions=(*sample.captions, *with_keywords(sample).captions)) for sample in teacher
        ),
        student=tuple(
            change(sample) for sample in train if chance(spec.seed, "student", sample.key) < spec.student_share
        ),
        validation=tuple(held_out[True]),
        test=tuple(held_out[False]),
        class_names=dataset.train.class_names,
    )
