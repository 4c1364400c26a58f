"""How much one run of a tower's file may take: far more than a large tower does, and no more than a machine has."""

from __future__ import annotations

from pathlib import Path

from mobileclip.storage import printable

MOST_VALUE, MOST_VALUES, MOST_OPERATIONS = 2**29, 2**34, 2 * 10**13
"""Numbers in one value, in all together, and multiplications and additions."""


class Bounds:
    """Adds up what a run takes.

    Args:
        path: of the file, for the message.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._count, self._operations = path, 0, 0

    def add(self, name: str, count: int, operations: int) -> None:
        """Add a value.

        Args:
            name: of the value.
            count: numbers in it.
            operations: that it takes to compute it.

        Raises:
            ValueError: if that is more than any tower takes.
        """
        self._count, self._operations = self._count + count, self._operations + operations
        if count > MOST_VALUE or self._count > MOST_VALUES or self._operations > MOST_OPERATIONS:
            raise ValueError(
                f"{self._path}: {printable(name, limit=80)} has {count:,} numbers, all up to it {self._count:,}, and "
                f"they take {self._operations:.1e} operations, which no tower does; do not use it"
            )
