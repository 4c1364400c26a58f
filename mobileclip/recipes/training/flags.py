"""The flags that all training recipes share, how they are parsed, and the run that they start."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import tyro

from mobileclip.data import ReinforcedPipelineSpec
from mobileclip.datasets import RowOptions, ShardSource, as_source, shards_of
from mobileclip.hardware.devices import AUTO
from mobileclip.processes import this_process
from mobileclip.recipes.entry_point import described, opened, show
from mobileclip.recipes.training.linked_defaults import Given, following_pipeline, following_training
from mobileclip.registry import nearest
from mobileclip.storage import AnyPath, is_remote, join
from mobileclip.terminal import console, say
from mobileclip.terminal.help import parse
from mobileclip.training import Evaluate, RunSpec, TrainingSpec, connected, follow_card, plot_curves, run
from mobileclip.training.finetuning.tasks import open_task, write_training_data

OUTPUTS = Path("outputs")

_CONFIG = (tyro.conf.AvoidSubcommands,)


Pipeline = TypeVar("Pipeline")


@attrs.frozen(kw_only=True)
class Flags(Generic[Pipeline]):
    """The flags that all training recipes share; each recipe adds those of its data.

    Args:
        data: paths, brace patterns or URLs (s3://, gs://) of what it trains on.
        validation: what is held out and measured between epochs.
        output: folder, or URL such as s3://bucket/run, of metrics, curves, checkpoints and the model. A
            second run goes on from the last checkpoint.
        initial_weights: a checkpoint to start from.
        device: where to train, such as cuda:1, mps or cpu; `auto` is this process's GPU, or the best device there is.
        show: print the run's choices as JSON and stop; --run reads them back.
        run: a file that --show has written, or the run.json of a run's output: its choices in place of the recipe's.
        tiny: two steps with a shallow model: the whole path in a minute.
        pipeline: how the data is read.
        training: how the model is trained.
    """

    data: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    output: str | None = None
    initial_weights: Path | None = None
    device: str = AUTO
    show: bool = False
    run: Path | None = None
    tiny: bool = False
    pipeline: Pipeline
    training: TrainingSpec


Recipe = Callable[[], RunSpec]
FlagsType = TypeVar("FlagsType", bound=Flags[Any])


@attrs.frozen(kw_only=True)
class Kind(Generic[FlagsType]):
    """A kind of training recipe: its flags, and the functions that resolve and run it.

    Args:
        name: of the kind of recipe, a key of `FLAGS`.
        command: what it is told on the command line.
        others: models that another recipe trains.
        resolve: from a run's choices to those with what the command line says instead.
        train: runs it into a folder, under a name.
        changes: flags to what they make of a run's choices, before other flags change those.
    """

    name: str
    command: type[FlagsType]
    others: type
    resolve: Callable[[RunSpec, FlagsType], RunSpec]
    train: Callable[[RunSpec, FlagsType, str, str], None]
    changes: Mapping[str, Callable[[RunSpec], RunSpec]] = attrs.field(factory=dict)


def run_as(
    kind: Kind[FlagsType],
    recipe: Recipe | Mapping[str, Recipe],
    name: str,
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Read the command line and train, or say what is missing.

    Args:
        kind: what is trained.
        recipe: returns the run's choices; or several by name, of which the command line names one.
        name: of the run, the default output's folder.
        description: the recipe's docstring, which `--help` begins with.
        arguments: the command line; None for the process's own.
    """
    recipes = recipe if isinstance(recipe, Mapping) else {"": recipe}
    titles = {row: (one.__doc__ or "").partition("\n")[0] for row, one in recipes.items() if row}
    with opened(kind.name, name, description, arguments, cls=RunSpec, rows=titles) as (written, typed):
        if written is not None and isinstance(written.model, kind.others):
            raise ValueError(f"{name} trains no {kind.others.__name__}; give --run to a recipe that does")
        # A file that is read says which of the rows it is; one that is named names the output.
        row, rest = row_of(titles, typed, is_needed=written is None)
        name = f"{name}-{row}" if row else name
        chosen = _asked(kind, written or recipes[row](), rest)
        command = _parsed(kind, chosen, described(description), rest)
        spec = kind.resolve(chosen, command)
        if command.show:
            show(spec)
            return
        spec, taken = follow_card(spec, chosen if written is None else None)
        if this_process().is_first:
            for line in taken:
                say(line)
        output = command.output or str(OUTPUTS / (f"{name}-tiny" if command.tiny else name))
        kind.train(spec, command, output, name)


def row_of(rows: Mapping[str, str], arguments: Sequence[str], *, is_needed: bool) -> tuple[str, Sequence[str]]:
    """Return which of a recipe's runs is named, if any, and the rest of the command line.

    Raises:
        ValueError: if there are several, and none of them is named.
    """
    first = "".join(arguments[:1]).replace("-", "_")
    if first in rows:
        return first, arguments[1:]
    if not rows or not is_needed:
        return "", arguments
    if "--help" in arguments:
        return next(iter(rows)), arguments
    if first.startswith("_") or not first:
        raise ValueError(f"which run? its name comes first: {', '.join(rows)}; their titles are in `--help`")
    raise ValueError(f"there is no run {arguments[0]!r}; {nearest(first, rows)} Their titles are in `--help`")


def refuse_lost(given: Mapping[str, object], reach: Mapping[str, bool]) -> None:
    """Refuse flags that do not reach a run whose model or data are written elsewhere.

    Args:
        given: flags to what they are given.
        reach: whether each of them is for the model and the data of the run.

    Raises:
        ValueError: if one is given and does not reach.
    """
    if lost := [flag for flag, value in given.items() if value and not reach[flag]]:
        raise ValueError(f"{', '.join(lost)} is for the library's own models and data; change the run itself")


def train_and_plot(
    spec: RunSpec,
    output: str,
    *,
    evaluate: Callable[[Any], Evaluate] | None,
    device: str,
    name: str,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> AnyPath | None:
    """Train, draw the curves, and return the model's file or URL; None in all processes but the first."""
    with connected(device, collective_seconds=spec.training.collective_seconds) as world:
        if isinstance(spec.data, ReinforcedPipelineSpec) and not spec.data.reinforced:
            spec = world.from_first(partial(sharded, spec, output, rows))
        model = run(spec, output, evaluate=evaluate, title=name, console=console(), within=world)
    if not this_process().is_first:
        return None
    draw_curves(output, name)
    return model


def sharded(spec: RunSpec, output: str, rows: RowOptions) -> RunSpec:
    """Return a run whose data is in shards: a list, table or folder of images is written into some, once.

    Args:
        spec: the run.
        output: where they go, in `data`.
        rows: how rows are read.

    Raises:
        ValueError: if there are several such data, or the output is remote.
    """
    given = spec.data.shards
    if all(isinstance(as_source(one, rows=rows), ShardSource) for one in given):
        return attrs.evolve(spec, data=attrs.evolve(spec.data, shards=shards_of(given)))
    if len(given) > 1 or is_remote(output):
        raise ValueError(
            f"{', '.join(given)}: one list, table or folder of images is written into shards, in a local output; "
            "join several to one, or give shards"
        )
    task = open_task(given[0], "captions", (), rows)
    written = write_training_data(task, Path(output) / "data" / task.fingerprint)
    return attrs.evolve(spec, data=attrs.evolve(spec.data, shards=written.shards, num_samples=written.num_samples))


def draw_curves(output: AnyPath, name: str) -> None:
    """Draw a run's curves beside its metrics, where what draws is installed."""
    try:
        plot_curves({name: join(output, "metrics.jsonl")}, join(output, "curves.png"))
    except ModuleNotFoundError as error:
        say(f"no curves: {error}")


def _asked(kind: Kind[FlagsType], chosen: RunSpec, arguments: Sequence[str]) -> RunSpec:
    """Return a run's choices as flags such as `--released` make them: its model has no flags of its own."""
    given = Given(arguments)
    for flag, change in kind.changes.items():
        chosen = change(chosen) if given.has(flag) else chosen
    return chosen


def _parsed(kind: Kind[FlagsType], chosen: RunSpec, description: str, arguments: Sequence[str]) -> FlagsType:
    """Return the command line: each field of `kind.command`, and of the specs in it, is a flag."""
    default = _defaults(kind, chosen, arguments)
    with warnings.catch_warnings():
        # Data of another class than the library's has its own choices as flags.
        warnings.filterwarnings("ignore", "The field `pipeline` is annotated", UserWarning)
        return parse(kind.command, arguments, description=description, default=default, config=_CONFIG)


def _defaults(kind: Kind[FlagsType], chosen: RunSpec, arguments: Sequence[str]) -> FlagsType:
    """Return what the command line is read over: a run's choices, as they follow the flags that are given."""
    given = Given(arguments)
    return kind.command(
        pipeline=following_pipeline(chosen.data, given),
        training=following_training(chosen.training, given),
        initial_weights=chosen.initial_weights,
    )
