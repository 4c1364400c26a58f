"""The kinds of recipes: additional command-line options, effects of options on specs, and functions that run specs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import attrs
from attrs import validators
from tyro.conf import OmitArgPrefixes, Positional, arg

from mobileclip.data import ReinforcedPipelineSpec, augmentations, read_text_input
from mobileclip.datasets import (
    JsonLinesSource,
    LabelledPipelineSpec,
    RowOptions,
    ShardSource,
    TableSource,
    as_source,
    find_class_names,
    shards_of,
)
from mobileclip.encoders import ClassifierSpec, CoCaSpec, DualEncoderSpec
from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.engines import SET_ASIDE, LocalEngine, RayEngine, Retries, read_status
from mobileclip.evaluation import EvaluationSpec, classifier_hook
from mobileclip.evaluation.candidates import parse_model_argument
from mobileclip.evaluation.run import evaluate_and_print, split_arguments
from mobileclip.hardware import AUTO
from mobileclip.processes import this_process
from mobileclip.recipes.distilling import DistilSpec, distil
from mobileclip.recipes.finetuning import finetune_and_report, summary, table
from mobileclip.recipes.short import retyped_command
from mobileclip.recipes.tiny.shrink import SMALL_MODEL, fitted_to_data
from mobileclip.recipes.validation import captions_on, validation_hook
from mobileclip.reinforce import (
    ReinforcementSpec,
    estimate,
    reinforce,
)
from mobileclip.reinforce.captioners import NucleusSpec, with_weights
from mobileclip.storage import is_remote, join
from mobileclip.terminal import console, say
from mobileclip.terminal.status import conclude
from mobileclip.training import Evaluate, RunSpec, follow_card, last_metrics, plot_curves, process_group, run
from mobileclip.training.finetuning.run import FinetuneSpec
from mobileclip.training.finetuning.tasks import open_task, write_training_data

OUTPUTS = Path("outputs")
Spec = TypeVar("Spec")
Options = TypeVar("Options")
_MOST_NAMED = 10


@attrs.frozen(kw_only=True)
class Command(Generic[Options, Spec]):
    """The command-line flags of a recipe; every option is a flag.

    Args:
        options: options outside the spec.
        spec: the spec of the recipe.
        show: print the spec as JSON and stop. A file with this JSON, given before the flags, replaces the recipe's
            spec.
        tiny: use only the first samples of the data (a few drawn samples if there is no data), and a small model by
            default.
    """

    options: Annotated[Options, arg(name="")]
    spec: Annotated[Spec, arg(name="")]
    show: bool = False
    tiny: bool = False


@attrs.frozen
class NoOptions:
    """The empty set of options, for recipes with all flags in the spec."""


@attrs.frozen
class Kind:
    """The common behaviour of all recipes with one spec class.

    Args:
        start: function that runs a spec under a name; the last argument is the recipe's own spec, or None if the spec
            comes from a file.
        options: flags outside the spec.
        ready: function that applies the options to the spec.
        fixed: fields that are not flags, each as a class and a field name.
        made_by: functions that make an instance of a class from the values of the flags, by class.
    """

    start: Callable[[Any, Command[Any, Any], str, Any], None]
    options: type = NoOptions
    ready: Callable[[Any, Any], Any] = lambda spec, _: spec
    fixed: Collection[tuple[type, str]] = ()
    made_by: Mapping[type, Callable[..., Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RunOptions:
    """The options of training in addition to the spec.

    Args:
        validation: held-out data for evaluation during training: recall on pairs, top-1 and top-5 accuracy on classes,
            nats per id on captions.
        evaluate: additional data sets, with classes or captions, for evaluation during training.
        rows: column names of `.jsonl` files and tables.
        tokenizer: a Hugging Face `tokenizer.json` to use instead of CLIP's tokenizer.
        plain: train only on real captions, without teachers, for ordinary image-text pairs.
        output: folder or URL, such as s3://bucket/run, for metrics, curves, checkpoints and the model. A second run
            with the same output resumes from the last checkpoint.
        device: name of a device, such as cuda:1, mps or cpu; `auto` selects this process's GPU, or the best available
            device.
    """

    validation: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    rows: OmitArgPrefixes[RowOptions] = attrs.field(factory=RowOptions)
    tokenizer: str | None = None
    plain: bool = False
    output: str | None = None
    device: str = AUTO


def _ready_run(spec: RunSpec, options: RunOptions) -> RunSpec:
    data = spec.data
    if options.tokenizer is not None:
        own = read_text_input(options.tokenizer, context_length=data.text.context_length)
        if data.text.tokenizer not in (None, own.tokenizer):
            raise ValueError(
                f"{options.tokenizer} is not the run's tokenizer.json, whose SHA-256 is {data.text.tokenizer.sha256}"
            )
        data = attrs.evolve(data, text=own)
    elif (named := getattr(getattr(data, "text", None), "tokenizer", None)) is not None and named.content is None:
        raise ValueError(f"--tokenizer is missing: give the run's tokenizer.json, whose SHA-256 is {named.sha256}")
    if getattr(data, "reinforced", False) and data.shards:  # plain pairs may be a list or a table, see `_sharded`
        data = attrs.evolve(data, shards=shards_of(data.shards))
    return attrs.evolve(spec, model=fitted_to_data(spec.model, data), data=data)


def _train(spec: RunSpec, command: Command[RunOptions, RunSpec], name: str, recipe: RunSpec | None) -> None:
    options, output = command.options, command.options.output or str(OUTPUTS / name)
    if getattr(spec.data, "shards", True) == ():
        raise ValueError(
            f"--data is missing: pass shards such as 'DataCompDR-12M/{{00000000..00001023}}.tar' (see docs/data.md), "
            "or a folder with one folder per class\n  small: try a full run on drawn scenes, in a minute: "
            f"{retyped_command('--tiny')}"
        )
    spec, taken = follow_card(spec, recipe)
    for line in taken if this_process().is_first else ():
        say(line)
    with process_group(options.device, collective_seconds=spec.training.collective_seconds) as world:
        spec = world.from_first(partial(_sharded, spec, output, options.rows))
        measure = _measure(spec, options)
        model = run(spec, output, evaluate=measure, title=name, console=console(), within=world)
    if this_process().is_first:
        _draw_curves(output, name)
        say(f"{model}: {_use(spec.model, model)}")


def _use(model: object, path: object) -> str:
    if isinstance(model, DualEncoderSpec):
        return f"`mobileclip classify photo.jpg 'a cat' 'a dog' -m {path}`"
    if isinstance(model, CoCaSpec):
        return f"`mobileclip reinforce datacompdr12m --captioner-weights {path}` writes captions with the model"
    return "mobileclip.encoders.load_model loads the model"


def _measure(spec: RunSpec, options: RunOptions) -> Callable[[Any], Evaluate] | None:
    """Return the evaluation during training for this kind of model."""
    if isinstance(spec.model, ClassifierSpec):
        return (lambda _: classifier_hook(options.validation)) if options.validation else None
    if isinstance(spec.model, CoCaSpec):
        return partial(captions_on, options.validation, options.rows) if options.validation else None
    given = options.validation or options.evaluate
    return (lambda _: validation_hook(options.validation, options.evaluate, options.rows)) if given else None


def _sharded(spec: RunSpec, output: str, rows: RowOptions) -> RunSpec:
    """Return a run with data in shards; convert a list, table or folder of image-text pairs once."""
    given = getattr(spec.data, "shards", ())
    if isinstance(spec.data, LabelledPipelineSpec):
        if not spec.data.class_names and (names := find_class_names(given)):
            data = attrs.evolve(spec.data, num_classes=len(names), class_names=names)
            return attrs.evolve(spec, model=fitted_to_data(spec.model, data), data=data)
        return spec
    if not given or spec.data.reinforced:
        return spec
    if all(isinstance(as_source(one, rows=rows), ShardSource) for one in given):
        return attrs.evolve(spec, data=attrs.evolve(spec.data, shards=shards_of(given)))
    if len(given) > 1 or is_remote(output):
        raise ValueError(
            f"{', '.join(given)}: lists, tables and folders of plain pairs need a single path and a local output"
        )
    task = open_task(given[0], "captions", (), rows)
    made = write_training_data(task, Path(output) / "data" / task.fingerprint)
    return attrs.evolve(spec, data=attrs.evolve(spec.data, shards=made.shards, num_samples=made.num_samples))


def _draw_curves(output: str, name: str) -> None:
    try:
        plot_curves({name: join(output, "metrics.jsonl")}, join(output, "curves.png"))
    except ModuleNotFoundError as error:
        say(f"no curves: {error}")


@attrs.frozen(kw_only=True)
class ReinforceOptions:
    """The options of a reinforcement in addition to the spec.

    Args:
        data: shards (a path, a brace pattern or a URL); a .jsonl, .parquet, .csv or .tsv file; or a folder of images.
        rows: column names of `.jsonl` files and tables.
        step: `captions` writes only synthetic captions, `embeddings` encodes existing captions, and `both` writes
            synthetic captions and encodes all captions.
        augmentation: policy of the stored augmentations: `datacompdr`, or `crop` for the weak augmentation of plain
            CLIP.
        captioner_weights: weights of a captioner to use instead of the recipe's: a file of open_clip, Apple or
            `mobileclip train coca`, or `hf-hub:OWNER/NAME`; the file determines the architecture. With several files,
            each NAME.pt writes the caption set `syn_text_NAME`.
        engine: `local` for processes on this machine, `ray` for a cluster.
        num_workers: number of processes, or of actors with Ray; by default one process per GPU, or one actor.
        num_threads: number of threads per worker, or of cores per worker with Ray.
        gpus_per_worker: number of GPUs per actor, with Ray only; with a fraction, several actors share a GPU.
        ray_address: address of the Ray cluster to join, such as `auto`; by default, Ray starts a cluster on this
            machine.
        retries: number of attempts for a failing shard, and pauses between attempts.
        status: print the state, progress and remaining time of the run in the output folder, and stop.
        dry_run: measure the start of the first shard, print an estimate of the total time and size, and stop.
    """

    data: str | None = None
    rows: OmitArgPrefixes[RowOptions] = attrs.field(factory=RowOptions)
    step: Literal["both", "captions", "embeddings"] = "both"
    augmentation: str | None = None
    captioner_weights: tuple[str, ...] = ()
    engine: Literal["local", "ray"] = "local"
    num_workers: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    gpus_per_worker: float | None = None
    ray_address: str | None = None
    retries: OmitArgPrefixes[Retries] = attrs.field(factory=Retries)
    status: bool = False
    dry_run: bool = False


def _ready_reinforcement(spec: ReinforcementSpec, options: ReinforceOptions) -> ReinforcementSpec:
    changes: dict[str, Any] = {}
    if options.data is not None:
        changes["source"] = as_source(options.data)
    if isinstance(source := changes.get("source", spec.source), (JsonLinesSource, TableSource)):
        changes["source"] = source.allowing(options.rows) if options.rows != RowOptions() else source
    if options.augmentation is not None:
        changes["augmentation"] = augmentations.resolve(options.augmentation)(spec.augmentation.size)
    if options.step == "captions":
        changes["teachers"] = ()
    if options.captioner_weights and isinstance(spec.captioner, NucleusSpec):
        changes["captioner"] = with_weights(spec.captioner, options.captioner_weights)
    if options.step == "embeddings":
        changes["captioner"] = None
    return attrs.evolve(spec, **changes)


def _reinforce(
    spec: ReinforcementSpec, command: Command[ReinforceOptions, ReinforcementSpec], name: str, _: object
) -> None:
    options = command.options
    spec = spec if spec.output else attrs.evolve(spec, output=str(OUTPUTS / name))
    if options.status:
        say(read_status(spec.output))
        return
    if spec.source is None:
        raise ValueError(
            "--data is missing: pass shards, a table or a folder; or try a small run on drawn scenes with "
            f"{retyped_command('--tiny')}"
        )
    if options.dry_run:
        say(estimate(spec))
        return
    engine: Any = LocalEngine(num_workers=options.num_workers, num_threads=options.num_threads, retries=options.retries)
    if options.engine == "ray":
        import torch

        gpus = options.gpus_per_worker
        engine = RayEngine(
            address=options.ray_address,
            max_workers=options.num_workers or 1,
            cpus_per_worker=options.num_threads or 1,
            gpus_per_worker=float(torch.cuda.is_available()) if gpus is None else gpus,
            retries=options.retries,
        )
    report = reinforce(spec, engine=engine)
    say(f"{report}; {report.num_done_before} of the shards are from earlier runs")
    say(f"{spec.output}: {report.num_bytes:,} bytes. `mobileclip data check {spec.output}` checks the shards.")
    for aside in report.set_aside[:_MOST_NAMED]:
        say(f"set aside: {aside.unit}: {aside.reason}")
    if report.set_aside:
        say(
            f"{len(report.set_aside):,} shards were set aside, see {join(spec.output, SET_ASIDE)}; "
            "the same command retries them"
        )
    conclude(left_out=report.set_aside, done=report.num_samples)


def _ready_finetuning(spec: FinetuneSpec, _: NoOptions) -> FinetuneSpec:
    """Return the options with the checkpoint that `--model` names: a file, NAME=FILE, or a published model."""
    if spec.model is None or spec.checkpoint is not None:
        return spec
    given = parse_model_argument(spec.model)
    if given.file is None:
        return attrs.evolve(spec, model=None, checkpoint=PRETRAINED.get(spec.model, spec.model))
    return attrs.evolve(spec, model=given.label or given.model, checkpoint=given.file)


def _finetune(spec: FinetuneSpec, *_: object) -> None:
    results = finetune_and_report(spec)
    if results is not None:
        say(
            f"\n{table(results.rows)}\n\nPercentages, with 95 % intervals. {summary(results)}\n"
            f"Report and models are in {spec.output}."
        )


def _distil(spec: DistilSpec, _: object, name: str, __: object) -> None:
    if (path := distil(spec, title=name)) is not None:
        _draw_curves(str(spec.output), name)
        cosine = 1 - (last_metrics(spec.output / "metrics.jsonl") or {}).get("cosine", float("nan"))
        say(f"{path}: a text tower; its embeddings have a cosine of {cosine:.3f} with the teacher's embeddings")


@attrs.frozen(kw_only=True)
class EvaluateOptions:
    """The options of an evaluation in addition to the spec.

    Args:
        models: one or more models: a name, a file, NAME=FILE, LABEL=FILE, hf-hub:OWNER/NAME or open_clip:MODEL/TAG; and
            data sets to evaluate the models on, such as my_classes/.
        compare_published: published models to add to the table; the table always includes the evaluated models that are
            published.
        report: whether to write report.html and plots as PNG files.
    """

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[MODEL...]")] = ()
    compare_published: tuple[str, ...] = ()
    report: bool = False


def _evaluate(spec: EvaluationSpec, command: Command[EvaluateOptions, EvaluationSpec], *_: object) -> None:
    models, spec = split_arguments(command.options.models, spec)
    models = models or ((SMALL_MODEL,) if command.tiny else ("mobileclip_s2",))
    evaluate_and_print(models, spec, compare_published=command.options.compare_published, report=command.options.report)


def _sized(kind: type) -> Callable[..., Any]:
    """Return a factory of pipelines that sets the augmentation's size to the size of the model's image input."""

    def make(**fields: Any) -> Any:
        if fields.get("augmentation") is not None:
            fields["augmentation"] = attrs.evolve(fields["augmentation"], size=fields["image"].size)
        return kind(**fields)

    return make


KINDS: Mapping[type, Kind] = {
    RunSpec: Kind(
        _train,
        RunOptions,
        _ready_run,
        fixed={(RunSpec, "model")},
        made_by={one: _sized(one) for one in (ReinforcedPipelineSpec, LabelledPipelineSpec)}
        | {RunSpec: lambda model, data, **rest: RunSpec(model=fitted_to_data(model, data), data=data, **rest)},
    ),
    ReinforcementSpec: Kind(_reinforce, ReinforceOptions, _ready_reinforcement, fixed={(ReinforcementSpec, "source")}),
    FinetuneSpec: Kind(_finetune, ready=_ready_finetuning),
    DistilSpec: Kind(_distil),
    EvaluationSpec: Kind(_evaluate, EvaluateOptions),
}
"""Kinds of recipes by spec class."""
