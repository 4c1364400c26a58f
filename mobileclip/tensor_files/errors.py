"""The one error of files that hold weights, how a tensor's name is shown in it, and how many tensors are read."""

from __future__ import annotations

MAX_TENSORS = 1 << 16
_MAX_SHOWN = 80


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: what is wrong with it, and what to do.

    Examples:
        >>> try:
        ...     save_model(MCtSpec(width=16, depth=0, num_heads=2).build(), "text.bin")
        ... except CheckpointError as error:
        ...     str(error)
        "mobileclip's own layout is safetensors, so name the file *.safetensors, not 'text.bin'"
    """


def shown(name: object) -> str:
    """Return a name from a file as a message shows it: quoted, escaped, and not longer than a line."""
    text = repr(name[: _MAX_SHOWN + 1] if isinstance(name, str) else name)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def check_count(num_tensors: int) -> None:
    """Raise if a file says that it holds more tensors than any model has.

    Raises:
        CheckpointError: if it does.
    """
    if num_tensors > MAX_TENSORS:
        raise CheckpointError(f"it holds {num_tensors:,} tensors, and at most {MAX_TENSORS:,} are read")
