"""What an export says of itself: the contract, from the model and its exported towers; the card; and the licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import attrs
import torch
from torch import nn

from mobileclip.blocks import models
from mobileclip.encoders import ClassifierSpec, DualEncoder, ModelSpec
from mobileclip.encoders.checkpoints import PREFIX, PRETRAINED, hub_licence_of, licence_of, packaged
from mobileclip.encoders.checkpoints.hub import parsed
from mobileclip.encoders.checkpoints.saving import model_json
from mobileclip.encoders.towers import feature_encoder, local_encoder
from mobileclip.export.contract import (
    FORMAT_VERSION,
    NOT_RUN,
    Contract,
    FeatureMap,
    ImageContract,
    TextContract,
    TowerFile,
)
from mobileclip.export.layouts import layouts
from mobileclip.export.spec import ExportSpec, Stage
from mobileclip.export.targets import Target
from mobileclip.export.targets.base import Written, versions_of
from mobileclip.export.towers import TowerExport, input_of, output_dim
from mobileclip.export.verify import Report
from mobileclip.extras import VERSION
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.interop.card import front_matter
from mobileclip.serialization import to_json
from mobileclip.tensor_files.weights import weights_sha256


def tower_file(export: TowerExport, name: str, written: Written) -> TowerFile:
    """Return the entry of an exported tower in the contract.

    Args:
        export: the tower.
        name: of its file.
        written: what the target says of it.
    """
    batch = None if export.spec.dynamic_batch else 1
    return TowerFile(
        tower=export.tower,
        file=name,
        input_name=export.input_name,
        input_dtype=export.input_dtype,
        input_shape=(batch, 3, None, None) if export.takes_any_size else (batch, *export.input_shape),
        output_name=export.output_name,
        output_shape=(batch, output_dim(export.encoder)),
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


def _text_contract(text: TextInput, spec: ExportSpec) -> TextContract:
    tokenizer = layouts.resolve(spec.layout).tokenizer
    return TextContract(input=text, start_id=text.start_id, end_id=text.end_id, tokenizer=tokenizer)


@attrs.frozen(kw_only=True)
class Origin:
    """Name, author, licence and base model of the weights of an export.

    Args:
        name: what the model is called, or its file; None for a model that was built already.
        licence: of the weights and the code, as far as the name says.
        author: of the weights, as far as the name says.
        hub_licence: of the weights, as the hub calls it.
        base_model: owner and name of the model on the hub.
    """

    name: str | None = None
    licence: str = licence_of("")
    author: str = "whoever trained them"
    hub_licence: str = hub_licence_of("")
    base_model: str | None = None


def origin_of(model: object, checkpoint: str | Path | None) -> Origin:
    """Return where the weights come from, as far as what a person gave says so.

    Args:
        model: a name, a file, a folder or a URL on the hub; or a model.
        checkpoint: weights for a model that is given by name.
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
    """Return the name of the published model with an architecture, or that it has none: for names of files."""
    for name, known in models.items():
        if spec in (known, getattr(known, "image", None), getattr(known, "text", None)):
            return name
    return "mobileclip"


def notes_of(contract: Contract, author: str) -> dict[str, str]:
    """Return what files say of themselves: name, author, licence and the contract but for its files.

    Args:
        contract: of the export.
        author: of the weights.
    """
    return {
        "name": contract.name or "mobileclip",
        "author": author,
        "license": contract.licence,
        "mobileclip": to_json(attrs.evolve(contract, spec={})),
    }


def contract_of(
    model: nn.Module, exports: tuple[TowerExport, ...], target: Target, origin: Origin | None = None
) -> Contract:
    """Return what a contract says of a model and how it is exported; of files it names none yet.

    Args:
        model: folded, in float32.
        exports: its towers, as they are exported.
        target: what they were exported to.
        origin: where the weights come from; None where nobody has said.
    """
    origin = origin or Origin()
    spec = exports[0].spec
    model_spec = cast("ModelSpec", model.spec)
    classifier = model_spec if isinstance(model_spec, ClassifierSpec) else None
    taken = [input_of(export.encoder) for export in exports]
    image = next((one for one in taken if isinstance(one, ImageInput)), None)
    text = next((one for one in taken if isinstance(one, TextInput)), None)
    return Contract(
        format_version=FORMAT_VERSION,
        target=spec.target,
        layout=spec.layout,
        precision=spec.precision,
        normalize=spec.normalize,
        embedding_dim=output_dim(exports[0].encoder) if classifier is None else classifier.image.embedding_dim,
        logit_scale=float(model.similarity_scale.detach()) if isinstance(model, DualEncoder) else None,
        towers=(),
        image=None if image is None else ImageContract(input=image, preprocess=spec.preprocess),
        text=None if text is None else _text_contract(text, spec),
        files={},
        versions={"mobileclip": VERSION, **versions_of(("torch", *target.libraries)), **target.elsewhere(spec)},
        weights_sha256=weights_sha256(model.state_dict()),
        spec=json.loads(model_json(model_spec)),
        licence=origin.licence,
        name=origin.name,
        num_classes=None if classifier is None else classifier.num_classes,
        class_names=() if classifier is None else classifier.class_names,
    )


CARD, LICENCE = "README.md", "LICENSE"

_BESIDE = (
    "`mobileclip.json` has the whole contract: how pictures and texts are prepared, and the scale of the softmax. "
    "`golden.safetensors` has inputs and the embeddings that a host must get of them."
)
_TERMS = "The licence of the weights goes with these files; its text is where the weights came from."


def write_card(folder: Path, contract: Contract, report: Report, *, spec: ModelSpec, origin: Origin, use: str) -> None:
    """Write the card of an export, and its licence.

    Args:
        folder: of the export.
        contract: of it, but for its files.
        report: what was measured.
        spec: of the model.
        origin: of the weights.
        use: how the files are used where they are run; empty where nobody has said.
    """
    rows = [_row(file, one.precision) for one in contract.each for file in one.towers]
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
    parts.append("| file | precision | takes | gives |\n| --- | --- | --- | --- |\n" + "\n".join(rows))
    parts.append(_BESIDE)
    parts.append(f"## Measured\n\n{_measured(contract, report)}")
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    licence = f"{name}\n\nWeights: {origin.author}\nLicence: {contract.licence}\n\n{_TERMS}\n"
    (folder / LICENCE).write_text(licence, encoding="utf-8")


def _row(file: TowerFile, precision: str) -> str:
    takes = f"`{file.input_name}`: {file.input_dtype} {_shape(file.input_shape)}"
    if file.lengths:
        takes += f", and rows of {', '.join(map(str, file.lengths[:-1]))} that hold the text"
    gives = ", ".join(f"`{name}`: float32 {_shape(shape)}" for name, shape in file.outputs.items())
    return f"| `{file.file}` | {precision} | {takes} | {gives} |"


def _shape(sides: tuple[int | None, ...]) -> str:
    return " x ".join("any" if side is None else str(side) for side in sides)


def _measured(contract: Contract, report: Report) -> str:
    if contract.state != "run":
        return f"{NOT_RUN[0].upper()}{NOT_RUN[1:]}: no runtime of it was where it was exported."
    lines = [
        f"- {tower.tower}{'' if tower.precision is None else f' in {tower.precision}'}: least cosine with float32 "
        f"{tower.cosine_minimum}, over {tower.count} inputs"
        for tower in report.towers
        if tower.stage is None
    ]
    verdict = "All acceptance checks passed." if report.passed else f"Failed: {'; '.join(report.failures)}."
    verdict += "" if report.is_ranked else " Rankings could not be checked: the model's embeddings hardly differ."
    return "\n".join(lines) + f"\n\nRun by {report.runtime}, on {report.data}. {verdict}"
