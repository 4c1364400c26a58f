"""What a data set lost on the way, and why: counted by reason, named by key, never silent."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from mobileclip.terminal import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = get_logger(__name__)

# Every reason is counted in full; beyond these the names and the log lines would drown everything else.
MAX_NAMED = 1000
MAX_LOGGED = 10


class BadSampleError(ValueError):
    """A sample, or a whole shard, cannot be used.

    Args:
        reason: one of a few words, to be counted.
        detail: what exactly is wrong, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@attrs.frozen(kw_only=True)
class Skip:
    """One thing that was left out.

    Args:
        reason: why, in a few words.
        key: the sample's key; empty where a whole shard, or the rest of it, is meant.
        shard: the path or address of the shard.
        detail: what exactly was wrong.
    """

    reason: str
    key: str
    shard: str
    detail: str


@attrs.define(kw_only=True)
class SkipReport:
    """What was read and what was left out, by reason.

    Args:
        num_read: number of samples that were used.
        counts: number of skips by reason, complete.
        named: the first `MAX_NAMED` skips of every reason.
        log: whether to log skips too.
    """

    num_read: int = 0
    counts: Counter[str] = attrs.field(factory=Counter)
    named: dict[str, list[Skip]] = attrs.field(factory=dict)
    log: bool = True

    @property
    def num_skipped(self) -> int:
        """Number of skips of all reasons."""
        return self.counts.total()

    def add(self, skip: Skip) -> None:
        """Count a skip, and log it unless its reason was logged often enough."""
        self.counts[skip.reason] += 1
        named = self.named.setdefault(skip.reason, [])
        if len(named) < MAX_NAMED:
            named.append(skip)
        if self.log and self.counts[skip.reason] <= MAX_LOGGED:
            more = "; more of this kind are only counted" if self.counts[skip.reason] == MAX_LOGGED else ""
            what = skip.key or "the rest of the shard"
            logger.warning("skipped %s of %s: %s: %s%s", what, skip.shard, skip.reason, skip.detail, more)

    def extend(self, skips: Iterable[Skip]) -> None:
        """Count several skips."""
        for skip in skips:
            self.add(skip)

    def keys(self, reason: str) -> tuple[str, ...]:
        """Return the keys that were left out for this reason, the first `MAX_NAMED` of them."""
        return tuple(skip.key for skip in self.named.get(reason, ()))

    def __str__(self) -> str:
        if not self.counts:
            return f"{self.num_read} samples read, nothing skipped"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        return f"{self.num_read} samples read, {self.num_skipped} skipped: {reasons}"
