"""What `test_distributed.py` starts under torchrun: runs of two processes, whose results go to files."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import torch

from mobileclip.tensor_files import CheckpointError
from mobileclip.training import CrossEntropySpec, World, process_group
from mobileclip.training.checkpoint import StateFile, digest, read_state
from tests.training import class_runs
from tests.training.runs import KilledError, batch_of, share_of, trained, training_spec
from tests.training.test_captions import CAPTIONER, CAPTIONS_ALONE, caption_batch
from tests.training.test_objective import TRANSFORMERS

# What one process and two train alike, without batch norm and without what every process draws for itself.
CLASSES = class_runs.training_spec(6, loss=CrossEntropySpec(label_smoothing=0.1))
RUNS = {
    "pairs": (training_spec(8), TRANSFORMERS, batch_of),
    "classifier": (CLASSES, class_runs.TRANSFORMER, class_runs.class_batch),
    "captions": (CAPTIONS_ALONE, CAPTIONER, caption_batch),
}


def write(world: World, output: Path, name: str, content: object) -> None:
    """Write down what this process has found."""
    (output / f"{name}-{world.rank}.json").write_text(json.dumps(content))


def train_share(world: World, output: Path, spec=None, make=batch_of, **choices):
    """Train with this process's share of each batch."""
    return trained(output, spec, make=share_of(world.rank, world.size, make), world=world, **choices)


def train_one(name: str, output: Path, world: World | None = None) -> int:
    """Train one of the runs; return the number of steps."""
    spec, model, make = RUNS[name]
    torch.manual_seed(0)
    return train_share(world or World(), output / name, spec, make, model=model.build()).num_steps


def train_all(world: World, output: Path) -> None:
    for name in RUNS:
        train_one(name, output, world)


def resume(world: World, output: Path) -> None:
    """Train as a whole, and killed and resumed away from the checkpoints, which come every third step."""
    train_share(world, output / "whole")
    for stop in (2, 5, 7, None):
        with suppress(KilledError):
            train_share(world, output / "parts", stop=stop)


def spoiled_at(number: int, world: World):
    """Return what makes a process's share, in which the second one meets a NaN at a step."""

    def make(step: int):
        batch = share_of(world.rank, world.size)(step)
        if step == number and world.rank == 1:
            batch.teacher_image[0, 0] = torch.nan
        return batch

    return make


def leave_out(world: World, output: Path) -> None:
    """Train in float16 where one of the processes meets a NaN, and write down the weights of both."""
    torch.manual_seed(0)
    spec, model = training_spec(8, precision="float16", ema_decay=None), TRANSFORMERS.build()
    trained(output / "narrow", spec, model=model, make=spoiled_at(6, world), world=world)
    write(world, output, "narrow", digest(model.state_dict()))


def refuse(world: World, output: Path) -> None:
    """Write down what every process says when one of them meets a NaN, or has a smaller batch than the other."""
    makes, messages = (
        {"diverged": spoiled_at(4, world), "uneven": lambda step: batch_of(step).rows(0, 4 - world.rank)},
        {},
    )
    for name, make in makes.items():
        try:
            trained(output / name, make=make, world=world)
        except (FloatingPointError, ValueError) as error:  # noqa: PERF203 - two runs
            messages[name] = f"{type(error).__name__}: {error}"
    write(world, output, "messages", messages)


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
    train_share(world, own.parent)
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
                state = read_state(path)
                tensors = {**state.tensors, "objective/model.logit_scale": torch.tensor(1.0)}
                StateFile(tensors=tensors, metadata=state.metadata).write(path)
        world.gather(world.rank)
        try:
            train_share(world, own.parent)
        except ValueError as error:
            messages.append(str(error))
    write(world, output, "found", messages)


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
    write(world, output, "said", said)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu") as connected_world:
        for part in (train_all, resume, leave_out, refuse, find_others, share_errors):
            part(connected_world, Path(sys.argv[1]))
