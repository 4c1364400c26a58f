"""What `test_distributed.py` starts under torchrun: runs of two processes, whose results go to files."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import torch

from mobileclip.data import LabelledBatch
from mobileclip.tensor_files import CheckpointError
from mobileclip.training import CrossEntropySpec, World, process_group, train
from mobileclip.training.checkpoint import StateFile, digest, read_state
from tests.training import class_runs
from tests.training.runs import Batches, KilledError, batch_of, new_model, share_of, training_spec
from tests.training.test_captions import CAPTIONER, CAPTIONS_ALONE, caption_batch
from tests.training.test_objective import TRANSFORMERS


def share(world: World, **changes) -> Batches:
    return Batches(make=share_of(world.rank, world.size), **changes)


def part_of(world: World) -> tuple[int, int]:
    part = 8 // world.size
    return world.rank * part, (world.rank + 1) * part


def compare_with_one_process(world: World, output: Path) -> None:
    """Train a model without batch norm, whose result does not depend on how a batch is divided."""
    torch.manual_seed(0)
    train(training_spec(8), model=TRANSFORMERS.build(), batches=share(world), output=output / "two", world=world)


def classify(world: World, output: Path) -> None:
    """Train a classifier without batch norm and without mixing, in which every process draws for itself."""
    spec = class_runs.training_spec(6, loss=CrossEntropySpec(label_smoothing=0.1))

    def make(step: int) -> LabelledBatch:
        return class_runs.class_batch(step).rows(*part_of(world))

    model = class_runs.new_classifier(class_runs.TRANSFORMER)
    train(spec, model=model, batches=Batches(make=make), output=output / "classifier", world=world)


def write_captions(world: World, output: Path) -> None:
    """Train a captioner with captions alone, whose other weights get no gradient."""
    torch.manual_seed(0)
    batches = Batches(make=lambda step: caption_batch(step).rows(*part_of(world)))
    train(CAPTIONS_ALONE, model=CAPTIONER.build(), batches=batches, output=output / "captions", world=world)


def resume(world: World, output: Path) -> None:
    """Train as a whole, and killed and resumed away from the checkpoints, which come every third step."""
    spec = training_spec(8)
    train(spec, model=new_model(), batches=share(world), output=output / "whole", world=world)
    for stop in (2, 5, 7):
        with suppress(KilledError):
            train(
                spec,
                model=new_model(),
                batches=share(world, stop=stop, killed=True),
                output=output / "parts",
                world=world,
            )
    train(spec, model=new_model(), batches=share(world), output=output / "parts", world=world)


def leave_out(world: World, output: Path) -> None:
    """Train in float16 where one of the processes meets a NaN, and write down the weights of both."""

    def spoiled(step: int):
        batch = share_of(world.rank, world.size)(step)
        if step == 6 and world.rank == 1:
            batch.teacher_image[0, 0] = torch.nan
        return batch

    torch.manual_seed(0)
    spec, model = training_spec(8, precision="float16", ema_decay=None), TRANSFORMERS.build()
    train(spec, model=model, batches=Batches(make=spoiled), output=output / "narrow", world=world)
    (output / f"narrow-{world.rank}.txt").write_text(digest(model.state_dict()))


def refuse(world: World, output: Path) -> None:
    """Write down what every process says when one of them meets a NaN, or has a smaller batch than the other."""

    def spoiled(step: int):
        batch = share_of(world.rank, world.size)(step)
        if step == 4 and world.rank == 1:
            batch.teacher_image[0, 0] = torch.nan
        return batch

    def uneven(step: int):
        return batch_of(step).rows(0, 4 - world.rank)

    messages = {}
    for name, make in (("diverged", spoiled), ("uneven", uneven)):
        try:
            train(training_spec(8), model=new_model(), batches=Batches(make=make), output=output / name, world=world)
        except (FloatingPointError, ValueError) as error:  # noqa: PERF203 - two runs
            messages[name] = f"{type(error).__name__}: {error}"
    (output / f"messages-{world.rank}.json").write_text(json.dumps(messages))


def find_others(world: World, output: Path) -> None:
    """Go on from a checkpoint that the first process alone has, then from two that differ, then from one that has more.

    What every process says is written down.
    """
    own = output / f"disk-{world.rank}" / "checkpoints"
    before = output / "whole" / "checkpoints" / "step-00000006.safetensors"
    own.mkdir(parents=True)
    if world.is_first:
        shutil.copy(before, own)
    world.gather(world.rank)
    train(training_spec(8), model=new_model(), batches=share(world), output=own.parent, world=world)
    if world.is_first:
        own.parent.rename(output / "disk-0-before")

    messages = []
    for there in (("step-00000006", "step-00000006"), ("", "step-00000006"), ("step-00000003", "step-00000006")):
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        if name := there[world.rank]:
            path = own / f"{name}.safetensors"
            shutil.copy(before, path)
            if world.rank == 1:
                content = read_state(path)
                tensors = {**content.tensors, "objective/model.logit_scale": torch.tensor(1.0)}
                StateFile(tensors=tensors, metadata=content.metadata).write(path)
        world.gather(world.rank)
        try:
            train(training_spec(8), model=new_model(), batches=share(world), output=own.parent, world=world)
        except ValueError as error:
            messages.append(str(error))
    (output / f"found-{world.rank}.json").write_text(json.dumps(messages))


def share_errors(world: World, output: Path) -> None:
    """Write down what every process gets of what the first one does alone: a value, and an error."""

    def fail() -> None:
        raise CheckpointError(f"process {world.rank} says no")

    said = [world.from_first(lambda: f"made by {world.rank}")]
    try:
        world.from_first(fail)
    except CheckpointError as error:
        said.append(str(error))
    tensors = {"a": torch.arange(3) + world.rank, "b": torch.tensor(world.rank, dtype=torch.bfloat16)}
    received = world.broadcast(tensors if world.is_first else {})
    said += [f"{received['a'].tolist()} {received['b'].item()}"]
    (output / f"said-{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu") as connected_world:
        for part in (
            compare_with_one_process,
            classify,
            write_captions,
            resume,
            leave_out,
            refuse,
            find_others,
            share_errors,
        ):
            part(connected_world, Path(sys.argv[1]))
