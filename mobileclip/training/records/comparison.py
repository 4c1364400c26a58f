"""Runs side by side: what they chose differently, and how good they became."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mobileclip.storage import AnyPath, join, read_if_there
from mobileclip.strict import parse_json
from mobileclip.training.records.metrics import read_metrics

SEEDS = ("training.seed", "data.seed")
# Of a step's batch, these say how it went and not how good the model is; the curves show them.
_OF_THE_STEP = ("gradient_norm", "learning_rate", "logit_scale", "seconds", "seconds_waiting")
_MAX_SPEC_BYTES = 1 << 26


@attrs.frozen(kw_only=True)
class RunGroup:
    """Runs with equal settings but for their seeds.

    Args:
        name: their folders.
        steps: that they have made, as text.
        values: names of metrics to their last value; of several runs the mean and, behind it, the standard deviation.
    """

    name: str
    steps: str
    values: Mapping[str, str]


@attrs.frozen(kw_only=True)
class ComparedRuns:
    """Runs side by side.

    Args:
        groups: of runs that differ in their seeds alone.
        choices: dotted names of what groups chose differently, to what each of them chose, in order.
        metrics: names of all that was measured, those of evaluations first.
    """

    groups: tuple[RunGroup, ...]
    choices: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...]


def compare_runs(folders: Sequence[AnyPath]) -> ComparedRuns:
    """Return runs side by side.

    Args:
        folders: outputs of runs, folders or URLs, each with `run.json` and `metrics.jsonl`.

    Raises:
        ValueError: if there is none, or a file of one is not what a run has written.
        OSError: if a file cannot be read.
    """
    if not folders:
        raise ValueError("nothing to compare: give the folders of one run or more")
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
    """Return what a run chose, by dotted names."""
    path = join(folder, "run.json")
    content = read_if_there(path, limit=_MAX_SPEC_BYTES)
    if content is None:
        raise ValueError(f"{folder} is no output of a training: it has no run.json; `mobileclip train` writes one")
    return dict(_flat(parse_json(content), ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list) and value:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(one, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value, ensure_ascii=False)


def _last(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the last value of everything that was logged, of evaluations first; `step` is how far the run came."""
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
