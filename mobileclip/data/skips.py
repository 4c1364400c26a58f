"""Records of skipped samples: the reason and key of each skip, and a report with counts by reason.

`read_shard` in `mobileclip.data.shards.files` skips damaged shards; `mobileclip.data.loading.reading` then reads the
next shard.
"""

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
"""Reason of a skip because a store or disk failed: the data may be intact, so a retry may succeed."""

# Counts are complete; the numbers of named skips and log lines are limited.
MAX_NAMED = 1000
MAX_LOGGED = 10
_MAX_DETAIL = 1000


def _name(value: object) -> str:
    return printable(value, limit=4096)  # the maximum length of a path, so that no path is truncated


def _text(value: object) -> str:
    return printable(without_secrets(value), limit=_MAX_DETAIL)


class BadSampleError(ValueError):
    """Raised if a sample or a whole shard cannot be used.

    Args:
        reason: short identifier of the problem, such as `bad_json`; `SkipReport` counts skips by reason.
        detail: human-readable description of the problem.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = _text(detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def skip(self, *, key: str, shard: str) -> Skip:
        """Return the `Skip` of this error for the sample with the given key."""
        return Skip(reason=self.reason, key=key, shard=shard, detail=self.detail)


@attrs.frozen(kw_only=True)
class Skip:
    """One skipped sample or shard; the texts are printable and contain no secrets.

    Args:
        reason: short identifier of the problem, such as `bad_json`.
        key: the sample's key; empty for a whole shard or the rest of a shard.
        shard: path or URL of the shard.
        detail: human-readable description of the problem.
    """

    reason: str
    key: str = attrs.field(converter=_name)
    shard: str = attrs.field(converter=_text)
    detail: str = attrs.field(converter=_text)

    def error(self, message: str) -> Exception:
        """Return an exception for the skip: `StorageError` if a retry may succeed, otherwise `ValueError`.

        Args:
            message: complete message of the exception.
        """
        return StorageError(message) if self.reason == CONNECTION_FAILED else ValueError(message)


def attempt(make: Callable[[], T], *, key: str, shard: str, on_skip: Callable[[Skip], None]) -> T | None:
    """Return the result of `make` for a sample; if `make` raises, report a `Skip` and return None.

    An exception from any library skips only the sample. The skip's reason is the reason of a `BadSampleError`, or the
    class name of any other exception.

    Args:
        make: function that processes the sample; called once.
        key: the sample's key.
        shard: path or URL of the sample's shard.
        on_skip: function that receives the `Skip`.

    Raises:
        ResourceExhaustedError: if the machine has run out of memory, open files or disk space.
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
    """Return the result of `make` for a sample, or a `Skip` if `make` raises; see `attempt`.

    Args:
        make: function that processes the sample; called once; never returns None.
        key: the sample's key.
        shard: path or URL of the sample's shard.
    """
    skips: list[Skip] = []
    made = attempt(make, key=key, shard=shard, on_skip=skips.append)
    return skips[0] if made is None else made


@attrs.define(kw_only=True)
class SkipReport:
    """Counts of the samples that this process used, and of the skips by reason.

    Args:
        num_read: number of samples that were used.
        num_unwanted: number of samples that the uid list or `keep` rejected.
        counts: total number of skips by reason.
        named: first `MAX_NAMED` skips of every reason.
        log: whether `add` also logs skips.
    """

    num_read: int = 0
    num_unwanted: int = 0
    counts: Counter[str] = attrs.field(factory=Counter)
    named: dict[str, list[Skip]] = attrs.field(factory=dict)
    log: bool = True

    @property
    def num_skipped(self) -> int:
        """Number of skips over all reasons."""
        return self.counts.total()

    def add(self, skip: Skip) -> None:
        """Count a skip; log only the first `MAX_LOGGED` skips of each reason."""
        self.counts[skip.reason] += 1
        named = self.named.setdefault(skip.reason, [])
        if len(named) < MAX_NAMED:
            named.append(skip)
        if self.log and self.counts[skip.reason] <= MAX_LOGGED:
            more = "; further skips of this kind are only counted" if self.counts[skip.reason] == MAX_LOGGED else ""
            what = skip.key or "the rest of the shard"
            logger.warning("skipped %s of %s: %s: %s%s", what, skip.shard, skip.reason, skip.detail, more)

    def extend(self, skips: Iterable[Skip]) -> None:
        """Count several skips."""
        for skip in skips:
            self.add(skip)

    def keys(self, reason: str) -> tuple[str, ...]:
        """Return the first `MAX_NAMED` keys that were skipped for the given reason."""
        return tuple(skip.key for skip in self.named.get(reason, ()))

    def __str__(self) -> str:
        counts = self.counts
        read = f"{self.num_read} samples read" + (f", {self.num_unwanted} passed over" if self.num_unwanted else "")
        if not counts:
            return f"{read}, nothing skipped"
        return f"{read}, {counts.total()} skipped: {', '.join(f'{count} {why}' for why, count in counts.most_common())}"
