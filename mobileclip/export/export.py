"""Exports a model: folds the model, writes and measures its towers, and writes contract and card."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import attrs
import torch
from torch import nn

from mobileclip import storage
from mobileclip.blocks import models
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.encoders import Classifier, ClassifierSpec, CoCa, DualEncoder, ModelSpec, load_model
from mobileclip.encoders.checkpoints import (
    PREFIX,
    PRETRAINED,
    hub_licence_of,
    licence_of,
    packaged,
    resolve_spec,
    unpublished,
)
from mobileclip.encoders.checkpoints.hub import parsed
from mobileclip.encoders.checkpoints.published import CONTRACT
from mobileclip.encoders.checkpoints.saving import model_json
from mobileclip.encoders.towers import feature_encoder, local_encoder
from mobileclip.export.contract import (
    FORMAT_VERSION,
    NOT_RUN,
    REPORT,
    Contract,
    FeatureMap,
    ImageContract,
    TextContract,
    TowerFile,
    Variant,
)
from mobileclip.export.int8 import calibration_inputs, layers_in_float32
from mobileclip.export.layouts import fitted, layouts
from mobileclip.export.measured import Measured, Outputs, measure_model, towers_of
from mobileclip.export.running import remember_export
from mobileclip.export.spec import ExportSpec, Stage, Tower, presets
from mobileclip.export.targets import Target, targets
from mobileclip.export.targets.base import NotRunHereError, WrittenFile, require_able, takes_lengths
from mobileclip.export.towers import TowerExport, input_of, lengths_of
from mobileclip.export.verify import Report, report_of_none, report_on, run_tower, together
from mobileclip.extras import VERSION
from mobileclip.inference.comparison import Samples, bundled_samples
from mobileclip.inference.forms import with_depthwise_convs, with_one_token
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.loading import holds_weights
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.interop.card import front_matter
from mobileclip.reparam import reparameterize, with_children
from mobileclip.serialization import to_json
from mobileclip.storage import atomic_folder, exclusive
from mobileclip.storage.atomic import LOCK, PREFIX as TEMPORARY
from mobileclip.tensor_files import file_sha256
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import console

__all__ = ["Samples", "bundled_samples", "export_model"]


def export_model(
    model: nn.Module | ImageTextModel | str | Path,
    spec: ExportSpec,
    *,
    checkpoint: str | Path | None = None,
    samples: Samples | None = None,
    calibration: Samples | None = None,
    preset: str | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Path:
    """Export a model for another runtime, and return the folder with all files that a host needs.

    The folder holds one file per tower, `mobileclip.json` (the contract of inputs and outputs), `tokenizer.json`,
    golden inputs and embeddings, a card (`README.md`), `LICENSE`, and `report.json`: the deviation of the exported
    files from the float32 model. The function writes the folder atomically, even if an acceptance check fails; the
    report then states the failure, and `verify_export` repeats the checks. In a lower precision, some layers stay in
    float32 (see `layers_in_float32`); the contract names the float32 layers.

    Args:
        model: a model, tower or classifier in evaluation mode; or a model name, a file in any known layout, a folder
            with such a file, or `hf-hub:owner/name`.
        spec: options of the export.
        checkpoint: weights for a model given by name.
        samples: images and captions for measuring the export; by default the images bundled with the package.
        calibration: images and captions for finding the int8 ranges; by default `samples`.
        preset: name of a preset in `mobileclip.export.presets`. The options of the preset apply wherever `spec` has the
            default value.
        overwrite: whether to replace an existing export once the new export is complete.
        show_progress: whether to show the progress and the time on standard error.

    Raises:
        ImportError: if the target's libraries are not installed; the message gives the install command.
        FileExistsError: if the output folder has files and `overwrite` is False, or if the folder has files but
            is not an export.
        ValueError: if the target or the layout is unknown or does not support the precision, if the model is in
            training mode or lacks the tower, if the model's outputs are zero or not finite, if the precision cannot
            represent the model, or if another process is writing the folder.
    """
    chosen = None if preset is None else presets.resolve(preset)
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
        # Write the contract last: without a contract, a folder is not an export.
        attrs.evolve(contract, files={name: file_sha256(folder / name) for name in files}).write(folder)
    remember_export(out)
    return out


def _folded(
    model: nn.Module | ImageTextModel | str | Path, checkpoint: str | Path | None, spec: ExportSpec
) -> nn.Module:
    """Return the folded model or tower, in float32 on the CPU."""
    if isinstance(model, ImageTextModel):
        model = model.model
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            raise ValueError(
                "a checkpoint needs the name of a model, but a model object was passed; pass the model's name"
            )
        if (spec.image_size, spec.context_length) != (None, None):
            raise ValueError("the size of a model object cannot be changed; set the size when you load the model")
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
    """Return the module to export, such as the image tower of a classifier, and the adjusted spec.

    If the model is a single tower and the spec selects both towers, the adjusted spec selects the single tower.

    Raises:
        ValueError: if the spec requests the text tower of a classifier, if it requests feature maps or a layout other
            than `plain` for a whole classifier, or if the model is a captioner (CoCa).
    """
    if isinstance(model, CoCa):
        raise ValueError("captioners cannot be exported; export an image-text model or a classifier")
    if not isinstance(model, Classifier):
        alone = tuple(towers_of(model)) if spec.tower == "both" else ()
        return model, attrs.evolve(spec, tower=alone[0]) if len(alone) == 1 else spec
    if spec.tower == "text":
        raise ValueError(
            "a classifier has no text tower; leave --tower out for the whole classifier, or choose --tower image"
        )
    if spec.tower == "image":
        return model.image_encoder, spec
    if spec.layout != "plain":
        raise ValueError(f"the layout {spec.layout!r} is only for image-text models; omit --layout for a classifier")
    if spec.features:
        raise ValueError("a classifier returns logits, and cannot return feature maps; choose --tower image")
    return model, attrs.evolve(spec, tower="image", normalize=False)


def tower_export(
    tower: Tower, encoder: nn.Module, spec: ExportSpec, target: Target, *, calibration: Samples | None
) -> TowerExport:
    """Return a tower in the form that a target exports.

    Args:
        tower: name of the tower.
        encoder: folded tower, in float32.
        spec: options of the export.
        target: target of the export.
        calibration: images and captions for finding the int8 ranges; None if the precision needs no ranges.
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
    """Return a folded tower in the form to export.

    The last transformer layer computes only the pooled token. If the target's runtime is faster with depthwise
    convolutions, grouped convolutions become depthwise.

    Args:
        target: target of the export.
        encoder: folded tower.
        whole: whether the last layer still computes all tokens, for feature maps.
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
    """Write all files of an export except the contract; return the contract and the report."""
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
    """Write a tower; return the contract entry and the file's outputs, which are None without a runtime."""
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
    """Yield an empty folder that replaces the output folder when the block ends, or disappears after an error.

    Args:
        out: path of the output folder to write or replace.

    Raises:
        ValueError: if another process is writing the same output, or the path does not end with a folder name.
        OSError: if the path is not writable.
    """
    # A hash of fixed length, since the folder's own name may already have the maximum length.
    place = out.parent / f"{TEMPORARY}{hashlib.sha256(os.fsencode(out.name)).hexdigest()[:16]}.exporting"
    held = False
    try:
        with exclusive(place):
            held = True
            with atomic_folder(out, overwrite=True) as folder:
                yield folder
    finally:
        if held:
            # If another process has taken the lock meanwhile, the folder belongs to that process.
            with suppress(OSError):
                (place / LOCK).unlink()
                place.rmdir()


def tower_file(export: TowerExport, name: str, written: WrittenFile) -> TowerFile:
    """Return the contract's entry of an exported tower.

    Args:
        export: tower with the options of the export.
        name: path of the tower's file in the export folder.
        written: description of the file, returned by `Target.export`.
    """
    batch = None if export.spec.dynamic_batch else 1
    return TowerFile(
        tower=export.tower,
        file=name,
        input_name=export.input_name,
        input_dtype=export.input_dtype,
        input_shape=(batch, 3, None, None) if export.takes_any_size else (batch, *export.input_shape),
        output_name=export.output_name,
        output_shape=(batch, export.output_dim),
        compute=written.compute,
        float32=tuple(sorted(export.float32)),
        lengths=export.lengths,
        features=tuple(_feature_map(export, stage, batch) for stage in export.stages),
        outside=written.outside,
    )


@torch.no_grad()
def _feature_map(export: TowerExport, stage: Stage, batch: int | None) -> FeatureMap:
    if not isinstance(stage, int):
        maps = local_encoder(export.encoder).local_embeddings(torch.zeros(1, *export.input_shape))
        return FeatureMap(stage=stage, shape=(batch, *maps.shape[1:]))
    encoder, (_, *sides) = feature_encoder(export.encoder), export.input_shape
    return FeatureMap(
        stage=stage, shape=(batch, encoder.dims[stage], *(side // encoder.strides[stage] for side in sides))
    )


@attrs.frozen(kw_only=True)
class Origin:
    """Name, author, licence and base model of the weights of an export.

    Args:
        name: name of the model, of its hub repository or of its weights file; None for a model object.
        licence: licence of the code and the weights, derived from the location of the weights.
        author: author of the weights, derived from the location of the weights.
        hub_licence: the hub's name for the licence of the weights.
        base_model: hub repository of the weights, `owner/name`; None for weights from elsewhere.
    """

    name: str | None = None
    licence: str = licence_of("")
    author: str = "the authors of the weights"
    hub_licence: str = hub_licence_of("")
    base_model: str | None = None


def origin_of(model: object, checkpoint: str | Path | None) -> Origin:
    """Return the origin of the weights, derived from the arguments of the export.

    Args:
        model: a name, a file, a folder, `hf-hub:owner/name`, or a model object.
        checkpoint: weights for a model given by name.
    """
    if not isinstance(model, (str, Path)):
        return Origin()
    place = str(checkpoint or PRETRAINED.get(str(model), model))
    author = Origin().author
    if packaged(place) is not None:
        author = "the mobileclip authors"
    elif place in PRETRAINED.values():
        author = "Apple"
    base = parsed(place).repository if place.startswith(PREFIX) else None
    name = str(model) if str(model) in models else base or Path(place).resolve().stem
    return Origin(
        name=name, licence=licence_of(place), author=author, hub_licence=hub_licence_of(place), base_model=base
    )


def architecture_of(spec: ModelSpec) -> str:
    """Return the name of the published model with the same architecture, or else `mobileclip`, for file names."""
    for name, known in models.items():
        if spec in (known, getattr(known, "image", None), getattr(known, "text", None)):
            return name
    return "mobileclip"


def notes_of(contract: Contract, author: str) -> dict[str, str]:
    """Return the metadata for the files: name, author, licence, and the contract without the model spec.

    Args:
        contract: contract of the export.
        author: author of the weights.
    """
    return {
        "name": contract.name or "mobileclip",
        "author": author,
        "license": contract.licence,
        "mobileclip": to_json(attrs.evolve(contract, spec={})),
    }


def contract_of(
    model: nn.Module, exports: tuple[TowerExport, ...], target: Target, origin: Origin = Origin()
) -> Contract:
    """Return the contract of an export, without the entries of the exported files.

    Args:
        model: folded model, in float32.
        exports: towers of the model, prepared for export.
        target: target of the export.
        origin: origin of the weights, if known.
    """
    spec = exports[0].spec
    model_spec = cast("ModelSpec", model.spec)
    classifier = model_spec if isinstance(model_spec, ClassifierSpec) else None
    image: ImageContract | None = None
    text: TextContract | None = None
    for export in exports:
        if isinstance(export.input, ImageInput):
            image = ImageContract(input=export.input, preprocess=spec.preprocess)
        else:
            start_id, end_id, tokenizer = export.input.start_id, export.input.end_id, export.layout.tokenizer
            text = TextContract(input=export.input, start_id=start_id, end_id=end_id, tokenizer=tokenizer)
    return Contract(
        format_version=FORMAT_VERSION,
        target=spec.target,
        layout=spec.layout,
        precision=spec.precision,
        normalize=spec.normalize,
        embedding_dim=exports[0].output_dim if classifier is None else classifier.image.embedding_dim,
        logit_scale=float(model.similarity_scale.detach()) if isinstance(model, DualEncoder) else None,
        towers=(),
        image=image,
        text=text,
        files={},
        versions={"mobileclip": VERSION, **target.versions(spec)},
        weights_sha256=weights_sha256(model.state_dict()),
        spec=json.loads(model_json(model_spec)),
        licence=origin.licence,
        name=origin.name,
        num_classes=None if classifier is None else classifier.num_classes,
        class_names=() if classifier is None else classifier.class_names,
    )


CARD, LICENCE = "README.md", "LICENSE"

_BESIDE = (
    "`mobileclip.json` contains the contract: the preprocessing of images and texts, and the scale of the softmax. "
    "`golden.safetensors` contains inputs and the embeddings that a host must compute for them."
)
_TERMS = "The licence of the weights applies to these files; the source of the weights has the licence text."


def write_card(folder: Path, contract: Contract, report: Report, *, spec: ModelSpec, origin: Origin, use: str) -> None:
    """Write the card and the licence of an export.

    Args:
        folder: folder of the export.
        contract: contract of the export; the file hashes may be missing.
        report: report of the export.
        spec: spec of the model.
        origin: origin of the weights.
        use: instructions for using the files, from the preset (`Preset.use`); empty without a preset.
    """
    rows = [_row(file, one.precision) for one in contract.per_precision for file in one.towers]
    name = contract.name or "A model"
    parts = [
        front_matter(
            spec,
            licence=origin.hub_licence,
            base_model=origin.base_model,
            library="mobileclip",
            tags=("export", contract.target),
        ),
        f"# {name} for {contract.target}",
        f"An export by mobileclip. Weights: {origin.author}. Licence: {contract.licence}.",
    ]
    parts += [use] if use else []
    parts.append("| file | precision | input | outputs |\n| --- | --- | --- | --- |\n" + "\n".join(rows))
    parts.append(_BESIDE)
    parts.append(f"## Measured\n\n{_measured(contract, report)}")
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    licence = f"{name}\n\nWeights: {origin.author}\nLicence: {contract.licence}\n\n{_TERMS}\n"
    (folder / LICENCE).write_text(licence, encoding="utf-8")


def _row(file: TowerFile, precision: str) -> str:
    takes = f"`{file.input_name}`: {file.input_dtype} {_shape(file.input_shape)}"
    if file.lengths:
        takes += f", or rows of {', '.join(map(str, file.lengths[:-1]))} ids if the text fits"
    gives = ", ".join(f"`{name}`: float32 {_shape(shape)}" for name, shape in file.outputs.items())
    return f"| `{file.file}` | {precision} | {takes} | {gives} |"


def _shape(sides: tuple[int | None, ...]) -> str:
    return " x ".join("any" if side is None else str(side) for side in sides)


def _measured(contract: Contract, report: Report) -> str:
    if contract.state != "run":
        return f"{NOT_RUN[0].upper()}{NOT_RUN[1:]}: the exporting machine had no runtime for this format."
    lines = [
        f"- {tower.tower}{'' if tower.precision is None else f' in {tower.precision}'}: minimum cosine with "
        f"the float32 outputs is {tower.cosine_minimum}, over {tower.count} inputs"
        for tower in report.towers
        if tower.stage is None
    ]
    verdict = "All acceptance checks passed." if report.passed else f"Failed: {'; '.join(report.failures)}."
    verdict += "" if report.is_ranked else " Rankings could not be checked: the model's embeddings hardly differ."
    return "\n".join(lines) + f"\n\nRun by {report.runtime}, on {report.data}. {verdict}"
