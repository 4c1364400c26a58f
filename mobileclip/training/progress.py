"""How far a run is: a live bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 15.0


class StepProgress:
    """Shows steps, samples per second, the time left and the loss.

    Args:
        title: what is going on.
        total_steps: steps of the whole run.
        start_step: steps done before, by the run that this one resumes; they don't count for the speed.
        console: where to show it; none shows nothing.
    """

    def __init__(self, title: str, *, total_steps: int, start_step: int = 0, console: Console | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.title = title
        self.total_steps = total_steps
        self.step = self.start_step = start_step
        self.console = console
        self.num_samples = 0
        self.started = self.last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=start_step, state="")

    def advance(self, num_samples: int, loss: float) -> None:
        """Count one step."""
        self.step += 1
        self.num_samples += num_samples
        state = self.state(loss)
        self._bar.update(self._task, completed=self.step, state=state)
        now = time.monotonic()
        finished = self.step == self.total_steps
        if self.console and not self.console.is_terminal and (finished or now - self.last_line > SECONDS_BETWEEN_LINES):
            self.last_line = now
            self.console.print(f"{self.title}: step {self.step}/{self.total_steps}, {state}", highlight=False)

    def state(self, loss: float) -> str:
        """Return speed, time left and loss as a person reads them."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        seconds_left = elapsed / max(self.step - self.start_step, 1) * (self.total_steps - self.step)
        minutes, seconds = divmod(round(seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return f"loss {loss:.3f}, {self.num_samples / elapsed:,.0f} samples/s, {left} left"

    def __enter__(self) -> StepProgress:  # noqa: PYI034 - `Self` needs Python 3.11
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
