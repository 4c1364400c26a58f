"""A training run as one spec: model, data, training options and initial weights."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import nn

from mobileclip import storage
from mobileclip.data import ReinforcedPipelineSpec, ReinforcementCard, TextPipeline
from mobileclip.data.text.ngrams import pack_ngrams
from mobileclip.encoders import (
    Classifier,
    ClassifierSpec,
    CoCaSpec,
    DualEncoderSpec,
    TextEncoderSpec,
    load_backbone,
    load_model,
    save_model,
)
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.encoders.checkpoints.saving import TrainingProvenance, is_known, write_tensors
from mobileclip.hardware import AUTO
from mobileclip.losses import ContrastiveLossSpec, ReinforcedLossSpec
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict
from mobileclip.tensor_files import CheckpointError
from mobileclip.training.checkpoint import CheckpointFolder
from mobileclip.training.distributed import World, process_group
from mobileclip.training.loop import Evaluate, train
from mobileclip.training.objectives import is_of_texts
from mobileclip.training.selection import SelectionSpec
from mobileclip.training.spec import Data, DataSpec, Student, StudentSpec, TrainingSpec

if TYPE_CHECKING:
    from rich.console import Console


SPEC = "run.json"
MODEL = "model.safetensors"
_MAX_SPEC_BYTES = 1 << 26


@attrs.frozen(kw_only=True, field_transformer=strict)
class RunSpec:
    """The options of a training run: model, data, training and initial weights.

    Args:
        model: the student: a `DualEncoderSpec`, a `ClassifierSpec`, a `CoCaSpec`, a text tower's spec, or any
            `StudentSpec`.
        data: the training data: a pipeline of the library, or any `DataSpec`. The data's `batch_size` is the total over
            all processes.
        training: training options; a classifier needs `CrossEntropySpec` or another loss with a registered objective.
        initial_weights: path of a checkpoint in training form, in any known layout; None for random weights. A
            classifier loads the image tower (see `mobileclip.encoders.load_backbone`) and keeps a random head. A
            captioner loads a file of any context length (see `load_model`).

    Raises:
        ValueError: if data and model have different inputs or classes; if a classifier has an image-text loss; if
            `model` is not a `StudentSpec`; or if `data` is not a `DataSpec`.

    Examples:
        >>> from mobileclip.data import ReinforcedPipelineSpec
        >>> model, loss = mobileclip.specs.mobileclip_s0(), mobileclip.losses.ReinforcedLossSpec()
        >>> data = ReinforcedPipelineSpec(shards="{000..127}.tar", batch_size=512, image=model.image.input)
        >>> training = TrainingSpec(loss=loss, schedule=CosineSchedule(total_steps=200_000))
        >>> RunSpec(model=model, data=data, training=training).training.optimizer.weight_decay
        0.2
        >>> from mobileclip.datasets import LabelledPipelineSpec
        >>> model = mobileclip.encoders.ClassifierSpec(image=mobileclip.specs.mci0().without_projection())
        >>> data = LabelledPipelineSpec(shards="imagenet/train", batch_size=1024, image=model.image.input)
        >>> training = TrainingSpec(loss=CrossEntropySpec(), schedule=CosineSchedule(total_steps=375_300))
        >>> RunSpec(model=model, data=data, training=training).data.num_classes
        1000
    """

    model: Student
    data: Data
    training: TrainingSpec
    initial_weights: Path | None = None

    def __attrs_post_init__(self) -> None:
        """Check that the model fits the data, and that a classifier has a classification loss."""
        for part, kind in ((self.model, StudentSpec), (self.data, DataSpec)):
            if not isinstance(part, kind):
                name = kind.__name__
                raise ValueError(
                    f"{type(part).__name__} is not a {name}; see mobileclip.training.{name} for the required attributes"
                )
        for name in ("image", "text"):
            wanted, given = _tower(self.model, name), getattr(self.data, name, None)
            if wanted is not None and given is not None and wanted.input != given:
                raise ValueError(f"the data's {name} input is {given}, but the model expects {wanted.input}")
        if hasattr(self.model, "num_classes") and hasattr(self.data, "num_classes"):
            _check_classes(self.model, self.data)
        loss = self.training.loss
        if isinstance(self.model, ClassifierSpec) and is_of_texts(loss):
            raise ValueError(f"a classifier needs the loss CrossEntropySpec, not {type(loss).__name__}")

    @property
    def resolved(self) -> RunSpec:
        """The run to save: the model takes over the data's text input, with the content of the tokenizer file."""
        if not (isinstance(self.model, DualEncoderSpec | TextEncoderSpec) and hasattr(self.data, "text")):
            return self
        text = attrs.evolve(_tower(self.model, "text"), input=self.data.text)
        whole = isinstance(self.model, DualEncoderSpec)
        return attrs.evolve(self, model=attrs.evolve(self.model, text=text) if whole else text)

    @property
    def card(self) -> ReinforcementCard | None:
        """The reinforcement card in the shards' folder; None without a card."""
        return getattr(self.data, "card", None)

    def start(self) -> nn.Module:
        """Return the student before training, with random weights or the initial weights."""
        if self.initial_weights is not None and isinstance(self.model, CoCaSpec):
            stored = read_checkpoint(self.initial_weights, mmap=True).spec
            if not isinstance(stored, CoCaSpec):
                raise CheckpointError(f"{self.initial_weights} has no captioner", code="another_model")
            own = self.model.with_context(stored.text.input.context_length)
            context = self.model.text.input.context_length
            return load_model(self.initial_weights, own, fold=False, context_length=context)
        if self.initial_weights is not None and not isinstance(self.model, ClassifierSpec):
            return load_model(self.initial_weights, self.model, fold=False)
        model: nn.Module = self.model.build()
        if isinstance(model, Classifier) and self.initial_weights is not None:
            load_backbone(model, self.initial_weights)
        return model


def run(
    spec: RunSpec,
    output: storage.AnyPath,
    *,
    evaluate: Callable[[Any], Evaluate] | None = None,
    device: str | torch.device = AUTO,
    title: str = "train",
    console: Console | None = None,
    within: World | None = None,
) -> storage.AnyPath:
    """Train, or resume an earlier run, and return the trained model's file or URL.

    Under `torchrun` or `srun`, every process must call this function for its share of the batch.

    Args:
        spec: options of the run.
        output: folder, or URL such as `s3://bucket/run`, for `run.json`, `metrics.jsonl`, `checkpoints/` and, at the
            end, `model.safetensors`. The run locks a folder, but not a URL. If a run fails before its first checkpoint,
            a later run with different options can use the same folder.
        evaluate: function that takes the model's spec and returns the `evaluate` argument of `train`; None for no
            evaluation.
        device: name of a device; `auto` for this process's GPU, or the best available device.
        title: title of the progress display.
        console: console of the progress display; None for no display.
        within: the processes of an existing `process_group`; None to join or start a group on `device`.

    Raises:
        ValueError: if the folder contains a different run; if the batch size is not divisible by the number of
            processes; if the run contradicts its data (see `follow_card`); or if the data, the checkpoint or the
            training loop raises a ValueError.
        FloatingPointError: if the loss or its gradient is not finite.
        TimeoutError: if another process of the run, or a data worker, does not respond in time.
    """
    spec = spec.resolved
    seconds = spec.training.collective_seconds
    with process_group(device, collective_seconds=seconds) if within is None else nullcontext(within) as world:
        refuse = partial(refuse_other_options, spec, output, SPEC, ignored=("initial_weights",))
        world.from_first(lambda: _check(spec, refuse))
        batches = attrs.evolve(spec.data, batch_size=world.share(spec.data.batch_size)).build()
        torch.manual_seed(spec.training.seed)
        model, measure = spec.start(), None if evaluate is None or not world.is_first else evaluate(spec.model)
        if isinstance(spec.model, TextEncoderSpec):
            model.provenance = TrainingProvenance(space=getattr(batches, "space", ""))  # type: ignore[assignment]
        files = {SPEC: to_json(spec, indent=1) + "\n"}
        with reserve_output(output, files, world, refuse=refuse), world.awaited():
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
            world.from_first(lambda: _save(result.model, spec.model, path, batches))
    return path if storage.is_remote(path) else Path(path)


def without_teachers(run: RunSpec) -> RunSpec:
    """Return a copy of `run` that trains on real captions only, without teachers.

    Args:
        run: run on image-text samples; a distillation loss keeps only its contrastive term (CLIP or SigLIP), with
            weight 1.

    Raises:
        ValueError: if the run's data are not image-text samples.
    """
    data, loss = run.data, run.training.loss
    if not isinstance(data, ReinforcedPipelineSpec):
        raise ValueError(f"{type(data).__name__} has no image-text pairs for training without teachers")
    settings = {field.name: getattr(data, field.name) for field in attrs.fields(ReinforcedPipelineSpec)}
    pairs = ReinforcedPipelineSpec(**{**settings, "reinforced": False, "captions": "real"})
    bias = getattr(loss, "initial_logit_bias", None)
    alone = ContrastiveLossSpec(initial_logit_bias=bias) if loss.needs_teachers else loss
    training = attrs.evolve(run.training, loss=alone, selection=SelectionSpec())
    return attrs.evolve(run, data=pairs, training=training)


def _save(model: nn.Module, spec: Any, path: str, batches: object) -> None:
    """Save the trained model; for a spec of an unknown class, save the weights with the spec in the file header."""
    if isinstance(batches, TextPipeline):
        known = pack_ngrams(batches.seen_texts())
        model.provenance = TrainingProvenance(space=batches.space, ngrams=known)  # type: ignore[assignment]
    if is_known(spec):
        save_model(model, path)
    else:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_tensors(path, tensors, {"mobileclip.student": to_json(spec, unstructure_as=StudentSpec)})


def _tower(model: Any, name: str) -> Any:
    """Return the spec of the tower `name`, `image` or `text`; None if the model has no such tower."""
    return model if isinstance(model, TextEncoderSpec) and name == "text" else getattr(model, name, None)


def _check_classes(model: Any, data: Any) -> None:
    if model.num_classes != data.num_classes:
        different = f"the data has {data.num_classes} classes, and the model has {model.num_classes}"
    elif all(names := [getattr(part, "class_names", ()) for part in (model, data)]) and names[0] != names[1]:
        different = "the data and the model have different class_names"
    else:
        return
    raise ValueError(f"{different}; use the same num_classes and class_names for both")


def _check(spec: RunSpec, refuse: Callable[[], object]) -> None:
    """Raise an error if the output folder, the card or the first samples contradict the run."""
    refuse()
    follow_card(spec)
    if isinstance(spec.data, ReinforcedPipelineSpec):
        _refuse_lacking(spec.data)


def _refuse_lacking(data: ReinforcedPipelineSpec) -> None:
    """Raise an error if the first samples lack a file member that the run needs."""
    skips, members = data.lacking_samples()
    if not skips:
        return
    counts, details = Counter(skip.reason for skip in skips), {skip.reason: skip.detail for skip in reversed(skips)}
    lacking = "; ".join(f"{count} {reason}, such as {details[reason]}" for reason, count in counts.items())
    if data.reinforced and counts.keys() == {"no_syn_caption"}:
        advice = "use --pipeline.captions real (captions='real'), or reinforce the data with a captioner"
    elif "no_image" not in counts and (data.reinforced or data.captions != "real"):
        advice = (
            "--plain trains on real captions without teachers (in Python, mobileclip.training.without_teachers), and "
            f"`mobileclip reinforce datacompdr12m --data {data.shards[0]} --output REINFORCED` adds captions and "
            "embeddings"
        )
    else:
        advice = "use shards with an image (such as jpg) and a caption (txt, or in json) for every key"
    raise ValueError(
        f"none of the first {len(skips)} samples of {skips[0].shard} can be used ({lacking}); members found: "
        f"{', '.join(members) or 'nothing'}; {advice}"
    )


def follow_card(run: RunSpec, recipe: RunSpec | None = None) -> tuple[RunSpec, tuple[str, ...]]:
    """Return a run that agrees with its data's card, and one line for each option taken from the card.

    The card contains the captioner, the teachers' dims and the teachers' logit scales. Without a captioner in the card,
    the first samples show whether the data has synthetic captions. The function adapts the recipe's options to the
    card; an error names the user's options that contradict the card.

    Args:
        run: run with options that may contradict the card.
        recipe: the recipe's options; None if the user chose all options.

    Raises:
        ValueError: if the run contradicts the card; the message lists all contradictions.
    """
    card, data, loss = run.card, run.data, run.training.loss
    if card is None:
        return run, ()
    stated = loss.about_teachers if isinstance(loss, ReinforcedLossSpec) else {}
    given = None if recipe is None else recipe.training.loss
    taken = {
        name: getattr(card, name)
        for name, value in stated.items()
        if getattr(given, name, None) == value != getattr(card, name)
    }
    told = [f"{name} {value}, from the data's card" for name, value in taken.items()]
    wrong = card.differences({name: value for name, value in stated.items() if name not in taken})
    # Whether the user kept the recipe's default, captions of both kinds.
    follows = isinstance(data, ReinforcedPipelineSpec) and getattr(recipe and recipe.data, "captions", None) == "both"
    if follows and data.captions == "both" and data.caption_sets is None and not card.captioners:
        skips, _ = data.lacking_samples()
        if {skip.reason for skip in skips} == {"no_syn_caption"}:
            data = attrs.evolve(data, captions="real")
            told.append("real captions only: the data has no synthetic captions")
    if wrong:
        raise ValueError(
            f"the run contradicts its data: {'; '.join(wrong)}. Set these flags to the values of the data, or leave "
            "them out; tuned_scales=True keeps tuned logit scales"
        )
    if isinstance(loss, ReinforcedLossSpec):
        loss = attrs.evolve(loss, **taken)
    return attrs.evolve(run, data=data, training=attrs.evolve(run.training, loss=loss)), tuple(told)


def refuse_other_options(spec: Any, output: storage.AnyPath, file: str, *, ignored: Collection[str] = ()) -> None:
    """Raise an error if a run's folder contains options that differ from `spec`.

    Args:
        spec: options of the run.
        output: folder or URL of the run.
        file: name of the file with the options as JSON; without the file, the function returns.
        ignored: names of options that may differ.

    Raises:
        ValueError: if an option differs.
    """
    path = storage.join(output, file)
    content = storage.read_if_exists(path, limit=_MAX_SPEC_BYTES)
    if content is None:
        return
    there = from_json(content.decode(), type(spec))
    compared = [one.name for one in attrs.fields(type(spec)) if one.eq and one.name not in ignored]
    changed = [name for name in compared if getattr(there, name) != getattr(spec, name)]
    if changed:
        raise ValueError(
            f"{output} contains a run with different options of {' and '.join(changed)}; delete the folder to start "
            f"over, pass `{path}` before the flags to resume with the same options, or choose a different `--output`"
        )


@contextmanager
def reserve_output(
    output: storage.AnyPath,
    files: Mapping[str, str],
    world: World,
    *,
    refuse: Callable[[], object],
    checkpoints: str = "checkpoints",
    kept: str | None = None,
    made: str | None = None,
) -> Iterator[None]:
    """Reserve a folder for this run; an error before the first checkpoint releases the folder for other settings.

    Args:
        output: the folder or URL.
        files: contents of the files that identify the run, by file name, in the order of writing.
        world: the processes of the run; all processes must call this function.
        refuse: function that raises a ValueError if the folder contains a different run.
        checkpoints: subfolder with the run's checkpoints.
        kept: file in the folder; if the file exists, an error does not release the folder. None for no such file.
        made: subfolder to remove when the run releases the folder; None for no subfolder.
    """

    def take() -> bool:
        with _held(output):
            refuse()
            is_new = not storage.exists(storage.join(output, list(files)[-1]))
            if is_new:
                for name, text in files.items():
                    storage.write_text(storage.join(output, name), text)
        return is_new

    is_new = world.from_first(take)
    try:
        yield
    except BaseException:
        if is_new and world.is_first:
            with suppress(OSError, ValueError), _held(output):  # the error that ended the run matters more
                begun = CheckpointFolder(storage.join(output, checkpoints)).newest() is not None
                if not begun and not (kept and storage.exists(storage.join(output, kept))):
                    for name in reversed(list(files)):
                        storage.remove(storage.join(output, name))
                    if made is not None:
                        shutil.rmtree(storage.local_path(storage.join(output, made)), ignore_errors=True)
        raise


def _held(output: storage.AnyPath) -> AbstractContextManager[None]:
    return nullcontext() if storage.is_remote(output) else storage.exclusive(storage.local_path(output))
