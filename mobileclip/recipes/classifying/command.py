"""The command line of a classifier's recipe: data and training are flags, the model is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from mobileclip.datasets import LabelledPipelineSpec, find_class_names
from mobileclip.encoders import ClassifierSpec, DualEncoderSpec
from mobileclip.evaluation import classifier_hook
from mobileclip.recipes.classifying.tiny import tiny_run
from mobileclip.recipes.entry_point import again
from mobileclip.recipes.training.flags import OUTPUTS, Flags, Kind, Recipe, refuse_lost, run_as, train_and_plot
from mobileclip.terminal import say
from mobileclip.training import RunSpec

SHAPES = OUTPUTS / "tiny" / "shapes"


@attrs.frozen(kw_only=True)
class Command(Flags[LabelledPipelineSpec]):
    """The command-line flags of classifiers' recipes.

    Args:
        data: shards of images with the number of their class in .cls, as paths, brace patterns or URLs; or one
            folder with a folder of images for every class, such as imagenet/train.
        validation: places of the same kinds; top-1 and top-5 on them are measured between epochs and at the end.
        initial_weights: a checkpoint whose image tower it starts from, of any known layout, an image-text model's too;
            or the name of a model with published weights.
        tiny: two steps with a shallow model on --data, or on drawn shapes without: the whole path in seconds. With
            --initial-weights the model stays as it is.
        pipeline: how the data is read; classes are those of the data, where it says what they are called.
    """


def run_recipe(
    recipe: Recipe | Mapping[str, Recipe], name: str, description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """Read the command line and train, or say what is missing; arguments as those of `training.run_recipe`."""
    kind = Kind(name="classifying", command=Command, others=DualEncoderSpec, resolve=resolve, train=_train)
    run_as(kind, recipe, name, description, arguments)


def resolve(chosen: RunSpec, command: Command) -> RunSpec:
    """Return the recipe's choices with what the command line says instead.

    Raises:
        ValueError: if there is no data, it has other classes than the command line says, or a flag is not for the
            model or the data of the run, which are written elsewhere.
        OSError: if it cannot be read.
    """
    data, model = command.pipeline, chosen.model
    has_shards = isinstance(data, LabelledPipelineSpec)
    is_ours = has_shards and isinstance(model, ClassifierSpec)
    refuse_lost({"--data": command.data, "--tiny": command.tiny}, {"--data": has_shards, "--tiny": is_ours})
    if command.data:
        data = attrs.evolve(data, shards=command.data)
    if not is_ours:
        return attrs.evolve(chosen, data=data, training=command.training, initial_weights=command.initial_weights)
    if data.shards and not command.show and not data.class_names and (names := find_class_names(data.shards)):
        data = attrs.evolve(data, num_classes=len(names), class_names=names)
    # The model takes what the data is made as, and has its classes.
    model = attrs.evolve(
        model,
        image=attrs.evolve(model.image, input=data.image),
        num_classes=data.num_classes,
        class_names=data.class_names,
    )
    spec = RunSpec(model=model, data=data, training=command.training, initial_weights=command.initial_weights)
    if command.tiny:
        return tiny_run(spec, SHAPES)
    if not data.shards and not command.show:
        raise ValueError(
            "--data is missing: a folder with a folder of images for every class, such as imagenet/train, or shards\n"
            "              of images with the number of their class in .cls, such as 'imagenet/{0000..1023}.tar'\n"
            f"  small:      try the whole path on drawn shapes, in seconds: {again('--tiny')}"
        )
    return spec


def _train(spec: RunSpec, command: Command, output: str, name: str) -> None:
    validation = command.validation
    if command.tiny and not command.data:
        validation = (*validation, str(SHAPES / "val"))
    evaluate = (lambda _: classifier_hook(validation)) if validation else None
    model = train_and_plot(spec, output, evaluate=evaluate, device=command.device, name=name)
    if model is not None:
        say(f"{model}: load it with mobileclip.encoders.load_model, its backbone with tower='image'")
