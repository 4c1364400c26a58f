"""Progress of long jobs: a live bar in a terminal, occasional lines elsewhere."""

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
# Minimum time between lines, as a fraction of the elapsed time: a job of days must not fill a file with lines.
_LINES_APART = 0.01
# There is no estimate before this time, however fast the first steps were.
_SOONEST = 3.0
# Steps that finish within this fraction of the wait before them count as one burst, for example a batch of results.
_TOGETHER = 0.1
# Minimum time between marks, as a fraction of the elapsed time: closer marks give no more information.
_APART = 0.005
_FEWEST_BURSTS = 3


class Pace:
    """Estimates the time per step from the second half of the job so far, since jobs begin by loading and compiling.

    Results come in bursts, so the class measures the time between the ends of two finished bursts.

    Args:
        now: start time of the job, in seconds of any clock; later times use the same clock.
    """

    def __init__(self, now: float) -> None:
        self._started = self._burst_began = self._waited_from = self._last = now
        self._done = self._num_bursts = 0
        self._marks: deque[tuple[float, int]] = deque()

    def advance(self, steps: int, now: float) -> None:
        """Record finished steps."""
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
        """Estimate the seconds for a number of steps; None without enough measurements, or for no steps."""
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
    """Shows the finished steps, the speed and the remaining time of a job; a context manager.

    Args:
        title: description of the job.
        total: total number of steps; None if unknown.
        done: number of steps finished before this run resumed the job; the speed does not include these steps.
        unit: unit of the speed, in the plural.
        console: console for the output; None shows nothing.
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
            # In a narrow terminal, only the bar shrinks.
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, state="")

    def expect(self, total: int) -> None:
        """Set the total number of steps, for a job that starts with an unknown total."""
        self.total = total
        self._bar.update(self._task, total=total)

    def advance(self, steps: int = 1, *, count: int | None = None, detail: str = "") -> None:
        """Count finished steps.

        Args:
            steps: number of finished steps.
            count: number of units in the finished steps; None for one unit per step.
            detail: further text to show, such as the loss.
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
        """Speed and, after enough measurements, remaining time, as text."""
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
    """Return a time as text: `M:SS`, or `H:MM:SS` from one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def track(
    items: Iterable[Item], *, total: int, title: str, unit: str = "samples", shown: bool = True
) -> Iterator[Item]:
    """Yield items, and show the number of items, the speed and the remaining time on standard error.

    Args:
        items: items to yield.
        total: number of items.
        title: description of the job, for the bar.
        unit: name of the items, in the plural.
        shown: whether to show the progress.
    """
    with Progress(title, total=total, unit=unit, console=console(shown=shown)) as progress:
        for item in items:
            yield item
            progress.advance()
