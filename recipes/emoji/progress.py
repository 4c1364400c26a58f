"""Progress with the time left, on the console."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def steps(items: Iterable[T], *, total: int, title: str) -> Iterator[T]:
    """Yield items while a bar shows how many there were, how fast, and how long the rest will take.

    Args:
        items: what is worked through.
        total: how many there are.
        title: what is being done.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        *(TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(compact=True)),
    )
    with Progress(*columns) as progress:
        yield from progress.track(items, total=total, description=title)
