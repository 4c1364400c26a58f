"""Export a model: folded, written by a target, measured, and only then there."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.blocks.depthwise import with_depthwise_convs
from mobileclip.catalogue import LICENCE
from mobileclip.data.tokenizer import Tokenizer
from mobileclip.encoders import DualEncoder, DualEncoderSpec, ImageEncoderSpec, ModelSpec, TextEncoderSpec, load_model
from mobileclip.encoders.checkpoints import PRETRAINED, resolve_spec
from mobileclip.export.calibration import calibration_inputs
from mobileclip.export.contract import (
    FORMAT_VERSION,
    REPORT,
    TOKENIZER,
    Contract,
    ImageContract,
    TextContract,
    TowerFile,
    file_sha256,
)
from mobileclip.export.fallback import fallbacks
from mobileclip.export.graph import TowerExport
from mobileclip.export.measured import Measured, measure_model, towers_of
from mobileclip.export.parity import RANKING_GATE, Report
from mobileclip.export.samples import Samples, bundled_samples
from mobileclip.export.spec import ExportSpec, Precision, Tower
from mobileclip.export.targets import Target, targets
from mobileclip.export.targets.base import versions_of
from mobileclip.export.verify import report_on, run_tower
from mobileclip.pipeline import ImageTextModel
from mobileclip.progress import console
from mobileclip.reparam import reparameterize
from mobileclip.serialization import to_json
from mobileclip.weights import weights_sha256

_TRIAL = "trial"


def export_model(
    model: nn.Module | ImageTextModel | str | Path,
    spec: ExportSpec,
    *,
    checkpoint: str | Path | None = None,
    samples: Samples | None = None,
    calibration: Samples | None = None,
    show_progress: bool = True,
) -> Path:
    """Write a model for another runtime, with all that is needed to use it, and return the folder.

    The folder holds a file per tower, `mobileclip.json` (what goes in and comes out), `tokenizer.json`, golden inputs
    and embeddings, and `report.json`: how near the files are to the model in float32, run in their own runtime. It
    appears whole or not at all. An export that fails a gate is written too: its report says so, and `verify_export`
    measures it again. Where fewer bits fail a gate, the layers that suffer most stay in float32 (`fallbacks`); the
    contract names them. If no choice passes, the best one is written.

    Args:
        model: a model or a tower in evaluation mode; or a name, a file in any known layout, or `hf-hub:owner/name`.
        spec: what to export, and how.
        checkpoint: weights for a model that is given by name.
        samples: what it is measured on; the pictures that come with the package by default.
        calibration: what the ranges of int8 are found with; crops of `samples` by default.
        show_progress: whether to tell, on standard error, what is being done and how long it takes.

    Raises:
        ImportError: if the target's libraries are not installed; the message has the command that installs them.
        FileExistsError: if the folder holds something.
        ValueError: if the target is unknown, the model is in training mode or has no such tower, or the precision
            cannot hold it.
    """
    target = targets.resolve(spec.target)
    target.check()
    out = Path(spec.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; remove it, or choose another folder with --out")
    folded = _folded(model, checkpoint)
    has = towers_of(folded)
    lacking = [tower for tower in spec.towers if tower not in has]
    if lacking:
        raise ValueError(f"the model has no {lacking[0]} tower; choose --tower {next(iter(has))}")
    samples = samples or bundled_samples()
    measured = measure_model(folded, samples, normalize=spec.normalize)
    exports = tuple(
        tower_export(tower, has[tower], spec, target, calibration=calibration or samples) for tower in spec.towers
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        # A folder inside has the usual permissions; the temporary one is for its owner alone.
        folder = Path(temporary) / "export"
        folder.mkdir()
        _write(folder, folded, exports, target, measured, data=samples.name, show_progress=show_progress)
        folder.rename(out)
    return out


def read_report(folder: str | Path) -> Report:
    """Return the report that was written with an export."""
    return Report.from_json((Path(folder) / REPORT).read_text(encoding="utf-8"))


def _folded(model: nn.Module | ImageTextModel | str | Path, checkpoint: str | Path | None) -> nn.Module:
    """Return the model or tower, folded, in float32 on the CPU."""
    if isinstance(model, ImageTextModel):
        model = model.model
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            raise ValueError("a checkpoint was given beside a model that is built already; give the model's name")
        return reparameterize(model).to("cpu", torch.float32)
    name = str(model)
    if checkpoint is None and (Path(name).is_file() or name.startswith("hf-hub:")):
        return load_model(name)
    known = resolve_spec(name)
    if checkpoint is None and name not in PRETRAINED:
        raise ValueError(f"there are no published weights for {name}; give its file with --checkpoint")
    return load_model(checkpoint or PRETRAINED[name], known)


def tower_export(
    tower: Tower, encoder: nn.Module, spec: ExportSpec, target: Target, *, calibration: Samples
) -> TowerExport:
    """Return a tower as a target takes it.

    Args:
        tower: which it is.
        encoder: folded, in float32.
        spec: how it is exported.
        target: what it is exported to.
        calibration: what the ranges of int8 are found with.
    """
    inputs = calibration_inputs(encoder, calibration, spec.preprocess)
    if tower == "text":
        inputs = inputs.to(getattr(torch, target.text_dtype))
    return TowerExport(
        tower=tower,
        encoder=encoder_for(target, encoder),
        spec=spec,
        calibration=inputs,
        text_dtype=target.text_dtype,
    )


def encoder_for(target: Target, encoder: nn.Module) -> nn.Module:
    """Return a folded tower with the convolutions that the target's runtime is faster at."""
    return with_depthwise_convs(encoder) if target.prefers_depthwise else encoder


def _write(
    folder: Path,
    model: nn.Module,
    exports: tuple[TowerExport, ...],
    target: Target,
    measured: Measured,
    *,
    data: str,
    show_progress: bool,
) -> None:
    """Write an export, its contract last: without it, a folder is none."""
    written = [_write_tower(folder, model, export, target, measured, show_progress=show_progress) for export in exports]
    text = next((export.encoder for export in exports if export.tower == "text"), None)
    if text is not None:
        tokenizer = Tokenizer(cast("TextEncoderSpec", text.spec).input)
        (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    measured.write(folder)
    measured.write_golden(folder, exports)
    embeddings = {file.tower: embedding for file, embedding in written}
    report = report_on(embeddings, measured, precision=exports[0].spec.precision, data=data, runtime=target.runtime)
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    contract = _contract(model, exports, tuple(file for file, _ in written), target)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    attrs.evolve(contract, files={name: file_sha256(folder / name) for name in names}).write(folder)


def _write_tower(
    folder: Path, model: nn.Module, export: TowerExport, target: Target, measured: Measured, *, show_progress: bool
) -> tuple[TowerFile, Tensor]:
    """Write a tower with as few layers in float32 as its gates let it; return its file, and what that gives.

    Where it passes with no choice, the one that comes nearest is written.
    """
    name, precision = f"{export.tower}{target.suffix}", export.spec.precision
    shown = console(shown=show_progress)
    best: tuple[tuple[int, float, float], TowerFile, Tensor] | None = None
    inputs = measured.encoder_inputs(export.tower, export.encoder)
    for fallback in fallbacks(export.encoder, inputs, precision, show_progress=show_progress):
        if shown is not None:
            kept = f", in float32: {fallback.name}" if fallback.name else ""
            shown.print(f"writing {name} in {precision}{kept}", highlight=False, soft_wrap=True)
        attempt = attrs.evolve(export, fallback=fallback)
        trial = folder / _TRIAL
        trial.mkdir()
        file = tower_file(attempt, name, target.export(attempt, trial / name))
        contract = _contract(model, (attempt,), (file,), target)
        embeddings = run_tower(trial, contract, target, file, measured, show_progress=show_progress)
        report = report_on({export.tower: embeddings}, measured, precision=precision, data="", runtime=target.runtime)
        nearness = _nearness(report)
        if best is None or nearness > best[0]:
            best = nearness, file, embeddings
            _move(trial, folder)
        shutil.rmtree(trial)
        if report.passed or _is_near_enough(report, precision):
            break
        if shown is not None:
            shown.print(f"{name}: {'; '.join(report.failures)}", highlight=False, soft_wrap=True)
    assert best is not None
    return best[1:]


def _is_near_enough(report: Report, precision: Precision) -> bool:
    """Return whether more layers in float32 are of no use: in 16 bits, near ties alone change places."""
    failed = {gate.name for gate in report.gates if not gate.passed}
    return precision != "int8" and failed <= {RANKING_GATE}


def _move(trial: Path, folder: Path) -> None:
    """Move a tower's files, or its folder, to where those of an earlier attempt may be."""
    for path in trial.iterdir():
        there = folder / path.name
        if there.is_dir():
            shutil.rmtree(there)
        path.replace(there)


def _nearness(report: Report) -> tuple[int, float, float]:
    """Return what tells the better of two reports on one tower: gates, rankings, cosines."""
    (parity,) = report.towers
    return -len(report.failures), report.ranking.agreement, parity.cosine_minimum or -1.0


def tower_file(export: TowerExport, name: str, compute: Precision) -> TowerFile:
    """Return what a contract says of an exported tower.

    Args:
        export: the tower.
        name: of its file.
        compute: what it computes in, as the target says.
    """
    batch = None if export.spec.dynamic_batch else 1
    return TowerFile(
        tower=export.tower,
        file=name,
        input_name=export.input_name,
        input_dtype=export.input_dtype,
        input_shape=(batch, *export.input_shape),
        output_name=export.output_name,
        output_shape=(batch, cast("ImageEncoderSpec | TextEncoderSpec", export.encoder.spec).embedding_dim),
        compute=compute,
        float32=tuple(sorted(export.fallback.layers)),
    )


def _contract(
    model: nn.Module, exports: tuple[TowerExport, ...], files: tuple[TowerFile, ...], target: Target
) -> Contract:
    spec = exports[0].spec
    model_spec = cast("ModelSpec", model.spec)
    # The class that the JSON names: a dual encoder, or the open family that a tower belongs to.
    base = DualEncoderSpec if isinstance(model_spec, DualEncoderSpec) else type(model_spec).__mro__[1]
    parts = [cast("ImageEncoderSpec | TextEncoderSpec", export.encoder.spec) for export in exports]
    image = next((part.input for part in parts if isinstance(part, ImageEncoderSpec)), None)
    text = next((part.input for part in parts if isinstance(part, TextEncoderSpec)), None)
    return Contract(
        format_version=FORMAT_VERSION,
        target=spec.target,
        precision=spec.precision,
        normalize=spec.normalize,
        embedding_dim=parts[0].embedding_dim,
        logit_scale=float(model.logit_scale.detach().exp()) if isinstance(model, DualEncoder) else None,
        towers=files,
        image=None if image is None else ImageContract(input=image, preprocess=spec.preprocess),
        text=None if text is None else TextContract(input=text, start_id=text.start_id, end_id=text.end_id),
        files={},
        versions={"mobileclip": metadata.version("mobileclip"), **versions_of(("torch", *target.libraries))},
        weights_sha256=weights_sha256(model.state_dict()),
        spec=json.loads(to_json(model_spec, unstructure_as=base)),
        licence=LICENCE,
    )
