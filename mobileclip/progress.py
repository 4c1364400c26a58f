"""How far a long job is: a live bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from mobileclip.storage import printable
from mobileclip.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 15.0
# As a part of all time: a job of days does not fill a file with its lines.
_LINES_APART = 0.01
# Before, no pace is known, however fast the first steps were.
_SOONEST = 3.0
# Steps within so small a part of the time that was waited for them came together, such as a batch of results.
_TOGETHER = 0.1
# As a part of all time: marks that are nearer tell no more.
_APART = 0.005
_FEWEST_BURSTS = 3


class Pace:
    """How long a step takes, by the later half of the job: loading and compiling, at its beginning, are no pace.

    Results come in bursts. Time is taken from the end of one to the end of another; the one under way has no end yet.

    Args:
        now: when the job begins, in seconds of any clock; later times are of the same one.
    """

    def __init__(self, now: float) -> None:
        self._started = self._burst_began = self._waited_from = self._last = now
        self._done = self._num_bursts = 0
        self._marks: deque[tuple[float, int]] = deque()

    def advance(self, steps: int, now: float) -> None:
        """Take note of finished steps."""
        together = max(_TOGETHER * (self._burst_began - self._waited_from), _APART * (now - self._started))
        if self._done == 0:
            self._burst_began = now
        elif now - self._burst_began >= together and now > self._last:
            self._marks.append((self._last, self._done))
            self._num_bursts += 1
            self._waited_from, self._burst_began = self._last, now
            self._forget()
        self._done += steps
        self._last = now

    def seconds(self, steps: int) -> float | None:
        """Estimate the seconds of a number of steps; None if too few were measured, or there are none."""
        if steps <= 0 or self._num_bursts < _FEWEST_BURSTS or self._last - self._started < _SOONEST:
            return None
        (began, done_before), (ended, done) = self._marks[0], self._marks[-1]
        return steps * (ended - began) / (done - done_before)

    def _forget(self) -> None:
        ended, done = self._marks[-1]
        while len(self._marks) > 2 and (
            self._marks[0][0] < (self._started + ended) / 2 or self._marks[0][1] < done / 2
        ):
            self._marks.popleft()


class Progress:
    """Shows how much is done, how fast it goes and how long the rest takes; a context manager.

    Args:
        title: what is going on.
        total: how many steps there are in all; None where nobody knows.
        done: steps done before, by a run that this one resumes; they do not count for the speed.
        unit: what the speed counts.
        console: where to show it; none shows nothing.
    """

    def __init__(
        self, title: str, *, total: int | None, done: int = 0, unit: str = "samples", console: Console | None
    ) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn
        from rich.table import Column

        self.title = title = printable(title)
        self.total = total
        self.unit = unit
        self.done = done
        self._count = 0
        self._console = console
        self._started = self._last_line = time.monotonic()
        self._pace = Pace(self._started)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            # In a narrow terminal, the bar alone gives way.
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, state="")

    def expect(self, total: int) -> None:
        """Take note of how many steps there are in all, where that turns out on the way."""
        self.total = total
        self._bar.update(self._task, total=total)

    def advance(self, steps: int = 1, *, count: int | None = None, detail: str = "") -> None:
        """Count finished steps.

        Args:
            steps: how many.
            count: how many units they were, where a step is not one unit.
            detail: what else to show, such as the loss.
        """
        self.done += steps
        self._count += steps if count is None else count
        if steps:
            self._pace.advance(steps, time.monotonic())
        state = ", ".join(filter(None, (detail, self.state)))
        self._bar.update(self._task, completed=self.done, state=state)
        now = time.monotonic()
        apart = max(SECONDS_BETWEEN_LINES, _LINES_APART * (now - self._started))
        due = self.done == self.total or now - self._last_line > apart
        if self._console is not None and not self._console.is_terminal and due:
            self._last_line = now
            of = "" if self.total is None else f"/{self.total}"
            self._console.print(f"{self.title}: {self.done}{of}, {state}", highlight=False, soft_wrap=True)

    @property
    def state(self) -> str:
        """Speed and, once that can be told, time left, as a person reads them."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        speed = f"{self._count / elapsed:,.1f} {self.unit}/s"
        seconds_left = None if self.total is None else self._pace.seconds(self.total - self.done)
        return speed if seconds_left is None else f"{speed}, {duration(seconds_left)} left"

    def __enter__(self) -> Progress:  # noqa: PYI034 - `Self` needs Python 3.11
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def duration(seconds: float) -> str:
    """Return a time as people write it: minutes and seconds, and hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def track(
    items: Iterable[Item], *, total: int, title: str, unit: str = "samples", shown: bool = True
) -> Iterator[Item]:
    """Yield items while showing, on standard error, how many there were, how fast, and how long the rest takes.

    Args:
        items: what is worked through.
        total: how many there are.
        title: what is being done.
        unit: what an item is, in the plural.
        shown: without it nothing is printed.
    """
    with Progress(title, total=total, unit=unit, console=console(shown=shown)) as progress:
        for item in items:
            yield item
            progress.advance()
