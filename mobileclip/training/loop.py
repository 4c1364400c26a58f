"""The training loop, from top to bottom: one process, or one of several that train the same model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

import attrs
import torch
from torch import nn

from mobileclip import storage
from mobileclip.data import Batch, BatchSource
from mobileclip.data.randomness import derived_seed
from mobileclip.hardware.devices import in_float64
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.progress import Progress
from mobileclip.terminal import get_logger
from mobileclip.terminal.interruption import postponed
from mobileclip.training.checkpoint import BackgroundWriter, CheckpointFolder, RunState
from mobileclip.training.distributed import Feed, World
from mobileclip.training.ema import MovingAverage
from mobileclip.training.objectives import Objective, build_objective, max_logit_scale
from mobileclip.training.optimizer import set_learning_rate
from mobileclip.training.records import FOLDER, MetricLog, SkippedFolder
from mobileclip.training.saving import Evaluate, Looks, Saving, Wishes, is_due

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from mobileclip.data import ReinforcementCard
    from mobileclip.training.spec import TrainingSpec

logger = get_logger(__name__)

_KEYS_SHOWN = 8


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
        kept = model if state.average is None else state.average.module
        with (
            Progress(
                title, total=spec.total_steps, done=first, console=console if world.is_first else None
            ) as progress,
            postponed() as signals,
            BackgroundWriter() as writer,
        ):
            log = _open_log(spec, output, first, world)
            looks = Looks(evaluate=evaluate, log=log, world=world, signals=signals)
            saving = Saving(
                spec=spec,
                state=state,
                checkpoints=checkpoints,
                batches=batches,
                skipped=skipped,
                log=log,
                writer=writer,
                world=world,
                signals=signals,
                saved_step=first,
            )
            if first and is_due(first, spec.evaluate_every_steps, spec) and not looks(kept, first):
                saving.stop(first, warned=signals.warned)
            source = batches.stream(position) if steps else iter(())
            feed = Feed(source, count=len(steps), device=world.device, waiting=signals.not_now)
            stepping = _Stepping(
                spec=spec, state=state, minimised=minimised, feed=feed, saving=saving, output=output, progress=progress
            )
            stepping.begin(first)
            for step in steps:
                wishes = stepping.make(step)
                saving.after_step(step + 1, wishes)
                if wishes.fail:
                    stepping.fail(step + 1)
                if is_due(step + 1, spec.evaluate_every_steps, spec) and not looks(kept, step + 1):
                    saving.stop(step + 1, warned=signals.warned)
            saving.finish()
    return TrainingResult(model=kept.eval(), num_steps=len(steps))


@attrs.frozen(kw_only=True)
class _Stepping:
    """Makes the steps of a run.

    Args:
        spec: how to train.
        state: what a step changes.
        minimised: the objective, as it is called.
        feed: of the batches.
        saving: of the state, and the log.
        output: folder of the run.
        progress: where each step is shown.
    """

    spec: TrainingSpec
    state: RunState
    minimised: nn.Module
    feed: Feed[Batch]
    saving: Saving
    output: storage.AnyPath
    progress: Progress

    def begin(self, done: int) -> None:
        """Wait for the first batch, and end the run where a process gets none, or has heard a signal.

        Args:
            done: steps done.

        Raises:
            Interrupted: if one has.
        """
        world = self.state.world
        self.feed.advance()
        wishes = world.gather(attrs.evolve(self.saving.wishes, fail=self.feed.has_failed))
        if any(one.stop for one in wishes):
            self.saving.stop(done, warned=any(one.warned for one in wishes))
        if any(one.fail for one in wishes):
            self.fail(done)

    def make(self, step: int) -> Wishes:
        """Make a step; return what any process wishes behind it.

        Raises:
            ValueError: if there is no batch for it.
            FloatingPointError: if the loss or its gradient is not finite.
        """
        spec, state, feed, world = self.spec, self.state, self.feed, self.state.world
        started = time.perf_counter()
        batch = self._next_batch(step)
        set_learning_rate(state.optimizer, spec.schedule.learning_rate(step))
        terms, norm = _gradient(self.minimised, batch, state, step / spec.total_steps)
        feed.advance()  # while a GPU computes; a signal ends the wait, and all hear of it with this step
        own = attrs.evolve(self.saving.wishes, fail=feed.has_failed)
        values, wishes = _agreed(terms, norm, own, world, state.objective.term_names)
        scale = state.objective.loss_scale
        left_out = scale is not None and scale.leaves_out(is_finite=not _not_finite(values))
        if not left_out:
            _refuse_divergence(values, step, batch, output=self.output, saving=self.saving, world=world)
            state.optimizer.step()
            state.objective.after_step()
            if state.average is not None:
                state.average.update(state.objective.model)

        self.progress.advance(count=len(batch) * world.size, detail=f"loss {values['loss']:.3f}")
        if left_out:
            logger.warning("step %d is left out, since its loss or gradient overflows float16", step)
        else:
            self._log(step, values, seconds=time.perf_counter() - started)
        return wishes

    def fail(self, done: int) -> NoReturn:
        """End the run, whose state is saved, as a process gets no further batch.

        Args:
            done: steps done.

        Raises:
            Exception: what its source raised; in the others a ValueError.
        """
        self.saving.finish()
        with self.saving.keeping(done):
            self.feed.take()
        raise ValueError(f"another process of the run gets no batch behind step {done}, and says why")

    def _next_batch(self, step: int) -> Batch:
        with self.saving.keeping(step):
            batch = self.feed.take()
        if batch is None:
            raise ValueError(f"the batches ended at step {step} of {self.spec.total_steps}; let them go round")
        return batch

    def _log(self, step: int, values: Mapping[str, float], *, seconds: float) -> None:
        log, spec = self.saving.log, self.spec
        if log is not None and is_due(step + 1, spec.log_every_steps, spec):
            rate = spec.schedule.learning_rate(step)
            times = {"seconds": seconds, "seconds_waiting": self.feed.seconds_waiting}
            scale = self.state.objective.loss_scale
            scaled = {} if scale is None else {"loss_scale": scale.factor.item()}
            readings = {**self.state.objective.readings, **scaled}
            log.write(step, {**values, **readings, "learning_rate": rate, **times})


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
    opened: list[MetricLog] = []
    world.from_first(
        lambda: opened.append(
            MetricLog(storage.join(output, "metrics.jsonl"), resume_step=first, tensorboard=tensorboard)
        )
    )
    return opened[0] if opened else None


def _shared(objective: Objective, world: World) -> nn.Module:
    """Return the objective as it is called: with several processes, its gradients become the mean of theirs."""
    if world.group is None:
        return objective
    from torch.nn.parallel import DistributedDataParallel

    some_unused = not objective.uses_all_weights
    return DistributedDataParallel(objective, process_group=world.group, find_unused_parameters=some_unused)


def _gradient(
    minimised: nn.Module, batch: Batch, state: RunState, progress: float
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Compute the gradient, clipped; return the loss's terms, their sum last, and its norm before clipping."""
    objective = state.objective
    state.optimizer.zero_grad(set_to_none=True)
    terms: tuple[Tensor, ...] = minimised(batch, progress)
    if objective.loss_scale is None:
        terms[-1].backward()  # type: ignore[no-untyped-call]
    else:
        objective.loss_scale.backward(terms[-1], objective.parameters())
    norm = nn.utils.clip_grad_norm_(objective.parameters(), objective.spec.max_gradient_norm or math.inf)
    return terms, norm


def _agreed(
    terms: tuple[Tensor, ...],
    norm: Tensor,
    wishes: Wishes,
    world: World,
    names: tuple[str | None, ...],
) -> tuple[dict[str, float], Wishes]:
    """Return the loss of all processes, and what any of them wishes: one exchange, one transfer from the device."""
    own = in_float64(torch.stack([term.detach() for term in (*terms, norm)]))
    if world.group is not None:
        own = torch.cat([own, own.new_tensor(attrs.astuple(wishes))])
    means = world.mean(own).tolist()
    values = {
        "loss": means[len(names)],
        **{name: mean for name, mean in zip(names, means, strict=False) if name is not None},
        "gradient_norm": means[len(terms)],
    }
    wished = means[len(terms) + 1 :]
    return values, Wishes(*(share > 0 for share in wished)) if wished else wishes


def _not_finite(values: Mapping[str, float]) -> list[str]:
    return [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]


def _refuse_divergence(
    values: Mapping[str, float],
    step: int,
    batch: Batch,
    *,
    output: storage.AnyPath,
    saving: Saving,
    world: World,
) -> None:
    wrong = _not_finite(values)
    if not wrong:
        return
    keys = [key for keys in world.gather(list(batch.keys)) for key in keys]
    newest, path = saving.last_good(), storage.join(output, "diverged.json")
    if world.is_first:
        report = {"step": step, **values, "checkpoint": newest, "keys": keys}
        storage.write_text(path, json.dumps(report, indent=1) + "\n")
    shown = ", ".join(map(repr, keys[:_KEYS_SHOWN])) + (", ..." if len(keys) > _KEYS_SHOWN else "")
    raise FloatingPointError(
        f"the {wrong[0].replace('_', ' ')} is {values[wrong[0]]} at step {step}; the batch's keys are [{shown}], all "
        f"in {path}. The last good state is {newest or 'the beginning'}. Try a lower "
        "learning rate, a longer warm-up or max_gradient_norm=1, from its weights in another output folder"
    )
