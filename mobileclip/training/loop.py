"""The training loop of one process; several processes can train one model together."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

import attrs
import torch
from torch import nn

from mobileclip import storage
from mobileclip.data import Batch, BatchSource
from mobileclip.data.randomness import derived_seed
from mobileclip.hardware import in_float64
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.progress import Progress
from mobileclip.reparam import evaluating
from mobileclip.terminal import get_logger
from mobileclip.terminal.interruption import Interrupted, Postponed, postponed
from mobileclip.training.checkpoint import BackgroundWriter, CheckpointFolder, RunState
from mobileclip.training.distributed import Prefetcher, World
from mobileclip.training.ema import MovingAverage
from mobileclip.training.lora import merged
from mobileclip.training.objectives import Objective, build_objective, max_logit_scale
from mobileclip.training.optimizer import set_learning_rate
from mobileclip.training.records import FOLDER, MetricLog, SkippedFolder

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from mobileclip.data import ReinforcementCard
    from mobileclip.training.spec import TrainingSpec

logger = get_logger(__name__)

_KEYS_SHOWN = 8

Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""Function that maps a model (in evaluation mode, adapters merged) and the number of steps to metrics by name."""


@attrs.frozen(kw_only=True)
class TrainingResult:
    """The result of a training run.

    Args:
        model: the student's moving average in evaluation mode; the student itself if this process keeps no average.
        num_steps: number of steps that this call ran, without steps before the resumption.
    """

    model: nn.Module
    num_steps: int


def train(
    spec: TrainingSpec,
    *,
    model: nn.Module,
    batches: BatchSource[Batch],
    output: storage.AnyPath,
    card: ReinforcementCard | None = None,
    world: World | None = None,
    evaluate: Evaluate | None = None,
    title: str = "train",
    console: Console | None = None,
) -> TrainingResult:
    """Train `model`, or resume from the newest checkpoint in `output`.

    On the CPU, losses and weights of a killed and resumed run are bit-identical to those of an uninterrupted run.

    Args:
        spec: training options.
        model: an image-text model, classifier, captioner or text tower, depending on the loss; trained in place.
        batches: training data of this process.
        output: folder for `metrics.jsonl` and `checkpoints/`, or a URL such as `s3://bucket/run`. The run locks a
            folder, but not a URL, so do not start two runs with the same URL.
        card: card of the reinforced data; None without a card. The loss must have the dims and, unless `tuned_scales`
            is set, the logit scales of the card's teachers.
        world: the processes of the run, with this process's device; None for a single process on the CPU.
        evaluate: function that rank 0 calls with the model, or with its moving average if the run keeps one, every
            `evaluate_every_steps` and at the end; the run logs the returned metrics. None for no evaluation.
        title: title of the progress display.
        console: console of the progress display; None for no display.

    Raises:
        ValueError: if the loss and the data have different teachers; if the checkpoint is from a run with different
            options; if a second run writes to the folder; if the batches end too early or lack inputs of the loss; or
            if `channels_last` is set on the CPU.
        Interrupted: after a signal; the run first finishes the current step and saves the state. If no command of the
            library calls this function, the only such signal is Ctrl-C.
        FloatingPointError: if the loss or its gradient is not finite. The message has the step, some keys of the batch
            and the last checkpoint; `diverged.json` lists all keys. The weights stay as before the step.
    """
    world = World() if world is None else world
    stated = spec.loss.about_teachers if isinstance(spec.loss, ReinforcedLossSpec) else {}
    if card is not None and (wrong := card.differences(stated)):
        raise ValueError(f"the loss does not fit the data: {'; '.join(wrong)}")
    with _alone(output, world):
        state = _new_state(spec, model, world)
        checkpoints = CheckpointFolder(storage.join(output, "checkpoints"), keep=spec.keep_checkpoints)
        skipped = SkippedFolder(storage.join(output, FOLDER))
        first, position = state.resume(checkpoints)
        world.from_first(lambda: skipped.forget_after(first))
        steps = range(first, spec.total_steps)
        minimised = _shared(state.objective, world)
        state.require_same(first)
        shown = console if world.is_first else None
        with (
            Progress(title, total=spec.total_steps, done=first, console=shown) as progress,
            postponed() as signals,
            BackgroundWriter() as writer,
        ):
            source = batches.stream(position) if steps else iter(())
            run = _Run(
                spec=spec,
                state=state,
                minimised=minimised,
                prefetcher=Prefetcher(source, count=len(steps), device=world.device, waiting=signals.not_now),
                batches=batches,
                output=output,
                checkpoints=checkpoints,
                skipped=skipped,
                log=_open_log(spec, output, first, world),
                evaluate=evaluate,
                progress=progress,
                signals=signals,
                writer=writer,
                saved_step=first,
            )
            if first:
                run.evaluate_if_due(first)
            run.begin(first)
            for step in steps:
                run.end(step + 1, run.step(step))
            run.finish()
    return TrainingResult(model=state.kept.eval(), num_steps=len(steps))


@attrs.frozen
class _StepRequests:
    """The actions that a process requests after a step; all processes carry out an action that any process requests.

    Args:
        stop: save the state and exit, after a signal.
        warned: whether the signal is a scheduler's warning of the time limit.
        save: save the state, because a checkpoint is due, the last save failed, or a loader worker died.
        fail: save the state and exit, because the batch source failed.
    """

    stop: bool
    warned: bool
    save: bool
    fail: bool


@attrs.define(kw_only=True)
class _Run:
    """Runs the steps; evaluation, saving and stopping happen after the same step in all processes.

    A save delays the run only while the state is copied in memory. A background thread then writes first the metrics
    and then the state, so that no saved state lacks its metrics.

    Args:
        spec: training options.
        state: state of the run, for checkpoints.
        minimised: the objective, possibly wrapped in DistributedDataParallel.
        prefetcher: batches, prefetched to the device.
        batches: source of the batches, for the position and skipped samples in checkpoints.
        output: folder or URL of the run.
        checkpoints: folder of the run's checkpoints.
        skipped: folder of the lists of skipped samples.
        log: log of metrics; None in all processes but the first.
        evaluate: evaluation function, for rank 0; None for no evaluation.
        progress: the progress display.
        signals: received signals, which end the run after a step.
        writer: background writer of checkpoints, which only rank 0 uses.
        saved_step: number of completed steps in the newest checkpoint.
    """

    spec: TrainingSpec
    state: RunState
    minimised: nn.Module
    prefetcher: Prefetcher[Batch]
    batches: BatchSource[Batch]
    output: storage.AnyPath
    checkpoints: CheckpointFolder
    skipped: SkippedFolder
    log: MetricLog | None
    evaluate: Evaluate | None
    progress: Progress
    signals: Postponed
    writer: BackgroundWriter
    saved_step: int
    _saved_at: float = attrs.field(factory=lambda: time.monotonic(), init=False)  # noqa: PLW0108 - looked up at each call
    _known_lost: int = attrs.field(default=0, init=False)

    @property
    def world(self) -> World:
        """The processes of the run; all of them must call the methods of this class together."""
        return self.state.world

    def begin(self, done: int) -> None:
        """Wait for the first batch; end the run if a process gets no batch or has received a signal."""
        self.prefetcher.advance()
        requests = self.world.gather(self._step_requests())
        if any(one.stop for one in requests):
            self.stop(done, warned=any(one.warned for one in requests))
        if any(one.fail for one in requests):
            self._fail(done)

    def step(self, step: int) -> _StepRequests:
        """Run one step; return the combined requests of all processes after the step.

        Raises:
            ValueError: if there is no batch for the step.
            FloatingPointError: if the loss or its gradient is not finite.
        """
        spec, state, objective = self.spec, self.state, self.state.objective
        started = time.perf_counter()
        with self._keeping(step):
            batch = self.prefetcher.take()
        if batch is None:
            raise ValueError(f"the batches ended at step {step} of {spec.total_steps}; repeat the data")

        set_learning_rate(state.optimizer, spec.schedule.learning_rate(step))
        state.optimizer.zero_grad(set_to_none=True)
        terms: tuple[Tensor, ...] = self.minimised(batch, step / spec.total_steps)
        scale = objective.loss_scale
        if scale is None:
            terms[-1].backward()  # type: ignore[no-untyped-call]
        else:
            scale.backward(terms[-1], objective.parameters())
        norm = nn.utils.clip_grad_norm_(objective.parameters(), spec.max_gradient_norm or math.inf)
        self.prefetcher.advance()  # while a GPU computes; a signal ends the wait, and all processes see it in this step

        values, requests = self._agreed(terms, norm)
        not_finite = [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]
        left_out = scale is not None and scale.leaves_out(is_finite=not not_finite)
        if not left_out:
            if not_finite:
                self._refuse_divergence(not_finite[0], values, step, batch)
            state.optimizer.step()
            objective.clamp_logit_scale()
            if state.average is not None:
                state.average.update(objective.model)

        self.progress.advance(count=len(batch) * self.world.size, detail=f"loss {values['loss']:.3f}")
        if left_out:
            logger.warning("step %d is skipped, since its loss or gradient overflows float16", step)
        elif self.log is not None and self._is_due(step + 1, spec.log_every_steps):
            scaled = {} if scale is None else {"loss_scale": scale.factor.item()}
            rate = {"learning_rate": spec.schedule.learning_rate(step)}
            times = {"seconds": time.perf_counter() - started, "seconds_waiting": self.prefetcher.seconds_waiting}
            self.log.write(step, {**values, **objective.readings, **scaled, **rate, **times})
        return requests

    def end(self, done: int, requests: _StepRequests) -> None:
        """Save the state, evaluate and end the run, each if due or requested.

        Args:
            done: number of completed steps.
            requests: combined requests of all processes.

        Raises:
            Interrupted: if a process has received a signal.
            OSError: if the previous state could not be written.
        """
        if requests.stop:
            self.stop(done, warned=requests.warned)
        if requests.save or requests.fail or self._is_due(done, self.spec.checkpoint_every_steps):
            self._save(done)
        if requests.fail:
            self._fail(done)
        self.evaluate_if_due(done)

    def evaluate_if_due(self, done: int) -> None:
        """Evaluate in rank 0 if due, while the other processes wait; a signal ends the evaluation."""
        is_due = self._is_due(done, self.spec.evaluate_every_steps)
        if is_due and not self.world.from_first(lambda: self._evaluated(done)):
            self.stop(done, warned=self.signals.warned)

    def stop(self, done: int, *, warned: bool) -> NoReturn:
        """Save the state if it is not saved yet, and end the run.

        Args:
            done: number of completed steps.
            warned: whether a process has received a scheduler's warning.

        Raises:
            Interrupted: always.
            OSError: if the state cannot be written.
        """
        if done != self.saved_step:
            self._save(done)
        self.finish()
        kept = (
            f"stopped after step {done} of {self.spec.total_steps}, saved in {self.checkpoints.path}; the "
            "same command resumes"
        )
        self.signals.stop(
            kept if done else "stopped before the first step; the same command starts again", warned=warned
        )

    def finish(self) -> None:
        """Wait until all files are written; otherwise torchrun would kill the writing process when another exits.

        Raises:
            OSError: if a file cannot be written.
        """

        def write() -> None:
            self.writer.wait()
            if self.log is not None:
                self.log.written()()

        self.world.from_first(write)

    def _is_due(self, done: int, every_steps: int | None) -> bool:
        """Return whether an action is due after a step: every `every_steps`, and at the end."""
        return done == self.spec.total_steps or (every_steps is not None and done % every_steps == 0)

    def _step_requests(self) -> _StepRequests:
        """Return this process's requests; saving by time depends on rank 0's clock."""
        due = time.monotonic() - self._saved_at >= 60 * self.spec.checkpoint_every_minutes
        return _StepRequests(
            stop=self.signals.requested,
            warned=self.signals.warned,
            save=(due and self.world.is_first) or self.writer.has_failed or self._num_lost() > self._known_lost,
            fail=self.prefetcher.has_failed,
        )

    def _num_lost(self) -> int:
        """Return the number of dead loader workers, 0 if unknown; the cause of a death may also kill this process."""
        return int(getattr(self.batches, "num_lost", 0))

    def _agreed(self, terms: tuple[Tensor, ...], norm: Tensor) -> tuple[dict[str, float], _StepRequests]:
        """Return mean metrics and combined requests of all processes, with one collective and one device transfer."""
        names, requests = self.state.objective.term_names, self._step_requests()
        own = in_float64(torch.stack([term.detach() for term in (*terms, norm)]))
        if self.world.group is not None:
            own = torch.cat([own, own.new_tensor(attrs.astuple(requests))])
        means = self.world.mean(own).tolist()
        values = {
            "loss": means[len(names)],
            **{name: mean for name, mean in zip(names, means, strict=False) if name is not None},
            "gradient_norm": means[len(terms)],
        }
        requested = means[len(terms) + 1 :]
        return values, _StepRequests(*(share > 0 for share in requested)) if requested else requests

    def _refuse_divergence(self, wrong: str, values: Mapping[str, float], step: int, batch: Batch) -> NoReturn:
        keys = [key for keys in self.world.gather(list(batch.keys)) for key in keys]
        self.finish()
        newest, path = self.world.from_first(self.checkpoints.newest), storage.join(self.output, "diverged.json")
        if self.world.is_first:
            report = {"step": step, **values, "checkpoint": newest, "keys": keys}
            storage.write_text(path, json.dumps(report, indent=1) + "\n")
        shown = ", ".join(map(repr, keys[:_KEYS_SHOWN])) + (", ..." if len(keys) > _KEYS_SHOWN else "")
        raise FloatingPointError(
            f"the {wrong.replace('_', ' ')} is {values[wrong]} at step {step}; the batch has the keys [{shown}]; "
            f"{path} lists all keys. The last good state is {newest or 'the beginning'}. Start from this state in a "
            "different output folder, with a lower learning rate, a longer warm-up or max_gradient_norm=1"
        )

    def _fail(self, done: int) -> NoReturn:
        """Raise the error of this process's batch source, or a ValueError if only another process's source failed."""
        self.finish()
        with self._keeping(done):
            self.prefetcher.take()
        raise ValueError(f"another process of the run got no batch after step {done}; see the error of that process")

    @contextmanager
    def _keeping(self, done: int) -> Iterator[None]:
        """If the source fails, save the state and add the saved step to the error's message.

        With several processes, this context does not save the state: after a step with the request
        `_StepRequests.fail`, all processes save the state together.
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
                error.args = (f"{error}; the same command resumes from the saved step {done}",)
            raise

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

    def _evaluated(self, done: int) -> bool:
        """Evaluate and log, unless the log already has the evaluation; return False if a signal arrived."""
        if self.log is None or self.evaluate is None or self.log.was_evaluated(done - 1):
            return True
        try:
            with self.signals.not_now(), evaluating(self.state.kept):
                values = self.evaluate(merged(self.state.kept), done)
            self.log.write(done - 1, values)
        except Interrupted:
            return False
        return True


@contextmanager
def _alone(output: storage.AnyPath, world: World) -> Iterator[None]:
    """Lock the folder for this run, since processes of a killed launcher may still be writing to the folder."""
    with ExitStack() as held:

        def hold() -> None:
            if not storage.is_remote(output):
                held.enter_context(storage.exclusive(storage.local_path(output)))

        world.from_first(hold)  # no other run may change the files that are read next
        yield


def _new_state(spec: TrainingSpec, model: nn.Module, world: World) -> RunState:
    """Return the run's state before the first step."""
    # Rank 0 draws the same random numbers as a single-process run.
    torch.manual_seed(spec.seed if world.is_first else derived_seed(spec.seed, "process", world.rank))
    least, most = spec.min_logit_scale, max_logit_scale(model)
    if least is not None and least > most:
        raise ValueError(
            f"min_logit_scale ({least}) exceeds the model's max_logit_scale ({most}); lower min_logit_scale"
        )
    average = MovingAverage(model, spec.ema_decay) if spec.ema_decay is not None and world.is_first else None
    objective = build_objective(spec.loss, spec=spec, model=model, world=world)
    if average is not None:
        average.module.to(world.device)
    return RunState(objective=objective, optimizer=spec.optimizer.build(objective), average=average, world=world)


def _open_log(spec: TrainingSpec, output: storage.AnyPath, first: int, world: World) -> MetricLog | None:
    tensorboard = storage.join(output, "tensorboard") if spec.tensorboard else None
    opened: list[MetricLog] = []  # in rank 0 only
    path = storage.join(output, "metrics.jsonl")
    world.from_first(lambda: opened.append(MetricLog(path, resume_step=first, tensorboard=tensorboard)))
    return opened[0] if opened else None


def _shared(objective: Objective, world: World) -> nn.Module:
    """Return the objective, wrapped to average gradients if the run has several processes."""
    if world.group is None:
        return objective
    from torch.nn.parallel import DistributedDataParallel

    some_unused = not objective.uses_all_weights
    return DistributedDataParallel(objective, process_group=world.group, find_unused_parameters=some_unused)
