"""Defines the error class for weight files, the display of tensor names, and the maximum number of tensors."""

from __future__ import annotations

from typing import Literal

MAX_TENSORS = 1 << 16
_MAX_SHOWN = 80

CheckpointCode = Literal[
    "damaged",  # cut off, contradicts itself, too large, or in an unsupported format
    "not_weights",  # contains something other than named dense tensors
    "unsafe",  # unpickling it would call functions
    "digest",  # its SHA-256 differs from the expected one
    "description",  # its metadata about the model, form, layout or tokenizer is invalid
    "unknown_layout",  # its tensor names match no known layout
    "unknown_model",  # has a known layout, but matches no known model
    "ambiguous",  # several models or files match; the user must name one
    "another_model",  # contains a different model than requested
    "no_such_tower",  # does not contain the requested tower
    "does_not_fit",  # tensors are missing, unexpected, or have the wrong shape
    "another_dtype",  # floating-point tensors where integers are expected, or the reverse
    "not_finite",  # NaN or infinite weights
    "folded",  # folded for inference, without the branches that training needs
    "export",  # is an export rather than a checkpoint
    "address",  # does not name a checkpoint on the hub
    "not_fetched",  # the download from the hub failed
    "no_checkpoint",  # a repository or folder without checkpoints
    "not_storable",  # a checkpoint with this file name cannot store the model
]
"""Kinds of checkpoint problems, for programs that handle individual kinds."""


class CheckpointError(ValueError):
    """Raised if a checkpoint cannot be loaded or saved; the message states the problem and a remedy.

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
    """Return a name from a file for display in a message: quoted, escaped, and at most 83 characters long."""
    text = repr(name[: _MAX_SHOWN + 1] if isinstance(name, str) else name)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def check_count(num_tensors: int) -> None:
    """Raise if a file has more tensors than any model.

    Raises:
        CheckpointError: if `num_tensors` exceeds the maximum.
    """
    if num_tensors > MAX_TENSORS:
        raise CheckpointError(f"the file has {num_tensors:,} tensors, but the maximum is {MAX_TENSORS:,}")
