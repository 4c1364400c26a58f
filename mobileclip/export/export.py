"""Export a model: folded, written by a target, measured, and only then there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import attrs
import torch
from torch import nn

from mobileclip import storage
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.encoders import Classifier, CoCa, ModelSpec, load_model
from mobileclip.encoders.checkpoints import PRETRAINED, resolve_spec, unpublished
from mobileclip.encoders.checkpoints.published import CONTRACT
from mobileclip.export.contract import (
    NOT_RUN,
    REPORT,
    Contract,
    TowerFile,
    Variant,
    architecture_of,
    contract_of,
    notes_of,
    origin_of,
    tower_file,
    write_card,
)
from mobileclip.export.int8 import calibration_inputs, layers_in_float32
from mobileclip.export.layouts import fitted, layouts
from mobileclip.export.measured import Measured, Outputs, measure_model, towers_of
from mobileclip.export.running import remember_export
from mobileclip.export.spec import ExportSpec, Tower, places
from mobileclip.export.targets import Target, targets
from mobileclip.export.targets.base import NotRunHereError, require_able, takes_lengths
from mobileclip.export.towers import TowerExport, input_of, lengths_of
from mobileclip.export.verify import Report, report_of_none, report_on, run_tower, together
from mobileclip.inference.comparison import Samples, bundled_samples
from mobileclip.inference.forms import with_depthwise_convs, with_one_token
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.loading import holds_weights
from mobileclip.inputs import TextInput
from mobileclip.reparam import reparameterize, with_children
from mobileclip.storage import atomic_folder, exclusive
from mobileclip.storage.atomic import LOCK, PREFIX
from mobileclip.tensor_files import file_sha256
from mobileclip.terminal import console

__all__ = ["Samples", "bundled_samples", "export_model"]


def export_model(
    model: nn.Module | ImageTextModel | str | Path,
    spec: ExportSpec,
    *,
    checkpoint: str | Path | None = None,
    samples: Samples | None = None,
    calibration: Samples | None = None,
    place: str | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Path:
    """Write a model for another runtime, with all that is needed to use it, and return the folder.

    The folder holds a file per tower, `mobileclip.json` (what goes in and comes out), `tokenizer.json`, golden inputs
    and embeddings, a card (`README.md`), `LICENSE`, and `report.json`: how near the files are to the model in float32,
    run in their own runtime. It appears whole or not at all. An export that fails a gate is written too: its report
    says so, and `verify_export` measures it again. In lower precision some layers stay in float32
    (`layers_in_float32`); the contract names them.

    Args:
        model: a model, a tower or a classifier in evaluation mode; or a name, a file in any known layout, a folder with
            one, or `hf-hub:owner/name`.
        spec: what to export, and how.
        checkpoint: weights for a model that is given by name.
        samples: what it is measured on; the pictures that come with the package by default.
        calibration: what the ranges of int8 are found with; crops of `samples` by default.
        place: where it will be run, as `mobileclip.export.places` calls it, which then says what the spec does not.
        overwrite: whether an export that is there is replaced, once the new one is whole.
        show_progress: whether to tell, on standard error, what is being done and how long it takes.

    Raises:
        ImportError: if the target's libraries are not installed; the message has the command that installs them.
        FileExistsError: if the folder holds something that may not be replaced.
        ValueError: if the target or the layout is unknown or has no such precision, the model is in training mode or
            has no such tower, gives what no export can be measured against, or the precision cannot hold it; or another
            process is writing the folder.
    """
    chosen = None if place is None else places.resolve(place)
    spec = fitted(spec if chosen is None else chosen.fitted(spec))
    target = targets.resolve(spec.target)
    require_able(target, spec)
    target.check()
    out = Path(spec.output)
    storage.require_output_folder(out, overwrite=overwrite, marker=CONTRACT)
    with working_folder(out) as folder:
        folded, spec = _as_asked(_folded(model, checkpoint, spec), spec)
        has = towers_of(folded)
        lacking = [tower for tower in spec.towers if tower not in has]
        if lacking:
            raise ValueError(f"the model has no {lacking[0]} tower; choose --tower {next(iter(has))}")
        samples = samples or bundled_samples()
        measured = measure_model(folded, samples, normalize=spec.normalize, stages=spec.features)
        ranges = (calibration or samples) if "int8" in spec.precisions else None
        exports = tuple(tower_export(tower, has[tower], spec, target, calibration=ranges) for tower in spec.towers)
        origin = origin_of(model, checkpoint)
        contract = contract_of(folded, exports, target, origin)
        name, notes = architecture_of(cast("ModelSpec", folded.spec)), notes_of(contract, origin.author)
        exports = tuple(attrs.evolve(export, model=name, notes=notes) for export in exports)
        contract, report = _write(
            folder, contract, exports, target, measured, data=samples.name, show_progress=show_progress
        )
        use = "" if chosen is None else chosen.use
        write_card(folder, contract, report, spec=cast("ModelSpec", folded.spec), origin=origin, use=use)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        # The contract last: without it, a folder is no export.
        attrs.evolve(contract, files={name: file_sha256(folder / name) for name in files}).write(folder)
    remember_export(out)
    return out


def _folded(
    model: nn.Module | ImageTextModel | str | Path, checkpoint: str | Path | None, spec: ExportSpec
) -> nn.Module:
    """Return the model or tower, folded, in float32 on the CPU."""
    if isinstance(model, ImageTextModel):
        model = model.model
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            raise ValueError("a checkpoint was given beside a model that is built already; give the model's name")
        if (spec.image_size, spec.context_length) != (None, None):
            raise ValueError("a model that is built already has its size; give that where it is loaded")
        return reparameterize(model).to("cpu", torch.float32)
    name = str(model)
    if checkpoint is None and holds_weights(name):
        return load_model(name, image_size=spec.image_size, context_length=spec.context_length)
    known = resolve_spec(name)
    if checkpoint is None and name not in PRETRAINED:
        raise ValueError(unpublished(name))
    return load_model(
        checkpoint or PRETRAINED[name], known, image_size=spec.image_size, context_length=spec.context_length
    )


def _as_asked(model: nn.Module, spec: ExportSpec) -> tuple[nn.Module, ExportSpec]:
    """Return what of a model is exported, and how: a classifier whole, with logits as they are, or its image tower.

    A tower alone is exported where nobody says which.

    Raises:
        ValueError: if a classifier is asked for what it has not, or the model is a captioner.
    """
    if isinstance(model, CoCa):
        raise ValueError("a captioner is not exported; export an image-text model or a classifier")
    if not isinstance(model, Classifier):
        alone = tuple(towers_of(model)) if spec.tower == "both" else ()
        return model, attrs.evolve(spec, tower=alone[0]) if len(alone) == 1 else spec
    if spec.tower == "text":
        raise ValueError("a classifier has no text tower; leave --tower out for the whole, or choose --tower image")
    if spec.tower == "image":
        return model.image_encoder, spec
    if spec.layout != "plain":
        raise ValueError(f"the layout {spec.layout!r} is of image-text models; leave layout out for a classifier")
    if spec.features:
        raise ValueError("feature maps come beside embeddings, and a classifier gives logits; choose --tower image")
    return model, attrs.evolve(spec, tower="image", normalize=False)


def tower_export(
    tower: Tower, encoder: nn.Module, spec: ExportSpec, target: Target, *, calibration: Samples | None
) -> TowerExport:
    """Return a tower as a target takes it.

    Args:
        tower: which it is.
        encoder: folded, in float32.
        spec: how it is exported.
        target: what it is exported to.
        calibration: what the ranges of int8 are found with; None where there are none to find.
    """
    inputs = torch.empty(0) if calibration is None else calibration_inputs(encoder, calibration, spec.preprocess)
    text_dtype = layouts.resolve(spec.layout).text_dtype or target.text_dtype
    if tower == "text":
        inputs = inputs.to(getattr(torch, text_dtype))
    lengths: tuple[int, ...] = ()
    if isinstance(text := input_of(encoder), TextInput) and takes_lengths(target, spec):
        lengths = lengths_of(encoder, text)
    return TowerExport(
        tower=tower,
        encoder=encoder_for(target, encoder, whole=tower == "image" and bool(spec.features)),
        spec=spec,
        calibration=inputs,
        text_dtype=text_dtype,
        lengths=lengths,
    )


def encoder_for(target: Target, encoder: nn.Module, *, whole: bool = False) -> nn.Module:
    """Return a folded tower in the form that is exported.

    Its last layer computes the token that is read alone, and convolutions are those that the target's runtime is faster
    at.

    Args:
        target: what it is exported to.
        encoder: folded.
        whole: whether the last layer's other tokens come out too.
    """
    if isinstance(encoder, Classifier):
        return with_children(encoder, {"image_encoder": encoder_for(target, encoder.image_encoder)})
    encoder = encoder if whole else with_one_token(encoder)
    return with_depthwise_convs(encoder) if target.prefers_depthwise else encoder


def _write(
    folder: Path,
    contract: Contract,
    exports: tuple[TowerExport, ...],
    target: Target,
    measured: Measured,
    *,
    data: str,
    show_progress: bool,
) -> tuple[Contract, Report]:
    """Write an export but for its contract, which it returns with the report."""
    variants, reports = [], {}
    for precision in exports[0].spec.precisions:
        own = tuple(attrs.evolve(one, spec=attrs.evolve(one.spec, precision=precision, also=())) for one in exports)
        files, outputs = [], {}
        for export in own:
            file, given = _write_tower(export, folder, contract, target, measured, show_progress=show_progress)
            files.append(file)
            if given is not None:
                outputs[export.tower] = given
        variants.append(Variant(precision=precision, towers=tuple(files)))
        if len(outputs) == len(own):
            reports[precision] = report_on(outputs, measured, precision=precision, data=data, runtime=target.runtime)
    has_run = len(reports) == len(variants)
    contract = attrs.evolve(
        contract, towers=variants[0].towers, others=tuple(variants[1:]), state="run" if has_run else NOT_RUN
    )
    if contract.text is not None:
        tokenizer = folder / contract.text.tokenizer
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.write_text(Tokenizer(contract.text.input).to_json(), encoding="utf-8")
    layouts.resolve(contract.layout).write(folder, contract)
    measured.write(folder, contract)
    report = together(reports) if has_run else report_of_none(measured, data=data)
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    return contract, report


def _write_tower(
    export: TowerExport, folder: Path, contract: Contract, target: Target, measured: Measured, *, show_progress: bool
) -> tuple[TowerFile, Outputs | None]:
    """Write a tower, and return its file and what the file gives for the inputs; None if no runtime of it is here."""
    suffix = layouts.resolve(export.spec.layout).suffix or target.suffix
    name, precision, shown = f"{export.stem}{suffix}", export.spec.precision, console(shown=show_progress)
    if shown is not None:
        shown.print(f"writing {name} in {precision}", highlight=False, soft_wrap=True)
    inputs = measured.encoder_inputs(export.tower, export.encoder)
    export = attrs.evolve(export, float32=layers_in_float32(export.encoder, inputs, precision))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    file = tower_file(export, name, target.export(export, folder / name))
    try:
        return file, run_tower(folder, contract, target, file, measured, show_progress=show_progress)
    except NotRunHereError as error:
        if shown is not None:
            shown.print(str(error), highlight=False, soft_wrap=True)
        return file, None


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that takes an output's place when the block ends; an error leaves nothing of it.

    Args:
        out: what is going to be written, or replaced.

    Raises:
        ValueError: if another process is writing the same output, or it has no name of its own.
        OSError: if nothing can be written there.
    """
    # Of one length: a folder's own name may be as long as names can be.
    place = out.parent / f"{PREFIX}{hashlib.sha256(os.fsencode(out.name)).hexdigest()[:16]}.exporting"
    held = False
    try:
        with exclusive(place):
            held = True
            with atomic_folder(out, overwrite=True) as folder:
                yield folder
    finally:
        if held:
            # If another process has come in meanwhile, the folder is its own.
            with suppress(OSError):
                (place / LOCK).unlink()
                place.rmdir()
