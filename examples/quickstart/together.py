"""How sure a difference is, with the noise of seeds and of test pictures, for each split and for all together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import attrs
import numpy as np
import numpy.typing as npt

# By split and picture's key, whether its concept is among the five best.
Hits = Mapping[str, Mapping[str, bool]]
ALL = "all unseen pictures"
# Rows of the table whose differences are told: the later one less the earlier one.
COMPARED = (("reinforced", "plain"), ("reinforced", "captions"), ("captions", "plain"))
_SURE = 1.96


@attrs.frozen(kw_only=True)
class Together:
    """The top-5 of two rows of the table on the same pictures.

    Args:
        num_pictures: how many.
        earlier: of the row that comes first, in per cent.
        later: of the other one.
        error: standard error of the difference, in points.
    """

    num_pictures: int
    earlier: float
    later: float
    error: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference is beyond 1.96 standard errors."""
        return abs(self.later - self.earlier) > _SURE * self.error

    def __str__(self) -> str:
        verdict = "" if self.is_significant else ", not significant"
        return f"{self.later - self.earlier:+.1f} ± {self.error:.1f}{verdict}"


def compared(hits: Mapping[str, Sequence[Hits]]) -> dict[str, dict[str, Together]]:
    """Return the differences of top-5 by what is compared, and by split or `ALL`.

    Args:
        hits: of every seed, by row of the table.
    """
    return {
        f"{later} - {earlier}": {name: _together(hits[earlier], hits[later], name) for name in (*hits[later][0], ALL)}
        for later, earlier in COMPARED
        if all(one for row in (later, earlier) for one in hits.get(row, [{}]))
    }


def _together(earlier: Sequence[Hits], later: Sequence[Hits], name: str) -> Together:
    """Compare seed by seed and picture by picture: errors of seeds and of pictures are added as variances."""
    one, two = (np.array([_by_picture(hits, name) for hits in row]) for row in (earlier, later))
    less = two - one
    variance = less.mean(0).var(ddof=1) / less.shape[1]
    if len(less) > 1:
        variance += less.mean(1).var(ddof=1) / len(less)
    return Together(
        num_pictures=less.shape[1],
        earlier=100 * float(one.mean()),
        later=100 * float(two.mean()),
        error=100 * math.sqrt(variance),
    )


def _by_picture(hits: Hits, name: str) -> npt.NDArray[np.float64]:
    """Return a number for each picture; one of several splits has their mean, and counts once."""
    found: dict[str, list[bool]] = {}
    for split, of_split in hits.items():
        for key, hit in of_split.items() if name in (split, ALL) else ():
            found.setdefault(key, []).append(hit)
    return np.array([sum(found[key]) / len(found[key]) for key in sorted(found)])


def together_table(found: Mapping[str, Mapping[str, Together]], titles: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a Markdown table of the differences; nothing where there are none."""
    names = list(next(iter(found.values()), ()))
    if not names:
        return
    yield "\n## How sure the differences are\n"
    yield "Points of top-5 ± standard error, of seeds and test pictures both; in brackets the two scores.\n"
    heads = (f"{titles.get(name, name)} ({of.num_pictures})" for name, of in next(iter(found.values())).items())
    yield f"| top-5 | {' | '.join(heads)} |"
    yield "|" + "---|" * (1 + len(names))
    for title, row in found.items():
        cells = (f"{one} ({one.earlier:.1f} to {one.later:.1f})" for one in row.values())
        yield f"| {title} | {' | '.join(cells)} |"
