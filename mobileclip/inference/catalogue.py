"""The catalogue of named models and towers, with spec, number of parameters and multiply-accumulates."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from mobileclip.blocks import Buildable, image_encoders, models, set_attention_backend, text_encoders
from mobileclip.encoders import ImageEncoderSpec, TextEncoderSpec
from mobileclip.encoders.checkpoints import (
    PACKAGED,
    PRETRAINED,
    ModelSpec,
    companion,
    hub_licence_of,
    licence_of,
    of_same_architecture,
    read_checkpoint,
)
from mobileclip.encoders.checkpoints.layouts import skeleton, tensor_shapes, towers
from mobileclip.encoders.checkpoints.loading import source_of
from mobileclip.encoders.checkpoints.saving import model_json
from mobileclip.encoders.families import image_encoder_families, text_encoder_families
from mobileclip.inference.loading import holds_weights, spec_by_name
from mobileclip.serialization import to_json


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the sorted names of models and towers.

    Args:
        pattern: glob pattern of the names, such as `*_s2`, case-insensitive.
        pretrained: whether to return only models with published or packaged weights.

    Examples:
        >>> list_models("*s2")
        ['mobileclip2_s2', 'mobileclip_s2']
        >>> list_models("icons", pretrained=True), list_models("mci2", pretrained=True)
        (['icons'], [])
    """
    weights = {*PRETRAINED, *PACKAGED}
    names = weights if pretrained else {*models, *image_encoders, *text_encoders, *PACKAGED}
    return sorted(name for name in names if fnmatchcase(name.lower(), pattern.lower()))


def rows(*, known: Collection[str] = ()) -> list[dict[str, str | None]]:
    """Return one row for each named model and each named tower, with size, input, embedding dimension and weights.

    Args:
        known: names to skip.
    """
    named: list[tuple[str, Buildable]] = [*models.items(), *image_encoders.items(), *text_encoders.items()]
    named += [(name, read_checkpoint(name).spec) for name in PACKAGED if name not in known]
    result = []
    for name, value in ((name, value) for name, value in named if name not in known):
        spec, second = cast("ModelSpec", value), _second_text_tower(name)
        parts = {type_of(tower): tower for _, tower in towers(spec)}
        image = parts.get("image")
        texts = [one for one in (parts.get("text"), second) if isinstance(one, TextEncoderSpec)]
        result.append(
            {
                "name": name,
                "image": _tower(image) if image else None,
                "text": ", ".join(map(_tower, texts)) or None,
                "GMACs": " + ".join(_gmacs(tower) for tower in (image, *texts) if tower),
                "px": str(image.input.size) if isinstance(image, ImageEncoderSpec) else None,
                "tokens": ", ".join(str(one.input.context_length) for one in texts) or None,
                "dim": str(next(iter(parts.values())).embedding_dim),
                "weights": _weights(name),
                "licence": hub_licence_of(PRETRAINED.get(name, name)) if _has_weights(name) else None,
            }
        )
    return result


def describe(model: str) -> dict[str, Any]:
    """Return a description of a model, given by name or checkpoint, as a JSON object.

    Args:
        model: a model name, a weights file, a folder with one weights file, `hf-hub:owner/name`, or a model of another
            package, such as `open_clip:ViT-B-32/openai`.

    Raises:
        ValueError: if `model` is neither a known name nor a readable checkpoint.
    """
    description: dict[str, Any] = {}
    if holds_weights(model):
        stored = read_checkpoint(model)
        spec, form = stored.spec, stored.form
        description |= {"checkpoint": model, "layout": stored.layout, "form": form}
        description["dtypes"] = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored.tensors.values()})
    else:
        spec = spec_by_name(model)
        description |= {"name": model, "published weights": PRETRAINED.get(model)}
        if model not in PRETRAINED and (alike := of_same_architecture(model)):
            description["built like"] = alike
    description["parameters"] = {
        type_of(tower): {"training": num_parameters(tower), "folded": num_parameters(tower, folded=True)}
        for _, tower in towers(spec)
    }
    description["multiply-accumulates"] = {type_of(tower): num_macs(tower) for _, tower in towers(spec)}
    description["input"] = {type_of(tower): json.loads(to_json(tower.input)) for _, tower in towers(spec)}
    description["spec"] = json.loads(model_json(spec))
    description["licence"] = _licence(model)
    if model in PACKAGED:
        description["card"] = str(PACKAGED[model].with_name(f"{model}.md"))
    if (second := _second_text_tower(model)) is not None:
        description["second text tower"] = {
            "parameters": {"training": num_parameters(second), "folded": num_parameters(second, folded=True)},
            "input": json.loads(to_json(second.input)),
            "spec": json.loads(model_json(second)),
        }
    return description


def _second_text_tower(name: str) -> TextEncoderSpec | None:
    """Return the spec of the second text tower of a packaged model; None if there is no second text tower."""
    file = companion(name)
    return None if file is None else cast("TextEncoderSpec", read_checkpoint(file).spec)


def num_parameters(tower: ImageEncoderSpec | TextEncoderSpec, *, folded: bool = False) -> int:
    """Return the number of learnable parameters of a tower, without running statistics of norms."""
    shapes = tensor_shapes(tower, "folded" if folded else "training")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(statistics))


@lru_cache(maxsize=64)
def num_macs(tower: ImageEncoderSpec | TextEncoderSpec) -> int | None:
    """Return the multiply-accumulates of a folded tower for one image, or for one text of full context length.

    The tables of the MobileCLIP papers call multiply-accumulates FLOPs; other sources count two FLOPs per
    multiply-accumulate.

    Args:
        tower: spec of the tower; the function runs the tower on the meta device, which computes only shapes.

    Returns:
        The number of multiply-accumulates; None for a tower that needs tensor values, and so cannot run on the meta
        device.
    """
    model = skeleton(tower, "folded")
    try:
        return macs_of(model, _example(tower))
    except RuntimeError:
        return None


def macs_of(model: nn.Module, *example: Tensor) -> int:
    """Return the multiply-accumulates of a model for an example, in convolutions, matrix products and attention.

    Args:
        model: a model on the device of the example; the function switches the model's attention to plain matrix
            products, so that the count is equal on every device.
        example: one batch of size 1 per input of the model.
    """
    from torch.utils.flop_counter import FlopCounterMode

    set_attention_backend(model, "reference")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example)
    return int(counter.get_total_flops()) // 2


def _example(tower: ImageEncoderSpec | TextEncoderSpec) -> Tensor:
    if isinstance(tower, ImageEncoderSpec):
        return torch.empty(1, tower.input.channels, tower.input.size, tower.input.size, device="meta")
    return torch.zeros(1, tower.input.context_length, dtype=torch.long, device="meta")


def type_of(tower: ImageEncoderSpec | TextEncoderSpec) -> str:
    """Return the type of a tower, `image` or `text`."""
    return "image" if isinstance(tower, ImageEncoderSpec) else "text"


def _licence(model: str) -> str:
    if (source := source_of(model)) is None:
        return licence_of(PRETRAINED.get(model, model))
    said = source[0].licence(source[1])
    return f"code MIT; the licence on the weights' card is {said}" if said else licence_of(model)


def _has_weights(name: str) -> bool:
    return name in PACKAGED or name in PRETRAINED


def _weights(name: str) -> str | None:
    """Return the location of a model's weights, or else the names of published models with the same architecture."""
    if name in PACKAGED:
        return "in the package"
    if name in PRETRAINED:
        return "on the hub"
    alike = of_same_architecture(name)
    return f"none; built like {', '.join(alike)}" if alike else None


def _tower(tower: ImageEncoderSpec | TextEncoderSpec) -> str:
    families = {**image_encoder_families, **text_encoder_families}
    kind = next((name for name, family in families.items() if family is type(tower)), type(tower).__name__)
    return f"{kind} {num_parameters(tower) / 1e6:.1f}M"


def _gmacs(tower: ImageEncoderSpec | TextEncoderSpec) -> str:
    macs = num_macs(tower)
    return "?" if macs is None else f"{macs / 1e9:.1f}"
