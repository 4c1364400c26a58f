"""Where a stream of batches stands, so that a run that resumes goes on there without making the batches before."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from attrs import validators

from mobileclip.strict import strict


def _pairs(values: Iterable[Iterable[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((shard, key) for shard, key in values)


@attrs.frozen(kw_only=True, field_transformer=strict)
class StreamPosition:
    """A place in a stream of batches; `to_json` of `mobileclip.serialization` writes it beside a checkpoint.

    Which samples are good is known only after decoding them. So a position names those of the current epoch that were
    skipped: with them, what came before is passed over without decoding. Of several processes each has its own
    position; the names of all may be put together, as no two share a sample.

    Args:
        first_batch: number of batches that were consumed.
        skipped: shard and key of the samples that the current epoch skipped so far. Where shards are resampled, the
            process, the worker and the number of the draw stand in front of the shard.

    Raises:
        ValueError: if the number is negative.
    """

    first_batch: int = attrs.field(default=0, validator=validators.ge(0))
    skipped: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_pairs)
