"""How far a reinforcement job is: samples per second and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15.0


class SampleProgress:
    """A live bar in a terminal, now and then a line elsewhere.

    Args:
        title: what is going on.
        total: samples of the whole job.
        shown: whether to show anything.
    """

    def __init__(self, title: str, *, total: int, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.title = title
        self.total = total
        self.count = 0
        self.started = self.last_line = time.monotonic()
        self._console = Console(stderr=True)
        self._lines = shown and not self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=self._console,
            disable=not shown or self._lines,
        )
        self._task = self._bar.add_task(title, total=total, state="")

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, counting them."""
        for item in items:
            yield item
            self._advance()

    @property
    def state(self) -> str:
        """Speed and time left, as a person reads them."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        speed = self.count / elapsed
        minutes, seconds = divmod(round((self.total - self.count) / max(speed, 1e-9)), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return f"{speed:,.1f} samples/s, {left} left"

    def _advance(self) -> None:
        self.count += 1
        now = time.monotonic()
        self._bar.update(self._task, completed=self.count, state=self.state)
        if self._lines and (self.count == self.total or now - self.last_line > SECONDS_BETWEEN_LINES):
            self.last_line = now
            self._console.print(f"{self.title}: {self.count}/{self.total}, {self.state}", highlight=False)

    def __enter__(self) -> SampleProgress:  # noqa: PYI034  `Self` needs Python 3.11
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
