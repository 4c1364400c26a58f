"""Skipped samples: counted by reason, named by key, and reported."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import attrs

from mobileclip.machine import raise_machine_fault
from mobileclip.storage import StorageError, printable, without_secrets
from mobileclip.terminal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

logger = get_logger(__name__)

CONNECTION_FAILED = "connection_failed"
"""Reason of what may be whole, as its store or disk failed: another time may help."""

# Every reason is counted in full; beyond these the names and the log lines would drown everything else.
MAX_NAMED = 1000
MAX_LOGGED = 10
_MAX_DETAIL = 1000


def _name(value: object) -> str:
    return printable(value, limit=4096)  # as long as a path may be: of a cut one, nobody would know the end


def _text(value: object) -> str:
    return printable(without_secrets(value), limit=_MAX_DETAIL)


class BadSampleError(ValueError):
    """A sample, or a whole shard, cannot be used.

    Args:
        reason: one of a few words, to be counted.
        detail: what exactly is wrong, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = _text(detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def skip(self, *, key: str, shard: str) -> Skip:
        """Return the `Skip` of this error for the sample of a key."""
        return Skip(reason=self.reason, key=key, shard=shard, detail=self.detail)


@attrs.frozen(kw_only=True)
class Skip:
    """One thing that was left out; its texts can be shown as they are: printable, and without secrets.

    Args:
        reason: why, in a few words.
        key: the sample's key; empty where a whole shard, or the rest of it, is meant.
        shard: the path or URL of the shard.
        detail: what exactly was wrong.
    """

    reason: str
    key: str = attrs.field(converter=_name)
    shard: str = attrs.field(converter=_text)
    detail: str = attrs.field(converter=_text)

    def error(self, message: str) -> Exception:
        """Return the error of a unit that cannot do without the sample: `StorageError` if another try may help.

        Args:
            message: what is said of it.
        """
        return StorageError(message) if self.reason == CONNECTION_FAILED else ValueError(message)


def attempt(make: Callable[[], T], *, key: str, shard: str, on_skip: Callable[[Skip], None]) -> T | None:
    """Return the result of `make` for a sample, or None after reporting why it is skipped.

    This is the last barrier of a sample: whatever it makes the code raise, whichever library raises it, costs that
    sample alone. The reason is that of a BadSampleError, and the class of every other exception. What is the machine's
    fault, and no sample's, passes.

    Args:
        make: called once.
        key: the sample's key.
        shard: where it is.
        on_skip: called with what had to be left out.

    Raises:
        ResourceExhaustedError: if the machine has run out of memory, files or room.
    """
    try:
        return make()
    except BadSampleError as error:
        raise_machine_fault(error)
        reason, detail = error.reason, error.detail
    except Exception as error:
        raise_machine_fault(error, f"at {printable(key)} of {without_secrets(shard)}")
        reason, detail = type(error).__name__, str(error) or "without a message"
        logger.debug("%s of %s cannot be used", printable(key), without_secrets(shard), exc_info=True)
    on_skip(Skip(reason=reason, key=key, shard=shard, detail=detail))
    return None


def made_or_skip(make: Callable[[], T], *, key: str, shard: str) -> T | Skip:
    """Return the result of `make` for a sample, or the `Skip`; like `attempt`, for callers that keep the order.

    Args:
        make: called once; never returns None.
        key: the sample's key.
        shard: where it is.
    """
    skips: list[Skip] = []
    made = attempt(make, key=key, shard=shard, on_skip=skips.append)
    return skips[0] if made is None else made


@attrs.define(kw_only=True)
class SkipReport:
    """Counts of samples read and of samples skipped by reason, in this process.

    Args:
        num_read: number of samples that were used.
        num_unwanted: number of samples that were passed over since a list of those to be used has not got them.
        counts: number of skips by reason, complete.
        named: the first `MAX_NAMED` skips of every reason.
        log: whether to log skips too.
    """

    num_read: int = 0
    num_unwanted: int = 0
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
        counts = self.counts
        read = f"{self.num_read} samples read" + (f", {self.num_unwanted} passed over" if self.num_unwanted else "")
        if not counts:
            return f"{read}, nothing skipped"
        return f"{read}, {counts.total()} skipped: {', '.join(f'{count} {why}' for why, count in counts.most_common())}"
