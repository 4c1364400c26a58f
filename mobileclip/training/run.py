"""A whole run as one value: which model trains on which data, how, and where what comes out goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import nn

from mobileclip import storage
from mobileclip.data import ColumnPipelineSpec, ReinforcedPipelineSpec, ReinforcementCard, read_samples
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.encoders import ClassifierSpec, DualEncoderSpec, load_backbone, load_model, save_model
from mobileclip.hardware.devices import AUTO
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict
from mobileclip.training.checkpoints.checkpoint import CheckpointFolder
from mobileclip.training.distributed import World, connected
from mobileclip.training.loop import train
from mobileclip.training.objectives.classification import CrossEntropySpec
from mobileclip.training.saving import Evaluate
from mobileclip.training.spec import TrainingSpec

if TYPE_CHECKING:
    from rich.console import Console

SPEC = "run.json"
MODEL = "model.safetensors"
_MAX_SPEC_BYTES = 1 << 26
# Of data whose card names no captioner: the source may have had synthetic captions before.
_SAMPLES_LOOKED_AT = 64


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
    data: ReinforcedPipelineSpec | ColumnPipelineSpec
    training: TrainingSpec
    initial_weights: Path | None = None

    def __attrs_post_init__(self) -> None:
        """Check that the data is made for the model."""
        _check_contract("image", self.model.image.input, self.data.image)
        _check_contract("text", self.model.text.input, self.data.text)

    @property
    def resolved(self) -> RunSpec:
        """The same run; its model's text contract has the text of a tokenizer of its own, which it is saved with."""
        text = attrs.evolve(self.model.text, input=self.data.text)
        return attrs.evolve(self, model=attrs.evolve(self.model, text=text))

    @property
    def card(self) -> ReinforcementCard | None:
        """The card beside the shards, where there is one."""
        return self.data.card

    def start(self) -> nn.Module:
        """Return the student that training starts with, drawn from torch's random numbers or loaded."""
        if self.initial_weights is None:
            return self.model.build()
        return load_model(self.initial_weights, self.model, fold=False)


@attrs.frozen(kw_only=True, field_transformer=strict)
class ClassifierRunSpec:
    """A whole training run of a classifier.

    Args:
        model: the classifier.
        data: what it trains on; its `batch_size` is that of all processes together.
        training: how it trains; its loss is `CrossEntropySpec`.
        initial_weights: a checkpoint whose image tower it starts from, see `mobileclip.encoders.load_backbone`, with a
            head that is drawn; none for random weights.

    Raises:
        ValueError: if the data is made for another input or other classes than the model's, or the loss is of
            image-text models.

    Examples:
        >>> from mobileclip.datasets import LabelledPipelineSpec
        >>> model = mobileclip.encoders.ClassifierSpec(image=mobileclip.specs.mci0().without_projection())
        >>> data = LabelledPipelineSpec(shards="imagenet/train", batch_size=1024, image=model.image.input)
        >>> training = TrainingSpec(loss=CrossEntropySpec(), schedule=CosineSchedule(total_steps=375_300))
        >>> ClassifierRunSpec(model=model, data=data, training=training).data.num_classes
        1000
    """

    model: ClassifierSpec
    data: LabelledPipelineSpec
    training: TrainingSpec
    initial_weights: Path | None = None

    def __attrs_post_init__(self) -> None:
        """Check that the data is made for the model, and the loss of classes."""
        _check_contract("image", self.model.image.input, self.data.image)
        of_model, of_data = ((spec.num_classes, spec.class_names) for spec in (self.model, self.data))
        if of_model[0] != of_data[0] or (of_model[1] and of_data[1] and of_model[1] != of_data[1]):
            different = (
                f"{of_data[0]}, and the model's {of_model[0]}"
                if of_model[0] != of_data[0]
                else "others than the model's"
            )
            raise ValueError(f"the data's classes are {different}; give both the same num_classes and class_names")
        if not isinstance(self.training.loss, CrossEntropySpec):
            raise ValueError(
                f"a classifier trains with CrossEntropySpec as its loss, not with {type(self.training.loss).__name__}"
            )

    @property
    def resolved(self) -> ClassifierRunSpec:
        """The same run."""
        return self

    @property
    def card(self) -> None:
        """There are no teachers."""

    def start(self) -> nn.Module:
        """Return the classifier that training starts with: drawn from torch's random numbers, its backbone loaded."""
        model = self.model.build()
        if self.initial_weights is not None:
            load_backbone(model, self.initial_weights)
        return model


AnyRunSpec = RunSpec | ClassifierRunSpec


def run(
    spec: AnyRunSpec,
    output: storage.AnyPath,
    *,
    evaluate: Callable[[Any], Evaluate] | None = None,
    device: str | torch.device = AUTO,
    title: str = "train",
    console: Console | None = None,
) -> storage.AnyPath:
    """Train, or finish what an earlier run left undone, and return the trained model's file or address.

    Under `torchrun` or `srun`, every process calls this and has its share of the batch.

    Args:
        spec: the run.
        output: folder, or address such as `s3://bucket/run`, of `run.json`, `metrics.jsonl`, `checkpoints/` and, in the
            end, `model.safetensors`. A folder is kept from a second run; an address is not. One that is left without a
            checkpoint is free for other choices.
        evaluate: makes what is called between epochs, from the model's spec; see `train`.
        device: where to train; `auto` for this process's GPU, or the best device where there is none.
        title: what progress is shown under.
        console: where progress is shown; none shows nothing.

    Raises:
        ValueError: if the folder holds another run, the batch can't be divided among the processes, the data has no
            synthetic captions and the run asks for some, or whatever the data, the checkpoint and the loop refuse.
        FloatingPointError: if the loss is not finite.
        TimeoutError: if other processes of the run, or the ones that load data, do not come in time.
    """
    spec = spec.resolved
    with connected(device, collective_seconds=spec.training.collective_seconds) as world:
        world.from_first(lambda: _check(spec, output))
        batches = attrs.evolve(spec.data, batch_size=_share(spec.data.batch_size, world)).build()
        torch.manual_seed(spec.training.seed)
        model, measure = spec.start(), None if evaluate is None or not world.is_first else evaluate(spec.model)
        with _claimed(spec, output, world), world.awaited():
            result = train(
                spec.training,
                model=model,
                batches=batches,
                output=output,
                card=spec.card,
                world=world,
                evaluate=measure,
                title=title,
                console=console,
            )
            path = storage.join(output, MODEL)
            world.from_first(lambda: save_model(result.model, path))
    return path if storage.is_remote(path) else Path(path)


def _check_contract(name: str, wanted: ImageInput | TextInput, given: ImageInput | TextInput) -> None:
    if wanted != given:
        raise ValueError(f"the data's {name} contract is {given}, and the model expects {wanted}")


def _share(batch_size: int, world: World) -> int:
    if batch_size % world.size:
        raise ValueError(
            f"a batch of {batch_size} cannot be divided among {world.size} processes; choose a multiple of {world.size}"
        )
    return batch_size // world.size


def _check(spec: AnyRunSpec, output: storage.AnyPath) -> None:
    """Refuse, before anything is written or loaded, what could not train."""
    _refuse_other(spec, output)
    if isinstance(spec, RunSpec):
        _refuse_missing_captions(spec.data, spec.card)


def _refuse_missing_captions(data: ReinforcedPipelineSpec, card: ReinforcementCard | None) -> None:
    """Refuse a run that needs synthetic captions on data whose card and whose first samples have none."""
    if card is None or data.captions not in ("both", "synthetic"):
        return
    wanted = re.compile(data.caption_sets or "")
    there = {entry.caption_set for entry in card.captioners}
    if not any(map(wanted.match, there)):
        for sample in islice(read_samples(data.shards), _SAMPLES_LOOKED_AT):
            there.update(sample.syn_captions)
    if any(map(wanted.match, there)):
        return
    called = f" called like {data.caption_sets!r}, only {', '.join(sorted(there))}" if there else ""
    raise ValueError(
        f"captions is {data.captions!r}, and the data has no synthetic captions{called}: so say its card and its first "
        "samples. Give --pipeline.captions real (captions='real'), or reinforce the images with a captioner"
    )


@contextmanager
def _claimed(spec: AnyRunSpec, output: storage.AnyPath, world: World) -> Iterator[None]:
    """Mark the folder as this run's; one that an error leaves without a checkpoint is given back, for other choices."""
    is_new = world.from_first(lambda: _claim(spec, output))
    try:
        yield
    except BaseException:
        if is_new and world.is_first:
            with suppress(OSError, ValueError):  # what ended the run says more
                _give_back(output)
        raise


def _claim(spec: AnyRunSpec, output: storage.AnyPath) -> bool:
    """Mark the folder as this run's, or refuse one that holds another; return whether it was nobody's."""
    with _held(output):
        is_new = _refuse_other(spec, output)
        if is_new:
            storage.write_text(storage.join(output, SPEC), to_json(spec, indent=1) + "\n")
    return is_new


def _give_back(output: storage.AnyPath) -> None:
    with _held(output):
        if CheckpointFolder(storage.join(output, "checkpoints"), keep=1).newest() is None:
            storage.remove(storage.join(output, SPEC))


def _held(output: storage.AnyPath) -> AbstractContextManager[None]:
    return nullcontext() if storage.is_remote(output) else storage.exclusive(storage.local_path(output))


def _refuse_other(spec: AnyRunSpec, output: storage.AnyPath) -> bool:
    """Refuse a folder that holds another run; return whether it holds none."""
    path = storage.join(output, SPEC)
    content = storage.read_if_there(path, limit=_MAX_SPEC_BYTES)
    if content is None:
        return True
    there = from_json(content.decode(), type(spec))
    changed = [name for name in ("model", "data", "training") if getattr(there, name) != getattr(spec, name)]
    if changed:
        raise ValueError(
            f"{output} holds a run with another choice of {' and '.join(changed)} ({path}); choose another output "
            "folder, or delete it to start over"
        )
    return False
