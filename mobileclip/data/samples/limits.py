"""Bounds on what is read of a sample: a value that flags are read from, without what reads samples."""

from __future__ import annotations

import attrs
from attrs import validators

from mobileclip.strict import strict

MAX_DIM = 2**16
"""Far more than any teachers' embeddings have together."""


_LARGEST_NUMBER_BYTES = 8


# Of names, headers and tables.
_OVERHEAD_BYTES = 2**20


_POSITIVE = validators.gt(0)


class TooLargeError(ValueError):
    """There is more than may be: a bomb, or a limit that is too low."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class SampleLimits:
    """Bounds on what is read of a sample; one beyond them is left out and counted, with the reason `too_large`.

    The defaults are a thousand times what a sample of DataCompDR takes, and hold photographs of 100 MB.

    Args:
        member_bytes: of one member.
        sample_bytes: sample bytes of all members of a sample.
        num_members: number of members of a sample.
        name_bytes: of a member's name.
        text_bytes: of a member that is text or JSON.
        embedding_bytes: of a sample's embeddings, inflated and as float32.
        dim: dim of the teachers' concatenated embeddings, where a card says it: embeddings may then inflate to what the
            rows of the sample take, and no more.
        inflation: how many times its own size a compressed shard may inflate to; bombs reach thousands.

    Raises:
        ValueError: if a number is not positive.
    """

    member_bytes: int = attrs.field(default=2**28, validator=_POSITIVE)
    sample_bytes: int = attrs.field(default=2**29, validator=_POSITIVE)
    num_members: int = attrs.field(default=1000, validator=_POSITIVE)
    name_bytes: int = attrs.field(default=2**12, validator=_POSITIVE)
    text_bytes: int = attrs.field(default=2**24, validator=_POSITIVE)
    embedding_bytes: int = attrs.field(default=2**26, validator=_POSITIVE)
    inflation: int = attrs.field(default=256, validator=_POSITIVE)
    dim: int | None = attrs.field(default=None, validator=validators.optional(_POSITIVE))

    def inflated_bytes(self, num_rows: int) -> int:
        """Return how many bytes the embeddings of a sample may inflate to.

        Args:
            num_rows: augmentations and captions of the sample.
        """
        rows = num_rows * MAX_DIM if self.dim is None else num_rows * self.dim
        return min(self.embedding_bytes, _LARGEST_NUMBER_BYTES * rows + _OVERHEAD_BYTES)


SAMPLE_LIMITS = SampleLimits()
"""The defaults."""
