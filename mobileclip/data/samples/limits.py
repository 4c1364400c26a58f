"""Limits on the size of a sample; the command line imports this module, so it has no heavy imports."""

from __future__ import annotations

import attrs
from attrs import validators

from mobileclip.strict import strict

MAX_DIM = 2**16
"""Maximum dimension of concatenated teacher embeddings, far above any real dimension."""


_LARGEST_NUMBER_BYTES = 8


# Limit on the size of names, headers and tables.
_OVERHEAD_BYTES = 2**20


_POSITIVE = validators.gt(0)


class TooLargeError(ValueError):
    """Raised for data beyond a limit; the data is a decompression bomb, or the limit is too low."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class SampleLimits:
    """Limits on the size of a sample; readers skip larger samples with the reason `too_large`.

    The defaults are about a thousand times the size of a DataCompDR sample, enough for photographs of 100 MB.

    Args:
        member_bytes: maximum size of a member, in bytes.
        sample_bytes: maximum total size of a sample's members, in bytes.
        num_members: maximum number of members of a sample.
        name_bytes: maximum length of a member's name, in bytes.
        text_bytes: maximum size of a text or JSON member, in bytes.
        embedding_bytes: maximum size of a sample's embeddings, in bytes, both decompressed and as float32.
        dim: dimension of the concatenated teacher embeddings, which bounds the decompressed size more tightly; None if
            unknown.
        inflation: maximum ratio of a shard's decompressed to its compressed size; decompression bombs reach thousands.

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
        """Return the maximum decompressed size of a sample's embeddings, in bytes.

        Args:
            num_rows: number of augmentations and captions of the sample.
        """
        rows = num_rows * MAX_DIM if self.dim is None else num_rows * self.dim
        return min(self.embedding_bytes, _LARGEST_NUMBER_BYTES * rows + _OVERHEAD_BYTES)


SAMPLE_LIMITS = SampleLimits()
"""Default limits."""
