"""A run from its choices to its report; what an earlier run finished is read, not done again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from mobileclip.encoders import save_model
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.terminal import say
from mobileclip.training import World, connected
from mobileclip.training.checkpoints.checkpoint import CheckpointFolder
from mobileclip.training.finetuning.interpolation import interpolate_weights
from mobileclip.training.finetuning.run_spec import FinetuneSpec
from mobileclip.training.finetuning.work.report import Results, table, write_report
from mobileclip.training.finetuning.work.steps import FINETUNED, RUN, SCORES, Steps, load
from mobileclip.training.finetuning.work.tasks import (
    Task,
    open_task,
    split,
    training_folder,
    write_training_data,
)

__all__ = ["FinetuneSpec", "finetune"]

CHOICES = "spec.json"
TRAINED_ON = "trained-on.txt"
INTERPOLATED = "interpolated.safetensors"


def finetune(spec: FinetuneSpec) -> Results | None:
    """Fine-tune, or do what an earlier run left undone of it; the results, or None in any process but the first.

    Under `torchrun`, every process calls this.

    Raises:
        ValueError: if something is missing or does not fit; the output folder holds a run with other choices; or a step
            says why it cannot go on.
        FloatingPointError: if the loss is not finite.
        TimeoutError: if the other processes did not come in time, or are gone; the message names them.
    """
    if spec.checkpoint is None or spec.data is None:
        missing = "--checkpoint" if spec.checkpoint is None else "--data"
        raise ValueError(f"{missing} is missing: what to fine-tune, and the pictures to do it on")
    _refuse_other(spec)
    train_part, test_part = _new_task(spec, spec.data)
    _refuse_other_data(spec, train_part)
    old = tuple(open_task(path, "auto", spec.templates, spec.rows) for path in spec.old_tasks)
    original = load(spec)
    with connected(spec.device, collective_seconds=spec.collective_seconds) as world:
        data = world.from_first(
            lambda: write_training_data(train_part, training_folder(train_part, spec.output / "data"))
        )
        steps = Steps(spec=spec, data=data, test=test_part, old=old)
        training = steps.training()
        model = steps.prepare()

        def begin() -> None:
            before = steps.scores(0.0, lambda: original, world.device)
            say(f"\n{table((before,))}\n")

        with _claimed(spec, train_part, world):
            world.from_first(begin)
            started = time.monotonic()
            finetuned = steps.finetune(model, training, world)
            seconds = time.monotonic() - started
    if not world.is_first:
        return None
    rows = tuple(
        steps.scores(alpha, partial(interpolate_weights, original, finetuned, alpha), world.device)
        for alpha in spec.alphas
    )
    save_model(interpolate_weights(original, finetuned, spec.keep_alpha), spec.output / INTERPOLATED)
    results = Results(rows=rows, seconds=seconds)
    write_report(spec.output, results)
    return results


def _refuse_other(spec: FinetuneSpec) -> None:
    path = spec.output / CHOICES
    if path.exists() and from_json(path.read_text(encoding="utf-8"), FinetuneSpec) != spec:
        raise ValueError(f"{spec.output} holds a run with other choices ({path}); delete it or give --output")


def _refuse_other_data(spec: FinetuneSpec, task: Task) -> None:
    path = spec.output / TRAINED_ON
    if path.exists() and path.read_text(encoding="utf-8") != task.fingerprint:
        raise ValueError(
            f"{spec.output} holds a run on other pictures, or on what {task.name} was before it changed; delete it or "
            "give --output"
        )


@contextmanager
def _claimed(spec: FinetuneSpec, task: Task, world: World) -> Iterator[None]:
    """Mark the output folder as made with `spec`; one that is left without a checkpoint is free for other choices."""
    world.from_first(lambda: _claim(spec, task))
    try:
        yield
    except BaseException:
        if world.is_first:
            with suppress(OSError):  # what ended the run says more
                _give_back(spec)
        raise


def _claim(spec: FinetuneSpec, task: Task) -> None:
    write_text(spec.output / TRAINED_ON, task.fingerprint)
    write_text(spec.output / CHOICES, to_json(spec, indent=1))


def _give_back(spec: FinetuneSpec) -> None:
    checkpoints = CheckpointFolder(spec.output / RUN / "checkpoints")
    if checkpoints.newest() is None and not (spec.output / FINETUNED).exists():
        for name in (CHOICES, TRAINED_ON):
            (spec.output / name).unlink(missing_ok=True)
        shutil.rmtree(spec.output / SCORES, ignore_errors=True)  # of a model that need not be the next one's


def _new_task(spec: FinetuneSpec, data: str) -> tuple[Task, Task]:
    """Return what is trained on, and what is tested on."""
    new = open_task(data, spec.kind, spec.templates, spec.rows)
    if spec.test is None:
        return split(new, spec.held_out)
    return new, open_task(spec.test, spec.kind, spec.templates, spec.rows)
