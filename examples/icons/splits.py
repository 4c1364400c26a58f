"""Splits the icons into training, validation and test icons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from examples.icons.names import family
from examples.icons.reading import Icon
from examples.quickstart.emoji.splits import TRAIN, chance

VALIDATION, TEST_PICTURES, TEST_SET, TEST_NAMES = "validation", "test_pictures", "test_set", "test_names"
TITLES = {
    TRAIN: "training",
    VALIDATION: "unseen drawings of seen names, to choose settings on",
    TEST_PICTURES: "unseen drawings of seen names",
    TEST_SET: "an unseen set's drawings of seen names",
    TEST_NAMES: "drawings of unseen names",
}


@attrs.frozen(kw_only=True)
class Division:
    """The indices of the icons in every split.

    Args:
        members: indices by the name of the split.
        num_twins: number of held-out icons left out because of a near duplicate in training or validation, by the name
            of the split.
        num_unused: number of drawings without a split: drawings of the held-out set whose names are not seen classes,
            and drawings of names that share the words of an unseen class without being a class.
        class_names: classes for zero-shot classification, by the name of the split.
    """

    members: Mapping[str, tuple[int, ...]]
    num_twins: Mapping[str, int]
    num_unused: int
    class_names: Mapping[str, tuple[str, ...]]


def divide(
    icons: Sequence[Icon],
    twins: Iterable[tuple[int, int]],
    *,
    held_out_set: str,
    name_fraction: float,
    picture_fraction: float,
    validation_share: float,
    min_sets: int,
    seed: int,
) -> Division:
    """Return the splits; names with the same words stay together.

    Args:
        icons: all icons of the data set.
        twins: pairs of indices of near duplicates.
        held_out_set: the set that training never sees.
        name_fraction: fraction of the classes with all drawings held out.
        picture_fraction: fraction of the other classes of which one drawing is held out.
        validation_share: fraction of the held-out drawings of seen names for validation.
        min_sets: a name in at least this number of sets is a class.
        seed: seed of the random choices.
    """
    by_family: dict[str, list[int]] = {}
    for index, icon in enumerate(icons):
        by_family.setdefault(family(icon.name), []).append(index)
    sides: dict[str, list[int]] = {name: [] for name in TITLES}
    seen: set[str] = set()
    unseen: set[str] = set()
    num_unused = 0
    for words, indices in by_family.items():
        own = [index for index in indices if icons[index].set_name != held_out_set]
        other = [index for index in indices if icons[index].set_name == held_out_set]
        classes = _drawn_by([icons[index] for index in own], min_sets)
        candidates = [index for index in own if icons[index].name in classes]
        if candidates and chance(seed, "name", words) < name_fraction:
            sides[TEST_NAMES] += candidates
            unseen |= classes
            num_unused += len(own) - len(candidates) + len(other)
            continue
        if candidates and chance(seed, "picture", words) < picture_fraction:
            held_out = min(candidates, key=lambda index: chance(seed, "held out", icons[index].key))
            own.remove(held_out)
            is_validation = chance(seed, "validation", words) < validation_share
            sides[VALIDATION if is_validation else TEST_PICTURES].append(held_out)
        seen |= classes
        asked = [index for index in other if icons[index].name in classes]
        sides[TRAIN] += own
        sides[TEST_SET] += asked
        num_unused += len(other) - len(asked)
    members, num_twins = _without_twins(sides, twins)
    class_names = {name: tuple(sorted(unseen if name == TEST_NAMES else seen)) for name in TITLES}
    return Division(members=members, num_twins=num_twins, num_unused=num_unused, class_names=class_names)


def _drawn_by(icons: Iterable[Icon], min_sets: int) -> set[str]:
    """Return the names that at least `min_sets` sets have."""
    sets: dict[str, set[str]] = {}
    for icon in icons:
        sets.setdefault(icon.name, set()).add(icon.set_name)
    return {name for name, drawn_by in sets.items() if len(drawn_by) >= min_sets}


def _without_twins(
    sides: Mapping[str, Sequence[int]], twins: Iterable[tuple[int, int]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return the splits without near duplicates of earlier splits, and the number of near duplicates."""
    rank = {TRAIN: 0, VALIDATION: 1, TEST_PICTURES: 2, TEST_SET: 2, TEST_NAMES: 2}
    side_of = {index: name for name, indices in sides.items() for index in indices}
    dropped: set[int] = set()
    for pair in twins:
        if all(index in side_of for index in pair):
            first, second = sorted(pair, key=lambda index: rank[side_of[index]])
            if rank[side_of[first]] < rank[side_of[second]]:
                dropped.add(second)
    members = {name: tuple(index for index in indices if index not in dropped) for name, indices in sides.items()}
    return members, {name: len(sides[name]) - len(members[name]) for name in sides if name != TRAIN}
