"""How long the rest of several data sets takes, reckoned from those that are done."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mobileclip.evaluation.suite import SUITE
from mobileclip.progress import duration

_NUM_IMAGES = {entry.key: entry.num_images for entry in SUITE}


@attrs.define
class Pace:
    """Images that were evaluated, and the time that they took.

    Args:
        images: of data sets whose size is known.
        seconds: that these took.
    """

    images: int = 0
    seconds: float = 0.0

    def add(self, key: str, seconds: float) -> None:
        """Count a data set that was evaluated now, if its size is known.

        Args:
            key: what results call it.
            seconds: by the clock.
        """
        if key in _NUM_IMAGES:
            self.images += _NUM_IMAGES[key]
            self.seconds += seconds

    def left(self, keys: Sequence[str]) -> str:
        """Return what to say of the time that data sets will take; nothing where nobody knows.

        Args:
            keys: those that are not done; the ones of unknown size make it `at least`.
        """
        images = sum(_NUM_IMAGES.get(key, 0) for key in keys)
        if not self.images or not images:
            return ""
        word = "about" if _NUM_IMAGES.keys() >= set(keys) else "at least"
        return f"{word} {duration(self.seconds * images / self.images)} left"
