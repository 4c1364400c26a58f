"""What a contract says of a model and its exported towers."""

from __future__ import annotations

import json
from typing import cast

from torch import nn

from mobileclip.encoders import ClassifierSpec, DualEncoder, ModelSpec
from mobileclip.encoders.checkpoints.native import read_back_as
from mobileclip.encoders.features import feature_encoder
from mobileclip.export.contract import FORMAT_VERSION, Contract, FeatureMap, ImageContract, TextContract, TowerFile
from mobileclip.export.graph import TowerExport, input_of, output_dim
from mobileclip.export.targets import Target
from mobileclip.export.targets.base import versions_of
from mobileclip.extras import VERSION
from mobileclip.hardware.precision import Precision
from mobileclip.inference.catalogue import LICENCE
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.serialization import to_json
from mobileclip.tensor_files.weights import weights_sha256


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
        output_shape=(batch, output_dim(export.encoder)),
        compute=compute,
        float32=tuple(sorted(export.fallback.layers)),
        features=tuple(_feature_map(export, stage, batch) for stage in export.stages),
    )


def _feature_map(export: TowerExport, stage: int, batch: int | None) -> FeatureMap:
    encoder, (_, *sides) = feature_encoder(export.encoder), export.input_shape
    return FeatureMap(
        stage=stage, shape=(batch, encoder.dims[stage], *(side // encoder.strides[stage] for side in sides))
    )


def contract_of(model: nn.Module, exports: tuple[TowerExport, ...], target: Target) -> Contract:
    """Return what a contract says of a model and how it is exported; of files it names none yet.

    Args:
        model: folded, in float32.
        exports: its towers, as they are exported.
        target: what they were exported to.
    """
    spec = exports[0].spec
    model_spec = cast("ModelSpec", model.spec)
    classifier = model_spec if isinstance(model_spec, ClassifierSpec) else None
    taken = [input_of(export.encoder) for export in exports]
    image = next((one for one in taken if isinstance(one, ImageInput)), None)
    text = next((one for one in taken if isinstance(one, TextInput)), None)
    return Contract(
        format_version=FORMAT_VERSION,
        target=spec.target,
        precision=spec.precision,
        normalize=spec.normalize,
        embedding_dim=output_dim(exports[0].encoder) if classifier is None else classifier.image.embedding_dim,
        logit_scale=float(model.logit_scale.detach().exp()) if isinstance(model, DualEncoder) else None,
        towers=(),
        image=None if image is None else ImageContract(input=image, preprocess=spec.preprocess),
        text=None if text is None else TextContract(input=text, start_id=text.start_id, end_id=text.end_id),
        files={},
        versions={"mobileclip": VERSION, **versions_of(("torch", *target.libraries))},
        weights_sha256=weights_sha256(model.state_dict()),
        spec=json.loads(to_json(model_spec, unstructure_as=read_back_as(model_spec))),
        licence=LICENCE,
        num_classes=None if classifier is None else classifier.num_classes,
        class_names=() if classifier is None else classifier.class_names,
    )
