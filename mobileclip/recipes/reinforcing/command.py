"""The command line of a reinforcement recipe: what differs from run to run, over the recipe's defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import tyro
from attrs import validators

from mobileclip.data import Layout, augmentations
from mobileclip.datasets import JsonLinesSource, RowOptions, TableSource
from mobileclip.engines import SET_ASIDE, Retries, read_status
from mobileclip.recipes.entry_point import again, described, opened, show
from mobileclip.recipes.reinforcing.tiny import shrink, write_scenes
from mobileclip.recipes.tiny.few_samples import first_samples
from mobileclip.reinforce import Engine, LocalEngine, RayEngine, ReinforcementSpec, estimate, reinforce
from mobileclip.reinforce.captioners import NucleusSpec, with_weights
from mobileclip.storage import join
from mobileclip.terminal import say
from mobileclip.terminal.help import parse
from mobileclip.terminal.status import conclude

TINY = Path("outputs") / "tiny"
_MOST_NAMED = 10
SAME_IN_SPEC = ("caption_set", "num_augmentations", "layout", "batch_size", "num_compared", "seed")

Recipe = Callable[[str, str], ReinforcementSpec]
"""From source and output to the run's choices."""


@attrs.frozen(kw_only=True)
class Command:
    """The command-line flags of reinforcement recipes; None leaves a choice to the recipe.

    Args:
        data: shards to reinforce: a path, a brace pattern such as `DataComp/{00000000..00001023}.tar` or a URL
            (s3://, gs://); or a .jsonl, .parquet, .csv or .tsv file with images and captions; or a folder of images.
        rows: how rows of `.jsonl` files and of tables are read.
        output: where the reinforced shards go, with their manifest and card; a folder or a URL. A second run
            finishes what is missing.
        step: `captions` writes synthetic captions alone, `embeddings` encodes the captions that are there, `both` does
            both in one go.
        engine: `local` for processes on this machine, `ray` for a cluster.
        num_workers: processes, or with Ray the number of actors that the pool may grow to; by default one per GPU, or
            one with Ray.
        num_threads: threads, or with Ray cores, of every worker.
        gpus_per_worker: Ray only: GPUs of every actor; a fraction lets several share one.
        ray_address: Ray only: the cluster to join, such as `auto`; by default one is started on this machine.
        retries: how often a shard that fails is tried.
        caption_set: name of the synthetic captions' set, `syn_text` or `syn_text_NAME`.
        captioner_weights: a captioner in place of the recipe's: a file of open_clip's or Apple's, one that `mobileclip
            train coca` leaves, or `hf-hub:OWNER/NAME`; its architecture is the file's. Each of several is a captioner
            whose set of captions is called like the file: `syn_text_NAME` of NAME.pt.
        augmentation: policy of the stored augmentations: `datacompdr`, or `crop` for the weak one of plain CLIP, which
            table 2 of the paper compares.
        num_augmentations: stored augmentations per image.
        layout: form of what is stored: `npz` or `pth.gz` as the public data sets, or `compact` or `compact8`.
        batch_size: samples that are encoded at once, with all their augmentations.
        num_compared: samples of the first shard on which it is measured how far the teachers still recognise the stored
            views; 0 measures nothing.
        seed: of augmentations and captions.
        status: print what the run in the output does now, how far it is and how long the rest takes, and stop.
        strict: end with status 1 in place of 0 if a shard was set aside.
        dry_run: measure the beginning of the first shard, print what everything will take, and stop.
        show: print the run's choices as JSON and stop; --run reads them back.
        run: a file that --show has written: its choices in place of the recipe's.
        tiny: small models with random weights on the first samples of the source, or on a few drawn images without: the
            whole path in a minute.
    """

    data: str | None = None
    rows: tyro.conf.OmitArgPrefixes[RowOptions] = attrs.field(factory=RowOptions)
    output: str | None = None
    step: Literal["both", "captions", "embeddings"] = "both"
    engine: Literal["local", "ray"] = "local"
    num_workers: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    gpus_per_worker: float | None = None
    ray_address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    retries: tyro.conf.OmitArgPrefixes[Retries] = attrs.field(factory=Retries)
    caption_set: str | None = None
    captioner_weights: tuple[str, ...] = ()
    augmentation: str | None = None
    num_augmentations: int | None = None
    layout: Layout | None = None
    batch_size: int | None = None
    num_compared: int | None = None
    seed: int | None = None
    status: bool = False
    strict: bool = False
    dry_run: bool = False
    show: bool = False
    run: Path | None = None
    tiny: bool = False


def run_recipe(recipe: Recipe, name: str, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the recipe, or say what it would take.

    Args:
        recipe: from source and output to the run's choices.
        name: of the data set, the default output's folder.
        description: the recipe's docstring, which `--help` begins with.
        arguments: the command line; None for the process's own.
    """
    with opened("reinforcing", name, description, arguments, cls=ReinforcementSpec) as (written, rest):
        command = parse(Command, rest, description=described(description))
        if command.status:
            say(read_status(_output(name, command, written)))
            return
        spec = resolve(recipe, name, command, written)
        if command.show:
            show(spec)
            return
        if command.dry_run:
            say(estimate(spec))
            return
        report = reinforce(spec, engine=_engine(command))
    say(f"{report}; {report.num_done_before} of the shards by an earlier run")
    say(f"{spec.output}: {report.num_bytes:,} bytes. `mobileclip data check {spec.output}` checks them.")
    if report.set_aside:
        for aside in report.set_aside[:_MOST_NAMED]:
            say(f"set aside: {aside.unit}: {aside.reason}")
        say(
            f"{len(report.set_aside):,} shards were set aside, see {join(spec.output, SET_ASIDE)}; "
            "the same command tries them again"
        )
    conclude(left_out=report.set_aside, strict=command.strict, done=report.num_samples)


def resolve(recipe: Recipe, name: str, command: Command, written: ReinforcementSpec | None = None) -> ReinforcementSpec:
    """Return the choices of the recipe, or of a file, with what the command line says instead.

    Raises:
        ValueError: if there is no source, or the augmentation is unknown.
    """
    if written is not None:
        spec = attrs.evolve(written, source=command.data or written.source, output=command.output or written.output)
    elif command.data is None and not command.tiny:
        raise ValueError(
            f"--data is missing: the shards, table or folder to reinforce; try it on drawn scenes: {again('--tiny')}"
        )
    else:
        spec = recipe(command.data or write_scenes(TINY / "scenes"), _output(name, command, written))
    if isinstance(spec.source, (JsonLinesSource, TableSource)) and command.rows != RowOptions():
        spec = attrs.evolve(spec, source=spec.source.allowing(command.rows))
    if command.tiny:
        if command.data is not None or written is not None:
            spec = attrs.evolve(spec, source=first_samples(spec.source, TINY / "samples"))
        spec = shrink(spec, TINY / "models")
    if command.captioner_weights and isinstance(spec.captioner, NucleusSpec):
        spec = attrs.evolve(spec, captioner=with_weights(spec.captioner, command.captioner_weights))
    given = {field: getattr(command, field) for field in SAME_IN_SPEC}
    choices: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    if command.augmentation is not None:
        choices["augmentation"] = augmentations.resolve(command.augmentation)(spec.augmentation.size)
    if command.step == "captions":
        choices["teachers"] = ()
    if command.step == "embeddings":
        choices["captioner"] = None
    return attrs.evolve(spec, **choices)


def _output(name: str, command: Command, written: ReinforcementSpec | None) -> str:
    if command.output is not None:
        return command.output
    return f"outputs/{name}{'-tiny' if command.tiny else ''}" if written is None else written.output


def _engine(command: Command) -> Engine:
    if command.engine == "local":
        return LocalEngine(num_workers=command.num_workers, num_threads=command.num_threads, retries=command.retries)
    import torch

    gpus = command.gpus_per_worker
    return RayEngine(
        address=command.ray_address,
        max_workers=command.num_workers or 1,
        cpus_per_worker=command.num_threads or 1,
        gpus_per_worker=float(torch.cuda.is_available()) if gpus is None else gpus,
        retries=command.retries,
    )
