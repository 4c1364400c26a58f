"""Builds the contract of an export from the model and its exported towers."""

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
from mobileclip.encoders.checkpoints.native import model_json
from mobileclip.encoders.features import feature_encoder, local_encoder
from mobileclip.export.contract import FORMAT_VERSION, Contract, FeatureMap, ImageContract, TextContract, TowerFile
from mobileclip.export.layouts import layouts
from mobileclip.export.spec import ExportSpec, Stage
from mobileclip.export.targets import Target
from mobileclip.export.targets.base import Written, versions_of
from mobileclip.export.towers.graph import TowerExport, input_of, output_dim
from mobileclip.export.towers.ranges import given_ranges
from mobileclip.extras import VERSION
from mobileclip.inputs import ImageInput, TextInput
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
        ranges="model" if export.spec.precision == "int8" and given_ranges(export.encoder) else "calibration",
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
