"""The error of weight files, the display of tensor names in messages, and the maximum number of tensors."""

from __future__ import annotations

from typing import Literal

MAX_TENSORS = 1 << 16
_MAX_SHOWN = 80

CheckpointCode = Literal[
    "damaged",  # cut off, contradicts itself, too large, or in an unsupported format
    "not_weights",  # holds something other than plain dense tensors by name
    "unsafe",  # unpickling it would call functions
    "digest",  # has another SHA-256 than expected
    "description",  # its own description of model, form, layout or tokenizer is invalid
    "unknown_layout",  # tensor names of no known layout
    "unknown_model",  # a known layout, but none of the known models
    "ambiguous",  # several models or files match; the user must name one
    "another_model",  # holds another model than requested
    "no_such_tower",  # does not hold the requested tower
    "does_not_fit",  # tensors are missing, left over, or of another shape
    "another_dtype",  # floating point instead of integers, or the reverse
    "not_finite",  # NaN or infinite weights
    "folded",  # no longer has the branches that training needs
    "export",  # is an export rather than a checkpoint
    "address",  # does not name a checkpoint on the hub
    "not_fetched",  # the download from the hub failed
    "no_checkpoint",  # a repository or folder without checkpoints
    "not_storable",  # a model that no checkpoint can hold under this name
]
"""The kind of problem of a checkpoint, for code that handles some kinds."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message states the problem and a remedy.

    Args:
        message: message for the user.
        code: kind of problem, for programs; one of `CheckpointCode`.

    Examples:
        >>> try:
        ...     save_model(MCtSpec(width=16, depth=0, num_heads=2).build(), "text.bin")
        ... except CheckpointError as error:
        ...     error.code
        'not_storable'
    """

    def __init__(self, message: str, *, code: CheckpointCode = "damaged") -> None:
        super().__init__(message)
        self.code = code


def shown(name: object) -> str:
    """Return a name from a file for use in a message: quoted, escaped, and at most one line long."""
    text = repr(name[: _MAX_SHOWN + 1] if isinstance(name, str) else name)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def check_count(num_tensors: int) -> None:
    """Raise if a file claims to hold more tensors than any model has.

    Raises:
        CheckpointError: if `num_tensors` exceeds the maximum.
    """
    if num_tensors > MAX_TENSORS:
        raise CheckpointError(f"it holds {num_tensors:,} tensors, but the maximum is {MAX_TENSORS:,}")
