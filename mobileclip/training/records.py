"""A run's records: metrics, curves, comparison of runs, and skipped samples."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip import storage
from mobileclip.charts import Line, Panel, write_chart
from mobileclip.data import Skip
from mobileclip.extras import needed
from mobileclip.storage import AnyPath, join, read_if_exists
from mobileclip.strict import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

    from mobileclip.storage import AnyPath


_MAX_BYTES = 1 << 32
# Longer than the last two lines of a metrics file.
_TAIL_BYTES = 1 << 16


class MetricLog:
    """Appends metrics to a JSONL file; for a resumed run, the log first removes the lines after the checkpoint.

    Object stores cannot append. For a URL, the log therefore keeps all lines in memory, and the function returned by
    `written` uploads the whole file.

    Args:
        path: path or URL of the metrics file; the log creates a missing file.
        resume_step: first step that the run adds, 0 for a new run; the log removes the lines of this and later steps.
        tensorboard: local folder for TensorBoard files; None writes no TensorBoard files.

    Raises:
        ModuleNotFoundError: if `tensorboard` is set and TensorBoard is not installed.
        ValueError: if `tensorboard` is a URL.
    """

    def __init__(self, path: AnyPath, *, resume_step: int = 0, tensorboard: AnyPath | None = None) -> None:
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] < resume_step] if storage.exists(path) else []
        lines = [json.dumps(line) + "\n" for line in kept]
        self._lines = lines if storage.is_remote(path) else None
        storage.make_directory_of(path)
        storage.write_text(path, "".join(lines))  # fails early if the path is not writable
        self._evaluated = {line["step"] for line in kept if "loss" not in line}
        self._writer = None if tensorboard is None else _summary_writer(tensorboard, resume_step)

    def was_evaluated(self, step: int) -> bool:
        """Return whether an earlier run has logged an evaluation of `step`."""
        return step in self._evaluated

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to the file; for a URL, buffer the line for the next upload (see `written`)."""
        line = json.dumps({"step": step, **values}) + "\n"
        if self._lines is not None:
            self._lines.append(line)
        else:
            with storage.local_path(self.path).open("a", encoding="utf-8") as file:
                file.write(line)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def written(self) -> Callable[[], None]:
        """Return a thread-safe function that uploads the current lines; for a local file, the function does nothing."""
        if self._lines is None:
            return lambda: None
        return partial(storage.write_text, self.path, "".join(self._lines))


def read_metrics(path: AnyPath) -> list[dict[str, float]]:
    """Return the lines of a metrics file, without an incomplete last line.

    Raises:
        ValueError: if a complete line is not valid JSON.
        OSError: if the file cannot be read.
    """
    *whole, _ = storage.read_bytes(path, limit=_MAX_BYTES).decode().split("\n")
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON: {error.doc[:80]!r}") from None


def last_metrics(path: Path) -> dict[str, float] | None:
    """Return the last complete line of a local metrics file; None without a complete line.

    The function reads only the end of the file, so a call every second is cheap.

    Args:
        path: metrics file, which may not exist yet.

    Raises:
        ValueError: if the last complete line is not valid JSON.
        OSError: if the file cannot be read.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        *lines, _ = file.read().split(b"\n")
    try:
        return dict(json.loads(lines[-1])) if lines else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON: {error.doc[:80]!r}") from None


def _summary_writer(folder: AnyPath, resume_step: int) -> SummaryWriter:
    if storage.is_remote(folder):
        raise ValueError(
            f"TensorBoard files must be in a local folder, not at {folder}; leave out tensorboard or use a local output"
        )
    with needed("training with TensorBoard logs", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder), purge_step=resume_step)


_TERMS = ("contrastive", "distillation")
_ALWAYS = ("logit_scale", "learning_rate")
# Suffixes of the main evaluation metrics; a panel for every metric would be too many.
_MAIN = ("acc1", "mean_recall@1", "recall_at_1", "top-1", "R@1", "measured")
_MOST_EVALUATED = 4

Lines = list[dict[str, float]]


def plot_curves(runs: Mapping[str, AnyPath], path: AnyPath, *, metrics: Sequence[str] | None = None) -> None:
    """Plot metrics over steps in a PNG file, with one panel per metric and one line per run.

    For each evaluation metric, the plot marks the best step of each run.

    Args:
        runs: the runs' metrics files, by the name of the run; the legend shows the names.
        path: PNG file to write.
        metrics: names of the metrics to draw; None for the loss terms, at most four evaluation metrics, the logit scale
            and the learning rate.

    Raises:
        ValueError: if `runs` or `metrics` is empty, or no run has logged one of the metrics.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    lines = {name: read_metrics(metrics_path) for name, metrics_path in runs.items()}
    logged = [line for run in lines.values() for line in run]
    chosen = _usual(logged) if metrics is None else tuple(metrics)
    if not lines or not chosen:
        raise ValueError("nothing to plot: pass at least one run and one metric")
    write_chart([_panel(metric, lines, logged) for metric in chosen], path)


def _usual(logged: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    """Return the default metrics: nonzero loss terms, main evaluation metrics, logit scale and learning rate."""
    names: dict[str, None] = {}
    evaluated: dict[str, None] = {}
    for line in logged:
        for name, value in line.items():
            if name in _ALWAYS or (name in _TERMS and value != 0):
                names[name] = None
            elif name.endswith(_MAIN) and _is_evaluated(name, [line]):
                evaluated[name] = None
    order = (*_TERMS, *list(evaluated)[:_MOST_EVALUATED], *_ALWAYS)
    return tuple(name for name in order if name in names or name in evaluated)


def _is_evaluated(metric: str, logged: Iterable[Mapping[str, float]]) -> bool:
    """Return whether a metric comes from an evaluation; only the lines of training steps have a loss."""
    return any(metric in line and "loss" not in line and not {*_TERMS, *_ALWAYS} & line.keys() for line in logged)


def _panel(metric: str, lines: Mapping[str, Lines], logged: Lines) -> Panel:
    drawn = {name: [line for line in run if metric in line] for name, run in lines.items()}
    if not any(drawn.values()):
        known = sorted({key for line in logged for key in line})
        raise ValueError(f"no run has logged {metric!r}; choose from the logged metrics: {', '.join(known)}")
    found, said = [], []
    for name, run in drawn.items():
        steps, values = [line["step"] for line in run], [line[metric] for line in run]
        is_starred = bool(run) and _is_evaluated(metric, run)
        told = max(range(len(values)), key=values.__getitem__) if is_starred else len(run) - 1
        found.append(Line(x=steps, y=values, label=name, star=told if is_starred else None))
        if run:
            said.append((values[told], f"{name} has {values[told]:.3g} at step {steps[told]:,.0f}"))
    # The title names the run with the best evaluation, or with the lowest final loss.
    title = "" if metric in _ALWAYS else (max if _is_evaluated(metric, logged) else min)(said)[1]
    return Panel(lines=found, y_label=metric.replace("_", " "), x_label="step", title=title)


SEEDS = ("training.seed", "data.seed")
# These values describe a training step and not the quality of the model; the curves show them.
_OF_THE_STEP = ("gradient_norm", "learning_rate", "logit_scale", "seconds", "seconds_waiting")
_MAX_SPEC_BYTES = 1 << 26


@attrs.frozen(kw_only=True)
class RunGroup:
    """Runs with settings that differ only in the seeds.

    Args:
        name: folders of the runs, separated by commas.
        steps: last logged step, counted from 0, or the range of the last logged steps of several runs, as text.
        values: last value by metric name, as text; for several runs, the mean, standard deviation and number of runs.
    """

    name: str
    steps: str
    values: Mapping[str, str]


@attrs.frozen(kw_only=True)
class ComparedRuns:
    """The differing options and the last metrics of several runs.

    Args:
        groups: the runs, grouped by all settings except the seeds.
        choices: options that differ between groups, by dotted name; one value per group, in the order of `groups`.
        metrics: names of all metrics, evaluation metrics first.
    """

    groups: tuple[RunGroup, ...]
    choices: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...]


def compare_runs(folders: Sequence[AnyPath]) -> ComparedRuns:
    """Compare the options and the last metrics of runs.

    Args:
        folders: output folders or URLs of runs, each with `run.json` and `metrics.jsonl`.

    Raises:
        ValueError: if `folders` is empty, a folder has no `run.json`, or a file is not valid JSON.
        OSError: if a file cannot be read.
    """
    if not folders:
        raise ValueError("nothing to compare: pass the folder of at least one run")
    groups: dict[tuple[tuple[str, str], ...], list[AnyPath]] = {}
    for folder in folders:
        chosen = tuple((name, value) for name, value in _choices(folder).items() if name not in SEEDS)
        groups.setdefault(chosen, []).append(folder)
    choices = [dict(chosen) for chosen in groups]
    names = {name: None for chosen in choices for name in chosen}
    differing = {name: tuple(chosen.get(name, "") for chosen in choices) for name in names}
    last = {folder: _last(read_metrics(join(folder, "metrics.jsonl"))) for folder in folders}
    return ComparedRuns(
        groups=tuple(_group(members, last) for members in groups.values()),
        choices={name: values for name, values in differing.items() if len(set(values)) > 1},
        metrics=tuple({name: None for one in last.values() for name in one if name != "step"}),
    )


def _choices(folder: AnyPath) -> dict[str, str]:
    """Return a run's options by dotted name."""
    path = join(folder, "run.json")
    content = read_if_exists(path, limit=_MAX_SPEC_BYTES)
    if content is None:
        raise ValueError(
            f"{folder} is not a training output: the folder has no run.json; `mobileclip train` writes this file"
        )
    return dict(_flat(parse_json(content), ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list) and value:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(one, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value, ensure_ascii=False)


def _last(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the last value of every metric, evaluation metrics first; `step` is the last step."""
    evaluated: dict[str, float] = {}
    trained: dict[str, float] = {}
    for line in lines:
        (trained if "loss" in line else evaluated).update(line)
    step = max((line["step"] for line in lines), default=0)
    return {name: value for name, value in (evaluated | trained).items() if name not in _OF_THE_STEP} | {"step": step}


def _group(members: Sequence[AnyPath], last: Mapping[AnyPath, Mapping[str, float]]) -> RunGroup:
    names = {name: None for folder in members for name in last[folder] if name != "step"}
    steps = sorted({int(last[folder]["step"]) for folder in members})
    return RunGroup(
        name=", ".join(map(str, members)),
        steps=" to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1]))),
        values={name: _spread([last[folder][name] for folder in members if name in last[folder]]) for name in names},
    )


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g} ({len(values)})"


FOLDER = "skipped"
_NAME = re.compile(r"step-(\d{8})\.process-\d+\.jsonl")


@attrs.frozen
class SkippedFolder:
    """A folder of files that list skipped samples and shards, one line per item with the reason.

    Args:
        path: path or URL of the folder; `write` creates a missing folder.
    """

    path: str

    def write(self, skips: Sequence[Skip], *, step: int, rank: int) -> None:
        """Write the items that a process has skipped since the last checkpoint.

        Args:
            skips: samples and shards skipped in the batches up to `step`.
            step: number of completed steps at the next checkpoint.
            rank: rank of the process.

        Raises:
            OSError: if the file cannot be written.
        """
        if skips:
            storage.make_directory(self.path)
            lines = (json.dumps(attrs.asdict(skip)) + "\n" for skip in skips)
            storage.write_text(storage.join(self.path, f"step-{step:08d}.process-{rank}.jsonl"), "".join(lines))

    def forget_after(self, step: int) -> None:
        """Remove the files of steps after `step`; a resumed run writes these files again."""
        for path in storage.list_files(self.path):
            found = _NAME.fullmatch(storage.file_name(path))
            if found is not None and int(found[1]) > step:
                storage.remove(path)
