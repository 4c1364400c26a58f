"""Save a model in our own layout, or in one that other code reads."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from mobileclip.encoders.checkpoints import native
from mobileclip.encoders.checkpoints.files import write_tensors
from mobileclip.encoders.checkpoints.forms import form_of, skeleton, state_of
from mobileclip.encoders.checkpoints.layouts import Layout, ModelSpec, layouts, towers
from mobileclip.encoders.checkpoints.neutral import with_neutral_norms
from mobileclip.encoders.checkpoints.open_clip import has_projection
from mobileclip.encoders.checkpoints.ranges import carried_ranges
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.families import ImageEncoderSpec
from mobileclip.encoders.mci import AttentionSpec, MCiSpec, RepMixerSpec
from mobileclip.encoders.text import MCtSpec, TextTransformerSpec
from mobileclip.encoders.vit import ViTSpec
from mobileclip.storage import AnyPath, file_name
from mobileclip.tensor_files import CheckpointError

_KNOWN_ELSEWHERE = (MCiSpec, RepMixerSpec, AttentionSpec, ViTSpec, TextTransformerSpec, MCtSpec)


def save_model(model: nn.Module, path: AnyPath, *, layout: str = native.NAME) -> None:
    """Write a model, or a tower alone, to a file that appears whole or not at all.

    Args:
        model: a model or tower in training form or folded; it may be compiled, as a whole or in parts.
        path: where to, a path or a URL. The library's own layout is safetensors; the others are by their suffix
            safetensors or a PyTorch file.
        layout: `mobileclip` (our own), `official`, `open_clip`, or `timm` for an image tower or a classifier. The
            foreign code folds branches alone, so a folded model is written for it with neutral norms and scales beside
            the folded weights. A safetensors file has the spec inside, whatever its layout, and our own what the tower
            was taught, where it carries that as `taught`.

    Raises:
        ValueError: if the layout is unknown, or has no place for such a model, or two of its weights are one tensor.
        CheckpointError: if our own layout is asked for under another suffix than `.safetensors`, or the model's
            spec is neither the library's nor a tower's.

    Examples:
        >>> tower = MCtSpec(width=16, depth=0, num_heads=2).build()
        >>> save_model(tower, "text.safetensors")
        >>> load_model("text.safetensors").spec == tower.spec
        True
    """
    name = file_name(path)
    spec = cast("ModelSpec", model.spec)
    if not native.is_known(spec):
        raise CheckpointError(
            f"a {type(spec).__name__} is neither a DualEncoderSpec, a ClassifierSpec nor a tower, and no checkpoint "
            "can say what it is; store its weights, and its spec by mobileclip.serialization.to_json"
        )
    form = form_of(model)
    space = getattr(model, "taught", native.UNTAUGHT).space
    _check_untied(model)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state_of(model).items()}
    if layout == native.NAME:
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"mobileclip's own layout is safetensors, so name the file *.safetensors, not {name!r}"
            )
        ngrams = getattr(getattr(model, "text_encoder", model), "taught", native.UNTAUGHT).ngrams
        state |= {} if ngrams is None else {native.NGRAMS: ngrams.cpu()}
        state |= carried_ranges(model)
        write_tensors(path, state, native.Header(spec=spec, form=form, space=space).to_metadata())
        return
    if layout not in layouts:
        raise ValueError(f"{layouts.unknown(layout)}, {native.NAME}")
    foreign = layouts[layout]
    _check_place(spec, foreign)
    if form == "folded":
        form = "branches_folded"
        state = with_neutral_norms(state, skeleton(spec, form))
    written: dict[str, Tensor] = {}
    for name, entry in foreign.entries(spec, form).items():
        tensor = state[name]
        written[entry.name] = entry.reshape.to_layout(tensor).contiguous() if entry.reshape is not None else tensor
    for _, tower in towers(spec):
        written |= foreign.constants(tower)
    header = native.Header(spec=spec, form=form, layout=layout, space=space)
    write_tensors(path, written, header.to_metadata())


def _check_untied(model: nn.Module) -> None:
    """Raise if two names of a model are of one tensor, which a file would hold twice."""
    known: dict[int, str] = {}
    for name, tensor in state_of(model).items():
        other = known.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if other != name:
            raise ValueError(
                f"{other} and {name} are one tensor (tied weights), and loaded from a file they would be two; register "
                "it once, and use it in both places in forward"
            )


def _check_place(spec: ModelSpec, layout: Layout) -> None:
    """Raise unless a foreign layout, and the code that reads it, has a place for a model.

    Raises:
        ValueError: naming what it has no place for.
    """
    own = f"save it in our own layout, {native.NAME}"
    if native.tokenizer_of(spec) is not None:
        raise ValueError(
            f"the {layout.name} layout has no place for a tokenizer, and what reads it has CLIP's, of other ids; {own}"
        )
    if isinstance(spec, ClassifierSpec) and not layout.has_bare_towers:
        raise ValueError(f"the {layout.name} layout is of image-text models and has no place for a classifier; {own}")
    for _, tower in towers(spec):
        mixers = [stage.mixer for stage in tower.stages] if isinstance(tower, MCiSpec) else []
        for part in (tower, *mixers):
            if type(part) not in _KNOWN_ELSEWHERE:
                raise ValueError(
                    f"the {layout.name} layout has no place for a {type(part).__name__}, which the code that reads it "
                    f"cannot build; {own}"
                )
        if isinstance(tower, TextTransformerSpec | MCtSpec) and tower.pool != "end":
            raise ValueError(
                f"the code that reads the {layout.name} layout reads a text at its end token, and this text tower the "
                f"{tower.pool} of its tokens; {own}"
            )
        if not has_projection(tower) and not layout.has_bare_towers:
            raise ValueError(
                f"the {layout.name} layout is of image towers with a projection, which this one is without; {own}"
            )
        if isinstance(tower, ImageEncoderSpec) and not layout.has_bare_towers:
            tower.input.require_rgb(f"the code that reads the {layout.name} layout builds image towers for")
        if has_projection(tower) and isinstance(spec, ClassifierSpec):
            raise ValueError(
                f"the {layout.name} layout has classifiers on pooled features, of an image tower without_projection(), "
                f"and this one is on embeddings; {own}"
            )
        layout.check(tower)
