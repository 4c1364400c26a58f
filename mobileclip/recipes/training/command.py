"""The command line of a training recipe: data and training are flags, the model is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import attrs
import tyro

from mobileclip.data import ReinforcedPipelineSpec, read_text_input
from mobileclip.datasets import RowOptions, shards_of
from mobileclip.encoders import ClassifierSpec, DualEncoderSpec
from mobileclip.inputs import TextInput
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.recipes.entry_point import again
from mobileclip.recipes.training.flags import OUTPUTS, Flags, Kind, Recipe, refuse_lost, run_as, train_and_plot
from mobileclip.recipes.training.published import as_released
from mobileclip.recipes.training.tiny import tiny_run
from mobileclip.recipes.training.validation import measured_on
from mobileclip.terminal import say
from mobileclip.training import RunSpec, plain

_TRY = "  small:      try the whole path on a few drawn scenes, in a minute:"


@attrs.frozen(kw_only=True)
class Command(Flags[ReinforcedPipelineSpec]):
    """The command-line flags of training recipes.

    Args:
        data: reinforced shards with images: paths, brace patterns such as `DataCompDR-12M/{00000000..00001023}.tar`,
            folders, or URLs (s3://, gs://). A run without teachers takes plain pairs: shards, or one list, table or
            folder of images with captions, which is written into shards in the output first.
        validation: held-out image-text pairs: shards, lists, tables or folders; recall on them is measured between
            epochs.
        evaluate: data sets of any kind, of classes or captions, such as my_classes/; their metrics are measured then
            too.
        rows: how rows of `.jsonl` files and of tables among these are read.
        tokenizer: a Hugging Face `tokenizer.json` that makes the ids of texts in place of CLIP's byte pairs.
        initial_weights: a checkpoint to start from, in training form and any known layout.
        released: the choices of the released scripts where the paper says otherwise; docs/training.md lists them.
            Further flags change them.
        plain: real captions alone, without teachers: for image-text pairs as they are.
        tiny: two steps with a shallow model on the first samples of --data, or on a few drawn scenes without: the whole
            path in a minute. With --initial-weights the model stays as it is.
    """

    evaluate: tuple[str, ...] = ()
    rows: tyro.conf.OmitArgPrefixes[RowOptions] = attrs.field(factory=RowOptions)
    tokenizer: str | None = None
    released: bool = False
    plain: bool = False


def run_recipe(
    recipe: Recipe | Mapping[str, Recipe],
    name: str,
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    released: Callable[[RunSpec], RunSpec] = as_released,
) -> None:
    """Read the command line and train, or say what is missing.

    Args:
        recipe: returns the run's choices; or several by name, of which the command line names one.
        name: of the run, the default output's folder.
        description: the recipe's docstring, which `--help` begins with.
        arguments: the command line; None for the process's own.
        released: what `--released` makes of a run's choices.
    """
    kind = Kind(
        name="training",
        command=Command,
        others=ClassifierSpec,
        resolve=resolve,
        train=_train,
        changes={"--released": released, "--plain": plain},
    )
    run_as(kind, recipe, name, description, arguments)


def resolve(chosen: RunSpec, command: Command) -> RunSpec:
    """Return the recipe's choices with what the command line says instead.

    Raises:
        ValueError: if there is no data, `--tiny` finds none where it is said to be, the tokenizer cannot be used, or a
            flag is not for the model or the data of the run, which are written elsewhere.
    """
    data, model = command.pipeline, chosen.model
    has_shards = isinstance(data, ReinforcedPipelineSpec)
    is_ours = has_shards and isinstance(model, DualEncoderSpec)
    reach = {"--data": has_shards, "--tokenizer": is_ours, "--tiny": is_ours}
    given = {"--data": command.data, "--tokenizer": command.tokenizer, "--tiny": command.tiny}
    refuse_lost(given, reach)
    if command.data:
        # Plain pairs are written into shards before they are trained on.
        data = attrs.evolve(data, shards=shards_of(command.data) if data.reinforced else command.data)
    if is_ours:
        data = attrs.evolve(data, text=_text_input(data.text, command.tokenizer))
        # The model takes what the data is made as: a size that is changed there is the model's too.
        image, text = attrs.evolve(model.image, input=data.image), attrs.evolve(model.text, input=data.text)
        model = attrs.evolve(model, image=image, text=text)
    spec = RunSpec(model=model, data=data, training=command.training, initial_weights=command.initial_weights)
    if command.tiny:
        return tiny_run(spec, OUTPUTS / "tiny", command.rows)
    if has_shards and not spec.data.shards and not command.show:
        raise ValueError(_no_data(spec))
    return spec


def _text_input(chosen: TextInput, tokenizer: str | None) -> TextInput:
    """Return the text contract of a run, with the text of its tokenizer where that is not CLIP's.

    Raises:
        ValueError: if the run names a tokenizer and its file is not given, or another one is.
    """
    named = chosen.tokenizer
    if tokenizer is None:
        if named is not None and named.content is None:
            raise ValueError(
                f"--tokenizer is missing: the run names the tokenizer.json whose SHA-256 is {named.sha256}; give the "
                "file"
            )
        return chosen
    own = read_text_input(tokenizer, context_length=chosen.context_length)
    if named is not None and own.tokenizer != named:
        raise ValueError(
            f"{tokenizer} is not the run's tokenizer.json, whose SHA-256 is {named.sha256}; give that file, or start "
            "from a recipe without a tokenizer of its own"
        )
    return own


def _no_data(spec: RunSpec) -> str:
    if not spec.data.reinforced:
        return (
            "--data is missing: image-text shards with images, such as 'DataComp-12M/{00000000..00001023}.tar'.\n"
            f"{_TRY} {again('--tiny')}"
        )
    loss = spec.training.loss
    dims = ", ".join(map(str, loss.teacher_dims if isinstance(loss, ReinforcedLossSpec) else ())) or "of any"
    return (
        f"--data is missing: shards of images with synthetic captions and embeddings of teachers (dims {dims}),\n"
        "              such as 'DataCompDR-12M/{00000000..00001023}.tar'\n"
        "  published:  DataCompDR-12M, -12M-bf16 and -1B on the Hugging Face hub (apple/, CC BY-NC-ND), without\n"
        "              images; `mobileclip data join` adds them, docs/data.md says how\n"
        "  your own:   `mobileclip reinforce datacompdr12m --data YOUR-SHARDS --output REINFORCED`\n"
        f"{_TRY} {again('--tiny')}"
    )


def _train(spec: RunSpec, command: Command, output: str, name: str) -> None:
    measured = command.validation or command.evaluate
    evaluate = partial(measured_on, command.validation, command.evaluate, command.rows) if measured else None
    model = train_and_plot(spec, output, evaluate=evaluate, device=command.device, name=name, rows=command.rows)
    if model is not None:
        use = f": `mobileclip classify photo.jpg 'a cat' 'a dog' -m {model}`"
        say(f"{model}{use if isinstance(spec.model, DualEncoderSpec) else ''}")
