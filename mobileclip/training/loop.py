"""The training loop, from top to bottom: one process, or one of several that train the same model."""

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
from mobileclip.training.distributed import Feed, World
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
"""From the model, in evaluation mode and with adapters merged, and the steps done to named numbers."""


@attrs.frozen(kw_only=True)
class TrainingResult:
    """The result of a training run.

    Args:
        model: the trained student, in evaluation mode: the moving average where the run keeps one.
        num_steps: steps that this call made; fewer than the run's where it resumed.
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
    """Train `model` on named batches; go on from the newest checkpoint in `output`, if there is one.

    On the CPU, a run that is killed and resumed gives the same losses and weights, to the bit, as one that is not.

    Args:
        spec: how to train.
        model: an image-text model or a classifier, as the loss has it; trained in place.
        batches: what to train on; with several processes, this one's share.
        output: folder of `metrics.jsonl` and `checkpoints/`, which is created, or a URL such as `s3://bucket/run`,
            which no other run may have meanwhile: nothing there tells one.
        card: of the reinforced data, where it has one: the loss must split the embeddings as its teachers do. Other
            logit scales than theirs are logged.
        world: the processes that train together, and this one's device; None for one on the CPU.
        evaluate: called by the first process with the model, or its average, every `evaluate_every_steps` and at the
            end; its numbers are logged.
        title: what progress is shown under.
        console: where progress is shown; none shows nothing.

    Raises:
        ValueError: if the loss has other teachers than the data, the checkpoint is another run's, another run writes to
            the folder, the batches end too early or lack what the loss needs, or `channels_last` is asked for on the
            CPU.
        Interrupted: if a signal has asked for it, SIGTERM where a command listens; the state after the step is saved.
        FloatingPointError: if the loss or its gradient is not finite; the message has the step, the batch's keys and
            the last checkpoint, and `diverged.json` all keys. The weights are those from before the step.
    """
    world = World() if world is None else world
    stated = spec.loss.about_teachers if isinstance(spec.loss, ReinforcedLossSpec) else {}
    if card is not None and (wrong := card.differences(stated)):
        raise ValueError(f"the loss contradicts the data: {'; '.join(wrong)}")
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
                feed=Feed(source, count=len(steps), device=world.device, waiting=signals.not_now),
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
                run.look(first)
            run.begin(first)
            for step in steps:
                run.end(step + 1, run.step(step))
            run.finish()
    return TrainingResult(model=state.kept.eval(), num_steps=len(steps))


@attrs.frozen
class _Wishes:
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
    fail: bool


@attrs.define(kw_only=True)
class _Run:
    """Steps, logs, evaluates, saves and stops, after the same step in all processes.

    Saving waits for a copy in memory alone. A thread writes it, with the metrics in front of it, so that there never is
    a state whose metrics are missing.

    Args:
        spec: how to train.
        state: what a step changes, and what is saved.
        minimised: the objective, as it is called.
        feed: of the batches.
        batches: their source, whose position is saved.
        output: folder of the run.
        checkpoints: where the state is saved.
        skipped: where what the batches left out is written, by every process.
        log: of metrics, in the first process.
        evaluate: what measures, in the first process; None measures nothing.
        progress: where each step is shown.
        signals: what has been asked for meanwhile.
        writer: what writes, in the first process.
        saved_step: the step after which the state was saved last.
    """

    spec: TrainingSpec
    state: RunState
    minimised: nn.Module
    feed: Feed[Batch]
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
    _saved_at: float = attrs.field(factory=lambda: time.monotonic(), init=False)  # noqa: PLW0108 - looked up anew
    _known_lost: int = attrs.field(default=0, init=False)

    @property
    def world(self) -> World:
        """The processes, all of which call the methods together."""
        return self.state.world

    def begin(self, done: int) -> None:
        """Wait for the first batch, and end the run where a process gets none, or has heard a signal."""
        self.feed.advance()
        wishes = self.world.gather(self._wishes())
        if any(one.stop for one in wishes):
            self.stop(done, warned=any(one.warned for one in wishes))
        if any(one.fail for one in wishes):
            self._fail(done)

    def step(self, step: int) -> _Wishes:
        """Make a step; return what any process wishes behind it.

        Raises:
            ValueError: if there is no batch for it.
            FloatingPointError: if the loss or its gradient is not finite.
        """
        spec, state, objective = self.spec, self.state, self.state.objective
        started = time.perf_counter()
        with self._keeping(step):
            batch = self.feed.take()
        if batch is None:
            raise ValueError(f"the batches ended at step {step} of {spec.total_steps}; let them go round")

        set_learning_rate(state.optimizer, spec.schedule.learning_rate(step))
        state.optimizer.zero_grad(set_to_none=True)
        terms: tuple[Tensor, ...] = self.minimised(batch, step / spec.total_steps)
        scale = objective.loss_scale
        if scale is None:
            terms[-1].backward()  # type: ignore[no-untyped-call]
        else:
            scale.backward(terms[-1], objective.parameters())
        norm = nn.utils.clip_grad_norm_(objective.parameters(), spec.max_gradient_norm or math.inf)
        self.feed.advance()  # while a GPU computes; a signal ends the wait, and all hear of it with this step

        values, wishes = self._agreed(terms, norm)
        not_finite = [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]
        left_out = scale is not None and scale.leaves_out(is_finite=not not_finite)
        if not left_out:
            if not_finite:
                self._refuse_divergence(not_finite[0], values, step, batch)
            state.optimizer.step()
            objective.after_step()
            if state.average is not None:
                state.average.update(objective.model)

        self.progress.advance(count=len(batch) * self.world.size, detail=f"loss {values['loss']:.3f}")
        if left_out:
            logger.warning("step %d is left out, since its loss or gradient overflows float16", step)
        elif self.log is not None and self._is_due(step + 1, spec.log_every_steps):
            scaled = {} if scale is None else {"loss_scale": scale.factor.item()}
            rate = {"learning_rate": spec.schedule.learning_rate(step)}
            times = {"seconds": time.perf_counter() - started, "seconds_waiting": self.feed.seconds_waiting}
            self.log.write(step, {**values, **objective.readings, **scaled, **rate, **times})
        return wishes

    def end(self, done: int, wishes: _Wishes) -> None:
        """Save the state and evaluate where that is due or wished for, and end the run where that is.

        Args:
            done: steps done.
            wishes: those of any process.

        Raises:
            Interrupted: if a process has heard a signal.
            OSError: if the state before could not be written.
        """
        if wishes.stop:
            self.stop(done, warned=wishes.warned)
        if wishes.save or wishes.fail or self._is_due(done, self.spec.checkpoint_every_steps):
            self._save(done)
        if wishes.fail:
            self._fail(done)
        self.look(done)

    def look(self, done: int) -> None:
        """Evaluate in the first process where that is due, while the others wait without limit; a signal ends it."""
        is_due = self._is_due(done, self.spec.evaluate_every_steps)
        if is_due and not self.world.from_first(lambda: self._evaluated(done)):
            self.stop(done, warned=self.signals.warned)

    def stop(self, done: int, *, warned: bool) -> NoReturn:
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

    def _is_due(self, done: int, every_steps: int | None) -> bool:
        """Return whether something is due after a step: every `every_steps`, and at the end."""
        return done == self.spec.total_steps or (every_steps is not None and done % every_steps == 0)

    def _wishes(self) -> _Wishes:
        """Return what this process wants now; time is what the first one's clock says."""
        due = time.monotonic() - self._saved_at >= 60 * self.spec.checkpoint_every_minutes
        return _Wishes(
            stop=self.signals.requested,
            warned=self.signals.warned,
            save=(due and self.world.is_first) or self.writer.has_failed or self._num_lost() > self._known_lost,
            fail=self.feed.has_failed,
        )

    def _num_lost(self) -> int:
        """Return how many workers the batches have lost, if they say so: what ended them may end this process too."""
        return int(getattr(self.batches, "num_lost", 0))

    def _agreed(self, terms: tuple[Tensor, ...], norm: Tensor) -> tuple[dict[str, float], _Wishes]:
        """Return the loss of all processes, and what any of them wishes: one exchange, one transfer from the device."""
        names, wishes = self.state.objective.term_names, self._wishes()
        own = in_float64(torch.stack([term.detach() for term in (*terms, norm)]))
        if self.world.group is not None:
            own = torch.cat([own, own.new_tensor(attrs.astuple(wishes))])
        means = self.world.mean(own).tolist()
        values = {
            "loss": means[len(names)],
            **{name: mean for name, mean in zip(names, means, strict=False) if name is not None},
            "gradient_norm": means[len(terms)],
        }
        wished = means[len(terms) + 1 :]
        return values, _Wishes(*(share > 0 for share in wished)) if wished else wishes

    def _refuse_divergence(self, wrong: str, values: Mapping[str, float], step: int, batch: Batch) -> NoReturn:
        keys = [key for keys in self.world.gather(list(batch.keys)) for key in keys]
        self.finish()
        newest, path = self.world.from_first(self.checkpoints.newest), storage.join(self.output, "diverged.json")
        if self.world.is_first:
            report = {"step": step, **values, "checkpoint": newest, "keys": keys}
            storage.write_text(path, json.dumps(report, indent=1) + "\n")
        shown = ", ".join(map(repr, keys[:_KEYS_SHOWN])) + (", ..." if len(keys) > _KEYS_SHOWN else "")
        raise FloatingPointError(
            f"the {wrong.replace('_', ' ')} is {values[wrong]} at step {step}; the batch's keys are [{shown}], all "
            f"in {path}. The last good state is {newest or 'the beginning'}. Try a lower "
            "learning rate, a longer warm-up or max_gradient_norm=1, from its weights in another output folder"
        )

    def _fail(self, done: int) -> NoReturn:
        """End the run, whose state is saved, with what this process's source raised, or as another one's did."""
        self.finish()
        with self._keeping(done):
            self.feed.take()
        raise ValueError(f"another process of the run gets no batch behind step {done}, and says why")

    @contextmanager
    def _keeping(self, done: int) -> Iterator[None]:
        """Save the state if the next batch cannot be had, and say so in the error's message.

        Of several processes, that is done where all of them know of it, see `_Wishes.fail`.
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
        """Evaluate and log, unless the log has it already; return whether no signal came."""
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
    """Keep the folder for this run: the processes of a killed launcher may live on and write there."""
    with ExitStack() as held:

        def hold() -> None:
            if not storage.is_remote(output):
                held.enter_context(storage.exclusive(storage.local_path(output)))

        world.from_first(hold)  # what is read there must not be another run's
        yield


def _new_state(spec: TrainingSpec, model: nn.Module, world: World) -> RunState:
    """Return what the steps will change, as it is before the first one."""
    # The first process draws as one that is alone.
    torch.manual_seed(spec.seed if world.is_first else derived_seed(spec.seed, "process", world.rank))
    least, most = spec.min_logit_scale, max_logit_scale(model)
    if least is not None and least > most:
        raise ValueError(f"min_logit_scale ({least}) exceeds the model's max_logit_scale ({most}); lower it")
    average = MovingAverage(model, spec.ema_decay) if spec.ema_decay is not None and world.is_first else None
    objective = build_objective(spec.loss, spec=spec, model=model, world=world)
    if average is not None:
        average.module.to(world.device)
    return RunState(objective=objective, optimizer=spec.optimizer.build(objective), average=average, world=world)


def _open_log(spec: TrainingSpec, output: storage.AnyPath, first: int, world: World) -> MetricLog | None:
    tensorboard = storage.join(output, "tensorboard") if spec.tensorboard else None
    opened: list[MetricLog] = []  # in the first process alone
    path = storage.join(output, "metrics.jsonl")
    world.from_first(lambda: opened.append(MetricLog(path, resume_step=first, tensorboard=tensorboard)))
    return opened[0] if opened else None


def _shared(objective: Objective, world: World) -> nn.Module:
    """Return the objective as it is called: with several processes, its gradients become the mean of theirs."""
    if world.group is None:
        return objective
    from torch.nn.parallel import DistributedDataParallel

    some_unused = not objective.uses_all_weights
    return DistributedDataParallel(objective, process_group=world.group, find_unused_parameters=some_unused)
