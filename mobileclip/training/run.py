"""A whole run as one value: which model trains on which data, how, and where what comes out goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch

from mobileclip import storage
from mobileclip.data import ReinforcedPipelineSpec, ReinforcementCard, find_card
from mobileclip.devices import AUTO
from mobileclip.encoders import DualEncoder, DualEncoderSpec, load_model, save_model
from mobileclip.interruption import postponed
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict
from mobileclip.training.distributed import World, connected
from mobileclip.training.loop import train
from mobileclip.training.saving import Evaluate
from mobileclip.training.spec import TrainingSpec

if TYPE_CHECKING:
    from rich.console import Console

SPEC = "run.json"
MODEL = "model.safetensors"


@attrs.frozen(kw_only=True, field_transformer=strict)
class RunSpec:
    """A whole training run.

    Args:
        model: the student.
        data: what it trains on; its `batch_size` is that of all processes together.
        training: how it trains.
        initial_weights: a checkpoint to start from, in training form and any known layout; none for random weights.

    Raises:
        ValueError: if the data is made for another input than the model's.

    Examples:
        >>> from mobileclip.data import ReinforcedPipelineSpec
        >>> model, loss = mobileclip.specs.mobileclip_s0(), mobileclip.losses.ReinforcedLossSpec()
        >>> data = ReinforcedPipelineSpec(shards="{000..127}.tar", batch_size=512, image=model.image.input)
        >>> training = TrainingSpec(loss=loss, schedule=CosineSchedule(total_steps=200_000))
        >>> RunSpec(model=model, data=data, training=training).training.optimizer.weight_decay
        0.2
    """

    model: DualEncoderSpec
    data: ReinforcedPipelineSpec
    training: TrainingSpec
    initial_weights: Path | None = None

    def __attrs_post_init__(self) -> None:
        """Check that the data is made for the model."""
        for name, wanted, given in (
            ("image", self.model.image.input, self.data.image),
            ("text", self.model.text.input, self.data.text),
        ):
            if wanted != given:
                raise ValueError(f"the data's {name} contract is {given}, and the model expects {wanted}")


def run(
    spec: RunSpec,
    output: Path,
    *,
    evaluate: Callable[[DualEncoderSpec], Evaluate] | None = None,
    device: str | torch.device = AUTO,
    title: str = "train",
    console: Console | None = None,
) -> Path:
    """Train, or finish what an earlier run left undone, and return the trained model's file.

    Under `torchrun`, every process calls this and has its share of the batch.

    Args:
        spec: the run.
        output: folder of `run.json`, `metrics.jsonl`, `checkpoints/` and, in the end, `model.safetensors`.
        evaluate: makes what is called between epochs; see `train`.
        device: where to train; `auto` for this process's GPU, or the best device where there is none.
        title: what progress is shown under.
        console: where progress is shown; none shows nothing.

    Raises:
        ValueError: if the folder holds another run, the batch can't be divided among the processes, or whatever the
            data, the checkpoint and the loop refuse.
        FloatingPointError: if the loss is not finite.
        TimeoutError: if other processes of the run, or the ones that load data, do not come in time.
    """
    # The same contract; the data's has the text of a tokenizer of its own, which the model is saved with.
    spec = attrs.evolve(spec, model=attrs.evolve(spec.model, text=attrs.evolve(spec.model.text, input=spec.data.text)))
    with connected(device, collective_seconds=spec.training.collective_seconds) as world:
        if world.is_first:
            _claim(spec, output)
        world.wait()
        batches = attrs.evolve(spec.data, batch_size=_share(spec.data.batch_size, world)).build()
        model, measure = _student(spec), None if evaluate is None or not world.is_first else evaluate(spec.model)
        with postponed():  # a process that left here would be waited for
            result = train(
                spec.training,
                model=model,
                batches=batches,
                output=output,
                card=_card(spec.data),
                world=world,
                evaluate=measure,
                title=title,
                console=console,
            )
            if world.is_first:
                save_model(result.model, output / MODEL)
            world.wait()
    return output / MODEL


def _student(spec: RunSpec) -> DualEncoder:
    torch.manual_seed(spec.training.seed)
    if spec.initial_weights is None:
        return spec.model.build()
    model = load_model(spec.initial_weights, spec.model, fold=False)
    assert isinstance(model, DualEncoder), "the spec names a whole model"
    return model


def _share(batch_size: int, world: World) -> int:
    if batch_size % world.size:
        raise ValueError(
            f"a batch of {batch_size} cannot be divided among {world.size} processes; choose a multiple of {world.size}"
        )
    return batch_size // world.size


def _card(data: ReinforcedPipelineSpec) -> ReinforcementCard | None:
    """Return the card beside the shards, where there is one."""
    if not data.reinforced or not data.shards:
        return None
    folder, _, _ = data.shards[0].rpartition("/")
    card = find_card(folder or os.curdir)
    return card if card is None or data.teacher_columns is None else card.in_columns(data.teacher_columns)


def _claim(spec: RunSpec, output: Path) -> None:
    """Mark the folder as this run's, or refuse one that holds another."""
    path = output / SPEC
    with storage.exclusive(output):
        if not path.exists():
            storage.write_text(path, to_json(spec, indent=1) + "\n")
            return
        there = from_json(path.read_text(encoding="utf-8"), RunSpec)
    changed = [name for name in ("model", "data", "training") if getattr(there, name) != getattr(spec, name)]
    if changed:
        raise ValueError(
            f"{output} holds a run with another choice of {' and '.join(changed)} ({path}); choose another output "
            "folder, or delete it to start over"
        )
