"""Models in all formats and precisions: size, agreement with the model, accuracy lost, latency here, and what failed.

Command:   python -m benchmarks exports --data DATA --converter litert-converter/bin/python     (needs the extra `test`)
           python -m benchmarks exports --models random:mobileclip_s0 --targets onnx openvino --precisions float32
Hardware:  any CPU, with nothing else running on it
Time:      half a minute a cell for a small model, minutes for MobileCLIP-S0 in 8 bits
Result:    a table, a row for each cell; with --output, what was stopped goes on

A cell is a model in a format and a precision, measured in a process of its own, so that one that crashes is one line.
Cosines, first results and gates are those of `mobileclip verify`, on the pictures of the package. Accuracy is that of
`mobileclip eval` through the export, image by image against the model's, with its 95 % interval. Milliseconds are
medians for one input, with the runtime's way in and out through PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar, cast

import attrs
import torch
from attrs import validators

from benchmarks.harness import Bench, Case, Row, Value, spread
from benchmarks.random_weights import random_model
from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.encoders.checkpoints import resolve_spec, save_model
from mobileclip.evaluation.report.verdicts import compare
from mobileclip.evaluation.runner import evaluate_models
from mobileclip.evaluation.spec import EvaluationSpec
from mobileclip.evaluation.summary import summarize
from mobileclip.export import (
    Contract,
    ExportSpec,
    export_model,
    load_export,
    read_contract,
    read_report,
    targets,
)
from mobileclip.hardware.precision import PRECISIONS, Precision
from mobileclip.inference.comparison.measuring import times_in_turn

RANDOM = "random:"
_TARGETS = ("onnx", "openvino", "litert", "executorch", "coreml", "torch")


@attrs.frozen(kw_only=True)
class ExportsBenchSpec(Bench):
    """What is exported, and what it is measured on.

    Args:
        models: as `mobileclip export` takes them; `random:mobileclip_s0` for random weights, which have no accuracy.
        targets: the formats.
        precisions: those of them that a format has.
        data: a data set to measure accuracy on, as `mobileclip eval` takes it; without it, none is.
        converter: the Python of an environment with LiteRT's converter; without it, LiteRT's cells fail.
        rounds: calls of which the median counts.
        folder: where exports and evaluations go.
    """

    models: tuple[str, ...] = ("icons",)
    targets: tuple[str, ...] = _TARGETS
    precisions: tuple[Precision, ...] = PRECISIONS
    data: str | None = None
    converter: Path | None = None
    rounds: int = attrs.field(default=30, validator=validators.ge(1))
    folder: Path = Path("outputs/exports")

    smallest: ClassVar[Mapping[str, object]] = {
        "models": ("icons",),
        "targets": ("onnx",),
        "precisions": ("float32",),
        "rounds": 3,
    }
    selects: ClassVar[frozenset[str]] = frozenset(("models", "targets", "precisions", "converter"))

    def cases(self) -> Iterator[Case]:
        """Yield every export, in order: formats without a precision are left out."""
        for model, target, precision in product(self.models, self.targets, self.precisions):
            if precision in targets.resolve(target).precisions:
                labels = {"model": model, "target": target, "precision": precision}
                yield Case(labels=labels, measure=partial(measure, self, model, target, precision), apart=True)


def measure(spec: ExportsBenchSpec, name: str, target: str, precision: Precision) -> list[Row]:
    """Return what an export is like."""
    model = _checkpoint(spec, name)
    folder = spec.folder / f"{name.rpartition('/')[2].replace(':', '-')}_{target}_{precision}"
    wanted = ExportSpec(out=folder, target=target, precision=precision, converter=spec.converter)
    start = time.perf_counter()
    export_model(model, wanted, overwrite=True, show_progress=False)
    seconds = time.perf_counter() - start
    contract, report = read_contract(folder), read_report(folder)
    least = {tower.tower: tower.cosine_minimum for tower in report.towers}
    size = sum((folder / file).stat().st_size for file in _runtime_files(contract)) / 1e6
    values = {"size": Value(number=size, unit="MB")}
    values |= {f"{tower} cosine": Value(number=one, unit="cosine") for tower, one in least.items() if one is not None}
    values["first results"] = Value(number=100 * report.ranking.agreement, unit="%")
    if spec.data is not None and not name.startswith(RANDOM):
        values |= _accuracy(spec, model, folder, spec.data)
    values |= _milliseconds(load_export(folder, trust=True), rounds=spec.rounds)
    values["export"] = Value(number=seconds, unit="s")
    kept = sum(len(file.float32) for file in contract.towers)
    verdict = f"failed: {'; '.join(report.failures)}" if report.failures else "passed"
    return [Row(values=values, notes={"gates": f"{verdict}, {kept} layers wider" if kept else verdict})]


def _checkpoint(spec: ExportsBenchSpec, model: str) -> str:
    """Return a model as an export takes it: random weights are written to a file once."""
    if not model.startswith(RANDOM):
        return model
    name = model.removeprefix(RANDOM)
    path = spec.folder / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        save_model(random_model(cast("DualEncoderSpec", resolve_spec(name))), path)
    return str(path)


def _runtime_files(contract: Contract) -> list[str]:
    """Return the files that a runtime opens: a tower's, or all of its folder, and what is beside it by its name."""
    stems = {file.file.rpartition(".")[0] for file in contract.towers}
    return [name for name in contract.files if any(name.startswith(f"{stem}.") for stem in stems)]


def _milliseconds(model: DualEncoder, *, rounds: int) -> dict[str, Value]:
    """Return the times of one image and of one text."""
    image, text = model.spec.image.input, model.spec.text.input
    pixels = torch.rand(1, 3, image.size, image.size)
    tokens = torch.full((1, text.context_length), text.pad_id)
    tokens[0, :2] = torch.tensor([1, text.end_id])
    with torch.inference_mode():
        both = times_in_turn([lambda: model.image_encoder(pixels), lambda: model.text_encoder(tokens)], rounds=rounds)
    return {"an image": spread(both[0], "ms"), "a text": spread(both[1], "ms")}


def _accuracy(spec: ExportsBenchSpec, model: str, folder: Path, data: str) -> dict[str, Value]:
    """Return the export's accuracy and its difference; the model is evaluated once, whatever is made of it."""
    wanted = EvaluationSpec(datasets=(data,), output=spec.folder / "evaluation", device="cpu", trust=True)
    run = evaluate_models([f"model={model}", f"{folder.name}={folder}"], wanted)
    if run.failures:
        raise ValueError("; ".join(failure.message for failure in run.failures))
    summary, export = summarize(run)
    comparison = compare(export, summary)
    assert comparison is not None, "both were evaluated on the same data set"
    row = comparison.rows[0]
    interval = row.interval
    ends = {} if interval is None else {"low": 100 * interval.low, "high": 100 * interval.high}
    return {
        f"{row.metric} on {row.dataset}": Value(number=100 * row.model_value, unit="%"),
        "difference": Value(number=100 * (row.model_value - row.reference_value), unit="points", **ends),
    }
