"""Saves, evaluates and stops a run, after the same step in all of its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
from torch import nn

from mobileclip.inference.modes import evaluating
from mobileclip.terminal import get_logger
from mobileclip.terminal.interruption import Interrupted, Postponed
from mobileclip.training.lora import merged

if TYPE_CHECKING:
    from mobileclip.data import Batch, BatchSource
    from mobileclip.training.checkpoint import BackgroundWriter, CheckpointFolder, RunState
    from mobileclip.training.distributed import World
    from mobileclip.training.records import MetricLog, SkippedFolder
    from mobileclip.training.spec import TrainingSpec

logger = get_logger(__name__)

Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""From the model, in evaluation mode and with adapters merged, and the steps done to named numbers."""


@attrs.frozen
class Wishes:
    """The actions that a process requests after a step; all processes follow any request.

    Args:
        stop: to save the state and leave, for it has heard a signal.
        warned: whether that is a scheduler's warning, after which the same command is to be started again.
        save: to save the state, for it is time, or to say that the last time failed.
        fail: to save the state and end, for it gets no further batch.
    """

    stop: bool
    warned: bool
    save: bool
    fail: bool = False


@attrs.define(kw_only=True)
class Saving:
    """Saves a run's state when it is due, and ends the run when a signal has asked for it.

    The step waits for a copy in memory alone. A thread writes it, with the metrics in front of it, so that there never
    is a state whose metrics are missing.

    Args:
        spec: how often.
        state: what is saved.
        checkpoints: where to.
        batches: whose position is saved with it.
        skipped: where what they left out is written, by every process.
        log: of metrics, in the first process.
        writer: what writes, in the first process.
        world: the processes, all of which call this together.
        signals: what has been asked for meanwhile.
        saved_step: the step after which the state was saved last.
    """

    spec: TrainingSpec
    state: RunState
    checkpoints: CheckpointFolder
    batches: BatchSource[Batch]
    skipped: SkippedFolder
    log: MetricLog | None
    writer: BackgroundWriter
    world: World
    signals: Postponed
    saved_step: int
    _saved_at: float = attrs.field(init=False)
    _known_lost: int = attrs.field(default=0, init=False)

    @_saved_at.default
    def _began_at(self) -> float:
        return time.monotonic()

    @property
    def wishes(self) -> Wishes:
        """What this process wants now; time is what the first one's clock says."""
        due = time.monotonic() - self._saved_at >= 60 * self.spec.checkpoint_every_minutes
        return Wishes(
            stop=self.signals.requested,
            warned=self.signals.warned,
            save=(due and self.world.is_first) or self.writer.has_failed or self._num_lost() > self._known_lost,
        )

    def after_step(self, done: int, wishes: Wishes) -> None:
        """Save the state where that is due or wished for, and end the run where that is.

        Args:
            done: steps done.
            wishes: those of any process.

        Raises:
            Interrupted: if a process has heard a signal.
            OSError: if the state before could not be written.
        """
        if wishes.stop:
            self.stop(done, warned=wishes.warned)
        if wishes.save or wishes.fail or is_due(done, self.spec.checkpoint_every_steps, self.spec):
            self._save(done)

    def stop(self, done: int, *, warned: bool) -> None:
        """Save the state, unless it is, and end the run.

        Args:
            done: steps done.
            warned: whether a scheduler has warned a process.

        Raises:
            Interrupted: always.
            OSError: if the state cannot be written.
        """
        if done != self.saved_step:
            self._save(done)
        self.finish()
        kept = (
            f"stopped after step {done} of {self.spec.total_steps}, whose state is in {self.checkpoints.path}; the "
            "same command goes on from there"
        )
        self.signals.stop(
            kept if done else "stopped before the first step; the same command starts again", warned=warned
        )

    def finish(self) -> None:
        """Return when all is written, the metrics too; a process that left earlier would have the others ended.

        Raises:
            OSError: if something cannot be written.
        """

        def write() -> None:
            self.writer.wait()
            if self.log is not None:
                self.log.written()()

        self.world.from_first(write)

    @contextmanager
    def keeping(self, done: int) -> Iterator[None]:
        """Save the state if the next batch cannot be had, and say so in the error's message.

        Of several processes, that is done where all of them know of it, see `Wishes.fail`.

        Args:
            done: steps done.
        """
        try:
            yield
        except Exception as error:
            if done != self.saved_step and self.world.size == 1:
                try:
                    self._save(done)
                    self.finish()
                except OSError as failed:
                    logger.warning("%s", failed)
                    raise error from None
            if done and done == self.saved_step and isinstance(error, (ValueError, OSError)) and len(error.args) == 1:
                error.args = (f"{error}; the same command goes on from step {done}, whose state is kept",)
            raise

    def last_good(self) -> str | None:
        """Return the newest checkpoint, when it is written; None where there is none."""
        self.finish()
        return self.world.from_first(self.checkpoints.newest)

    def _num_lost(self) -> int:
        """Return how many workers the batches have lost, if they say so: what ended them may end this process too."""
        return int(getattr(self.batches, "num_lost", 0))

    def _save(self, done: int) -> None:
        self.world.from_first(self.writer.wait)
        self.skipped.write(self.batches.take_skips(done), step=done, rank=self.world.rank)
        state = self.state.snapshot(step=done, position=self.batches.position(done))
        self.saved_step, self._saved_at, self._known_lost = done, time.monotonic(), self._num_lost()
        if state is None:
            return
        path, write_log = self.checkpoints.step(done), None if self.log is None else self.log.written()

        def write() -> None:
            if write_log is not None:
                write_log()
            state.write(path)
            self.checkpoints.remove_old()

        self.writer.begin(write)


@attrs.frozen(kw_only=True)
class Looks:
    """Evaluates the model in the first process while the others wait without limit; a signal interrupts it.

    Args:
        evaluate: what measures; None measures nothing.
        log: where its numbers go, in the first process.
        world: the processes, all of which call this together.
        signals: what has been asked for meanwhile.
    """

    evaluate: Evaluate | None
    log: MetricLog | None
    world: World
    signals: Postponed

    def __call__(self, model: nn.Module, done: int) -> bool:
        """Evaluate and log, unless the log has it already; return whether no process was interrupted.

        Args:
            model: what is looked at; its mode is afterwards as it was.
            done: steps done.
        """
        return self.world.from_first(lambda: self._look(model, done))

    def _look(self, model: nn.Module, done: int) -> bool:
        if self.log is None or self.evaluate is None or self.log.was_evaluated(done - 1):
            return True
        try:
            with self.signals.not_now(), evaluating(model):
                values = self.evaluate(merged(model), done)
            self.log.write(done - 1, values)
        except Interrupted:
            return False
        return True


def is_due(done: int, every_steps: int | None, spec: TrainingSpec) -> bool:
    """Return whether something is due after a step: every `every_steps`, and at the end."""
    return done == spec.total_steps or (every_steps is not None and done % every_steps == 0)
