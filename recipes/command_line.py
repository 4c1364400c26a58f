"""What the recipes' command lines share: what a person can mend is said in a line, and a signal keeps what was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mobileclip.interruption import interruptible
from mobileclip.terminal import shown

GOES_ON = "what was finished is kept; the same command goes on from there"


@contextmanager
def reported(name: str, arguments: Sequence[str] | None, *, kept: str = GOES_ON) -> Iterator[None]:
    """Turn errors and signals into a line and an exit status.

    Args:
        name: of the recipe.
        arguments: the command line; None for the process's own, with which the program ends.
        kept: what a signal leaves and how to go on, in a sentence without its full stop.

    Raises:
        SystemExit: with 1 and the error's message, 130 after Ctrl-C, or 143 after SIGTERM.
    """
    try:
        with interruptible(name, kept, is_program=arguments is None):
            yield
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        raise SystemExit(f"error: {shown(error)}") from None
