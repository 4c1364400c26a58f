"""Image towers in timm: the architecture's name, its arguments, and the `config.json` of a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from mobileclip.encoders import AttentionSpec, ClassifierSpec, ImageEncoderSpec, MCiSpec, ViTSpec, specs
from mobileclip.encoders.checkpoints.layouts import TIMM_VIT, has_projection
from mobileclip.encoders.families import as_trained
from mobileclip.inputs import ImageInput

_FASTVITS: Mapping[str, Callable[[], MCiSpec]] = {
    **{f"fastvit_{spec.__name__}": spec for spec in (specs.mci0, specs.mci1, specs.mci2, specs.mci3, specs.mci4)},
    **{spec.__name__: spec for spec in (specs.fastvit_t8, specs.fastvit_t12, specs.fastvit_s12, specs.fastvit_sa12)},
    **{spec.__name__: spec for spec in (specs.fastvit_sa24, specs.fastvit_sa36, specs.fastvit_ma36)},
}
_CONV_STEM, _PATCH_STEM = "vit_base_mci_224", "vit_large_patch14_clip_224"


@attrs.frozen(kw_only=True)
class TimmModel:
    """The architecture and arguments for `timm.create_model`.

    Args:
        architecture: timm's name of the model.
        arguments: arguments that differ from the model's defaults.
        pooling: timm's name of the pooling before the projection.
        first_conv: names of the convolutions that read the image.
        projection: name of the last layer.
        fixed_size: whether the weights fit only one image size.
    """

    architecture: str
    arguments: Mapping[str, Any]
    pooling: str
    first_conv: tuple[str, ...]
    projection: str
    fixed_size: bool


def timm_model(spec: ImageEncoderSpec) -> TimmModel:
    """Return the timm architecture and arguments for the weights of an image tower in training form.

    Raises:
        ValueError: if timm does not support the tower's class or options.
    """
    channels = {} if spec.input.channels == 3 else {"in_chans": spec.input.channels}
    if isinstance(spec, MCiSpec):
        architecture, arguments = _fastvit(spec)
        scale = ("stem.0.conv_scale.conv",) if spec.stem_scale_branch else ()
        return TimmModel(
            architecture=architecture,
            arguments={**arguments, **channels},
            pooling="avg",
            first_conv=("stem.0.conv_kxk.0.conv", *scale),
            projection="head.fc",
            fixed_size=False,
        )
    if isinstance(spec, ViTSpec):
        architecture, arguments = _vit(spec)
        first = "patch_embed.backbone.0.conv" if spec.stem == "convolutional" else "patch_embed.proj"
        return TimmModel(
            architecture=architecture,
            arguments={**arguments, **channels},
            pooling="token",
            first_conv=(first,),
            projection="head",
            fixed_size=True,
        )
    raise ValueError(f"timm has no image tower like {type(spec).__name__}")


def timm_config(spec: ImageEncoderSpec | ClassifierSpec, *, licence: str) -> dict[str, Any]:
    """Return the content of a folder's `config.json`, from which timm builds the model.

    Args:
        spec: spec of an image tower or a classifier, in training form.
        licence: licence of the weights, as the hub's identifier, such as `mit`.

    Raises:
        ValueError: if timm does not support the tower's class or options, or a classifier's tower has a projection.

    Examples:
        >>> timm_config(mobileclip.specs.mci2(), licence="mit")["architecture"]
        'fastvit_mci2'
    """
    tower = spec.image if isinstance(spec, ClassifierSpec) else spec
    model, image, num_outputs = timm_model(tower), tower.input, _num_outputs(spec)
    return {
        "architecture": model.architecture,
        "num_classes": num_outputs,
        "global_pool": model.pooling,
        **({"model_args": dict(model.arguments)} if model.arguments else {}),
        **({"label_names": list(spec.class_names)} if isinstance(spec, ClassifierSpec) and spec.class_names else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [image.channels, image.size, image.size],
            "fixed_input_size": model.fixed_size,
            "interpolation": image.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(image.mean),
            "std": list(image.std),
            "num_classes": num_outputs,
            "first_conv": list(model.first_conv),
            "classifier": model.projection,
            "license": licence,
        },
    }


def _num_outputs(spec: ImageEncoderSpec | ClassifierSpec) -> int:
    """Return the width of timm's last layer; 0 for a tower without projection."""
    tower = spec.image if isinstance(spec, ClassifierSpec) else spec
    if not isinstance(spec, ClassifierSpec):
        return tower.embedding_dim if has_projection(tower) else 0
    if has_projection(tower):
        raise ValueError("timm's classifiers use pooled features, but this classifier's tower has a projection")
    return spec.num_classes


def _fastvit(spec: MCiSpec) -> tuple[str, dict[str, Any]]:
    for name, published in _FASTVITS.items():
        if _architecture(published()) == _architecture(spec):
            return name, {}
    for name in ("fastvit_mci0", "fastvit_mci3", "fastvit_t8"):
        mixers = [stage.mixer for stage in _FASTVITS[name]().stages]
        if [stage.mixer for stage in spec.stages] == mixers[: len(spec.stages)]:
            num_stages = len(spec.stages)
            return name, {
                "layers": [stage.depth for stage in spec.stages],
                "embed_dims": [stage.dim for stage in spec.stages],
                "mlp_ratios": [spec.ffn_ratio] * num_stages,
                "downsamples": [stage > 0 for stage in range(num_stages)],
                "se_downsamples": [stage.squeeze_excite for stage in spec.stages],
                "lkc_use_act": spec.downsample_activation,
                "stem_use_scale_branch": spec.stem_scale_branch,
            }
    norms = [stage.mixer.norm if isinstance(stage.mixer, AttentionSpec) else "none" for stage in spec.stages]
    raise ValueError(
        "timm's FastViT supports attention with a batch norm in the fourth stage, attention with a layer norm in the "
        "fourth and fifth stages, or no attention; other options must have their published values. The norms in this "
        f"tower's stages are: {', '.join(norms)}"
    )


def _architecture(spec: MCiSpec) -> ImageEncoderSpec:
    """Return a spec without input, projection and training-only options, for comparisons."""
    bare = as_trained(spec.without_projection() if spec.projection else spec)
    return attrs.evolve(bare, input=ImageInput(size=256))


def _vit(spec: ViTSpec) -> tuple[str, dict[str, Any]]:
    size = {} if spec.input.size == 224 else {"img_size": spec.input.size}
    if spec.stem == "convolutional":
        built = (ViTSpec().width, False, False, *TIMM_VIT)
        if (spec.width, spec.class_position, spec.norm_before, spec.stem_padding, spec.norm_eps) != built:
            raise ValueError(
                "timm's ViT with a convolutional stem only supports (width, class_position, norm_before, "
                f"stem_padding, norm_eps) = {built}, but this ViT has different values"
            )
        return _CONV_STEM, {**size, **_changed(spec, ViTSpec(), depth="depth", num_heads="num_heads")}
    large = specs.vit_l14()
    if (spec.class_position, spec.norm_before, spec.norm_eps) != (True, True, large.norm_eps):
        raise ValueError(
            f"timm's ViT for CLIP only supports class_position=True, norm_before=True and norm_eps={large.norm_eps}, "
            "but this ViT has different values"
        )
    names = {name: name for name in ("patch_size", "depth", "num_heads")}
    return _PATCH_STEM, {**size, **_changed(spec, large, **names, width="embed_dim")}


def _changed(spec: ViTSpec, default: ViTSpec, **names: str) -> dict[str, Any]:
    """Return the arguments that differ from the default, by timm's names."""
    chosen = {theirs: (getattr(spec, own), getattr(default, own)) for own, theirs in names.items()}
    return {name: value for name, (value, other) in chosen.items() if value != other}
