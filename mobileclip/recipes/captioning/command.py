"""The command line of a captioner's recipe: data and training are flags, the model is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import attrs
import tyro

from mobileclip.data import ReinforcedPipelineSpec
from mobileclip.datasets import RowOptions
from mobileclip.encoders import CoCaSpec, DualEncoderSpec
from mobileclip.recipes.captioning.tiny import tiny_run
from mobileclip.recipes.captioning.validation import captions_on
from mobileclip.recipes.entry_point import again
from mobileclip.recipes.training.flags import OUTPUTS, Flags, Kind, Recipe, refuse_lost, run_as, train_and_plot
from mobileclip.terminal import say
from mobileclip.training import RunSpec


@attrs.frozen(kw_only=True)
class Command(Flags[ReinforcedPipelineSpec]):
    """The command-line flags of captioners' recipes.

    Args:
        data: images with captions: shards as paths, brace patterns, folders or URLs; or one list, table or folder of
            images with captions, which is written into shards in the output first.
        validation: held-out pairs in any of these forms; the likelihood of their captions is measured between epochs,
            in nats per id.
        rows: how rows of `.jsonl` files and of tables are read.
        initial_weights: a captioner to start from, in our layout or open_clip's, of any context.
        tiny: two steps with a narrow, shallow model on the first samples of --data, or on a few drawn scenes without:
            the whole path in seconds. With --initial-weights the model stays as it is.
    """

    rows: tyro.conf.OmitArgPrefixes[RowOptions] = attrs.field(factory=RowOptions)


def run_recipe(
    recipe: Recipe | Mapping[str, Recipe], name: str, description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """Read the command line and train, or say what is missing; arguments as those of `training.run_recipe`."""
    kind = Kind(name="captioning", command=Command, others=DualEncoderSpec, resolve=resolve, train=_train)
    run_as(kind, recipe, name, description, arguments)


def resolve(chosen: RunSpec, command: Command) -> RunSpec:
    """Return the recipe's choices with what the command line says instead.

    Raises:
        ValueError: if there is no data, or a flag is not for the model or the data of the run.
        OSError: if it cannot be read.
    """
    data, model = command.pipeline, chosen.model
    is_ours = isinstance(data, ReinforcedPipelineSpec) and isinstance(model, CoCaSpec)
    refuse_lost({"--data": command.data, "--tiny": command.tiny}, dict.fromkeys(("--data", "--tiny"), is_ours))
    if not is_ours:
        return attrs.evolve(chosen, data=data, training=command.training, initial_weights=command.initial_weights)
    if command.data:
        data = attrs.evolve(data, shards=command.data)
    # The model takes what the data is made as.
    model = attrs.evolve(
        model,
        image=attrs.evolve(model.image, input=data.image),
        text=attrs.evolve(model.text, input=data.text),
    )
    spec = RunSpec(model=model, data=data, training=command.training, initial_weights=command.initial_weights)
    if command.tiny:
        return tiny_run(spec, OUTPUTS / "tiny", command.rows)
    if not data.shards and not command.show:
        raise ValueError(
            "--data is missing: image-text shards, such as 'DFN-2B/{00000000..00001023}.tar'; or one .jsonl, .csv,\n"
            "              .tsv or .parquet file of images and captions, or a folder of them\n"
            f"  small:      try the whole path on drawn scenes, in seconds: {again('--tiny')}"
        )
    return spec


def _train(spec: RunSpec, command: Command, output: str, name: str) -> None:
    evaluate = partial(captions_on, command.validation, command.rows) if command.validation else None
    model = train_and_plot(spec, output, evaluate=evaluate, device=command.device, name=name, rows=command.rows)
    if model is not None:
        say(f"{model}: `mobileclip reinforce datacompdr12m --captioner-weights {model}` writes captions with it")
