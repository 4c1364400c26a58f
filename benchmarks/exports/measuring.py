"""One export, made, compared and timed in a process of its own: what ends that process ends one cell."""

from __future__ import annotations

import statistics
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import cast

import torch
from torch import nn

from benchmarks.apart import in_own_process
from benchmarks.exports.results import Cell, Loss, Measured, Outcome
from benchmarks.exports.spec import ExportsBenchSpec
from benchmarks.rivals import randomize
from mobileclip.data.images.transform import ImageTransform, load_image
from mobileclip.encoders import DualEncoder
from mobileclip.encoders.checkpoints import resolve_spec, save_model
from mobileclip.evaluation.report.verdicts import compare
from mobileclip.evaluation.runner import evaluate_models
from mobileclip.evaluation.spec import EvaluationSpec
from mobileclip.evaluation.summary import summarize
from mobileclip.export import (
    Contract,
    ExportSpec,
    bundled_samples,
    export_model,
    load_export,
    read_contract,
    read_report,
)
from mobileclip.inference import processor
from mobileclip.inference.comparison.measuring import times_in_turn
from mobileclip.storage import printable

RANDOM = "random:"
_SHOWN = 300


def measure_apart(spec: ExportsBenchSpec, cell: Cell) -> Outcome:
    """Return what came of a cell, measured in a process of its own.

    Args:
        spec: the choices.
        cell: the export.
    """
    try:
        return in_own_process(measure, spec, cell)
    except BrokenProcessPool:
        failure = "the process was ended, by a crash of the runtime or for want of memory"
        return Outcome(cell=cell, machine=machine(), failure=failure)


def machine() -> str:
    """Return where it is measured."""
    return f"{processor()}, {torch.get_num_threads()} threads"


def measure(spec: ExportsBenchSpec, cell: Cell) -> Outcome:
    """Return what came of a cell; any error of libraries is what came of it."""
    try:
        return Outcome(cell=cell, machine=machine(), measured=_measured(spec, cell))
    except Exception as error:  # noqa: BLE001  the errors of converters and runtimes have no base in common
        failure = printable(f"{type(error).__name__}: {error}", limit=_SHOWN)
        return Outcome(cell=cell, machine=machine(), failure=failure)


def _measured(spec: ExportsBenchSpec, cell: Cell) -> Measured:
    model = _checkpoint(spec, cell.model)
    folder, start = spec.output / "exports" / str(cell), time.perf_counter()
    wanted = ExportSpec(out=folder, target=cell.target, precision=cell.precision, converter=spec.converter)
    export_model(model, wanted, overwrite=True, show_progress=False)
    seconds = time.perf_counter() - start
    contract, report = read_contract(folder), read_report(folder)
    times = _milliseconds(load_export(folder, trust=True), rounds=spec.rounds)
    least = {tower.tower: tower.cosine_minimum for tower in report.towers}
    return Measured(
        megabytes=sum((folder / name).stat().st_size for name in _runtime_files(contract)) / 1e6,
        cosines=(least["image"], least["text"]),
        agreement=report.ranking.agreement,
        failures=tuple(report.failures),
        kept=sum(len(file.float32) for file in contract.towers),
        image_ms=times[0],
        text_ms=times[1],
        seconds=seconds,
        loss=None if spec.data is None or cell.model.startswith(RANDOM) else _loss(spec, model, folder, spec.data),
    )


def _checkpoint(spec: ExportsBenchSpec, model: str) -> str:
    """Return a model as an export takes it: random weights are written to a file once."""
    if not model.startswith(RANDOM):
        return model
    name = model.removeprefix(RANDOM)
    path = spec.output / f"{name}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        built = resolve_spec(name).build()
        randomize(built)
        _fit_norms(cast("DualEncoder", built))
        save_model(built, path)
    return str(path)


@torch.no_grad()
def _fit_norms(model: DualEncoder) -> None:
    """Give batch norms the statistics of the package's pictures: with others, all images have one embedding."""
    transform = ImageTransform(model.spec.image.input)
    images = torch.stack([transform(load_image(data)) for data in bundled_samples().images])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The mean of the batches there are, of which there is one.
            module.momentum = None
            module.reset_running_stats()
    model.train()
    model.encode_image(images)
    model.eval()


def _runtime_files(contract: Contract) -> list[str]:
    """Return the files that a runtime opens: a tower's, or all of its folder, and what is beside it by its name."""
    stems = {file.file.rpartition(".")[0] for file in contract.towers}
    return [name for name in contract.files if any(name.startswith(f"{stem}.") for stem in stems)]


def _milliseconds(model: DualEncoder, *, rounds: int) -> tuple[float, float]:
    """Return the median times of one image and of one text."""
    image, text = model.spec.image.input, model.spec.text.input
    pixels = torch.rand(1, 3, image.size, image.size)
    tokens = torch.full((1, text.context_length), text.pad_id)
    tokens[0, :2] = torch.tensor([1, text.end_id])
    with torch.inference_mode():
        both = times_in_turn([lambda: model.image_encoder(pixels), lambda: model.text_encoder(tokens)], rounds=rounds)
    return statistics.median(both[0]), statistics.median(both[1])


def _loss(spec: ExportsBenchSpec, model: str, folder: Path, data: str) -> Loss:
    """Return what the export loses; the model is evaluated once, whatever is made of it."""
    wanted = EvaluationSpec(datasets=(data,), output=spec.output / "evaluation", device="cpu", trust=True)
    run = evaluate_models([f"model={model}", f"{folder.name}={folder}"], wanted)
    if run.failures:
        raise ValueError("; ".join(failure.message for failure in run.failures))
    summary, export = summarize(run)
    comparison = compare(export, summary)
    assert comparison is not None, "both were evaluated on the same data set"
    row = comparison.rows[0]
    return Loss(
        dataset=row.dataset,
        metric=row.metric,
        model=row.reference_value,
        export=row.model_value,
        low=None if row.interval is None else row.interval.low,
        high=None if row.interval is None else row.interval.high,
        num_images=row.num_images,
    )
