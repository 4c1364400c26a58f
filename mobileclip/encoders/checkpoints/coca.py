"""Files of captioners: open_clip's layout of CoCa, which Apple's MobileCLIP2 captioners have too, and our own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.encoders.checkpoints.hub import fetched
from mobileclip.encoders.checkpoints.layouts import skeleton
from mobileclip.encoders.checkpoints.recognising import some
from mobileclip.encoders.checkpoints.saving import COCA, NATIVE, of_run, write_tensors
from mobileclip.encoders.coca import CoCa, CoCaSpec
from mobileclip.encoders.text import TextTransformerSpec
from mobileclip.encoders.vit import ViTSpec
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput, TextInput
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import AnyPath, file_name
from mobileclip.tensor_files import CheckpointError, read_tensors
from mobileclip.tensor_files.errors import shown

CocaLayout = Literal["mobileclip", "open_clip"]

_HEAD_DIM, _POOLER_HEADS = 64, 8  # of coca_ViT-B-32 and coca_ViT-L-14; shapes do not say them
_OPEN_CLIP_VIT: dict[str, Any] = {"stem": "patch", "class_position": True, "norm_before": True}
_DEPTHS = {"text.transformer.resblocks.": 3, "visual.transformer.resblocks.": 3, "text_decoder.resblocks.": 2}
_PART = re.compile(r"(pooler\.attention\.|decoder\.cross_layers\.\d+\.attention\.)(query|key|value)\.(weight|bias)")
# Ours to theirs, in order, once queries, keys and values are beside each other.
_RULES = (
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.ffn_norm\.", ".ln_2."),
    (r"^(decoder\..*)\.context_norm\.", r"\1.ln_1_kv."),
    (r"\.attention\.qkv\.", ".attn.in_proj_"),
    (r"\.attention\.project\.", ".attn.out_proj."),
    (r"\.attention\.(q|k|v)_proj_weight$", r".attn.\1_proj_weight"),
    (r"\.ffn\.fc1\.", ".mlp.c_fc."),
    (r"\.ffn\.fc2\.", ".mlp.c_proj."),
    (r"^image_encoder\.stem\.conv\.", "visual.conv1."),
    (r"^image_encoder\.class_token$", "visual.class_embedding"),
    (r"^image_encoder\.position$", "visual.positional_embedding"),
    (r"^image_encoder\.norm_before\.", "visual.ln_pre."),
    (r"^image_encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^image_norm\.", "visual.ln_post."),
    (r"^image_project\.weight$", "visual.proj"),
    (r"^pooler\.queries$", "visual.attn_pool.query"),
    (r"^pooler\.query_norm\.", "visual.attn_pool.ln_q."),
    (r"^pooler\.context_norm\.", "visual.attn_pool.ln_k."),
    (r"^pooler\.", "visual.attn_pool."),
    (r"^text_encoder\.class_token$", "text.cls_emb"),
    (r"^text_encoder\.position$", "text.positional_embedding"),
    (r"^text_encoder\.norm\.", "text.ln_final."),
    (r"^text_encoder\.project\.weight$", "text.text_projection"),
    (r"^text_encoder\.layers\.", "text.transformer.resblocks."),
    (r"^text_encoder\.", "text."),
    (r"^decoder\.norm\.", "text_decoder.ln_final."),
    (r"^decoder\.project\.weight$", "text_decoder.text_projection"),
    (r"^decoder\.layers\.", "text_decoder.resblocks."),
    (r"^decoder\.cross_layers\.", "text_decoder.cross_attn."),
)
_POSITIONS = {"text_encoder.position", "text.positional_embedding"}
_TRANSPOSED = ("visual.proj", "text.text_projection", "text_decoder.text_projection")


def save_coca(model: CoCa, path: AnyPath, *, layout: CocaLayout = "mobileclip") -> None:
    """Write a captioner to a file that appears whole or not at all.

    Args:
        model: the captioner.
        path: where to; safetensors by its suffix, which alone holds the spec, or else a PyTorch file.
        layout: our own, or `open_clip`, which open_clip and Apple's scripts load.

    Raises:
        ValueError: if open_clip has no such model: its CoCa has a ViT with a position for the class token, a norm in
            front and patches of one convolution.
        CheckpointError: if our own layout is asked for under another suffix than `.safetensors`, or the texts are of a
            tokenizer of their own.
    """
    spec = model.spec
    if layout == NATIVE and not file_name(path).endswith(".safetensors"):
        raise CheckpointError(
            f"mobileclip's own layout is safetensors, so name the file *.safetensors, not {file_name(path)!r}"
        )
    if spec.text.input.tokenizer is not None:
        raise CheckpointError("a file of a captioner has no place for a tokenizer of its own; CLIP's is expected")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {"mobileclip.kind": COCA, "mobileclip.form": "training", "mobileclip.spec": to_json(spec)}
    if layout == "open_clip":
        _check_open_clip(spec)
        state = to_open_clip(state)
        header["mobileclip.layout"] = layout
    write_tensors(path, state, header)


def load_coca(checkpoint: str | Path, spec: CoCaSpec | None = None, *, any_context: bool = False) -> CoCa:
    """Return the captioner in a file of ours, of open_clip's or of Apple's, in float32 and in evaluation mode.

    Args:
        checkpoint: a file, or a repository on the hub, `hf-hub:owner/name`.
        spec: of the model; by default what the file says, or what its shapes say: any ViT, context and depth, with
            heads 64 wide and 8 for the pooling, as `coca_ViT-B-32`, `coca_ViT-L-14` and Apple's have.
        any_context: whether `spec` may have another context than the file, to be fine-tuned: positions are interpolated
            linearly, as open_clip does.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it holds another model, or a tensor is missing, left over or of another shape.
    """
    path = fetched(checkpoint)
    tensors, metadata = of_run(*read_tensors(path))
    # Older versions of open_clip wrote masks.
    tensors = {
        name.removeprefix("module."): tensor for name, tensor in tensors.items() if not name.endswith("attn_mask")
    }
    if metadata.get("mobileclip.kind") == COCA:
        stored = _stored(path, metadata)
        if spec is not None and any_context:
            stored = _with_context(stored, spec.text.input.context_length)
        if spec is not None and spec != stored:
            raise CheckpointError(f"{path} holds another captioner than asked for; leave the spec out to load it")
        spec = stored
    is_foreign = "text_decoder.text_projection" in tensors
    if spec is None and is_foreign:
        spec = open_clip_spec(path, tensors)
    if spec is None:
        raise CheckpointError(f"{path} is neither our own file of a captioner nor one of open_clip's CoCa")
    if spec.num_blocks > len(tensors):
        raise CheckpointError(f"{path} holds {len(tensors):,} tensors, too few for {spec.num_blocks:,} blocks")
    if any_context:
        for name in _POSITIONS & tensors.keys():
            tensors[name] = _resized(tensors[name], spec.text.input.context_length + 1)
    model = cast("CoCa", skeleton(spec, "training"))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    entries = _entries(shapes) if is_foreign else {name: (name,) for name in shapes}
    _check_names(path, tensors, entries)
    model.load_state_dict(_placed(path, tensors, entries, shapes), assign=True)
    return model


def _with_context(spec: CoCaSpec, length: int) -> CoCaSpec:
    text = attrs.evolve(spec.text.input, context_length=length)
    return attrs.evolve(spec, text=attrs.evolve(spec.text, input=text))


def _resized(positions: Tensor, count: int) -> Tensor:
    """Return as many positions as wanted, `(count, width)`, the first and the last as they are."""
    if len(positions) == count:
        return positions
    return F.interpolate(positions.float().T[None], size=count, mode="linear")[0].T.contiguous()


def _placed(
    path: Path,
    tensors: Mapping[str, Tensor],
    entries: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, torch.Size],
) -> dict[str, Tensor]:
    """Return the tensors of a file under our names and in our shapes.

    Args:
        path: of the file, for messages.
        tensors: as the file calls them.
        entries: which of ours each is.
        shapes: of ours.
    """
    state = {}
    for theirs, ours in entries.items():
        tensor = tensors[theirs]
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if theirs in _TRANSPOSED:
            tensor = tensor.T
        if theirs == "logit_scale" and tensor.numel() == 1:
            tensor = tensor.reshape(1)
        rows = [shapes[name][0] if shapes[name] else 0 for name in ours]
        parts = torch.split(tensor, rows) if tensor.ndim and len(tensor) == sum(rows) else [tensor] * len(ours)
        for name, part in zip(ours, parts, strict=True):
            if part.shape != shapes[name]:
                raise CheckpointError(
                    f"{path} does not fit the model: {shown(theirs)} has the shape {tuple(tensors[theirs].shape)}, "
                    f"and the model's {name} is {tuple(shapes[name])}"
                )
            state[name] = part.contiguous() if len(ours) == 1 else part.clone()
    return state


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under open_clip's names and in its shapes."""
    written = {}
    for theirs, ours in _entries({name: tensor.shape for name, tensor in state.items()}).items():
        tensor = torch.cat([state[name] for name in ours]) if len(ours) > 1 else state[ours[0]]
        written[theirs] = (tensor.T if theirs in _TRANSPOSED else tensor).contiguous()
    return written | {"logit_scale": written["logit_scale"].reshape(())}


def _entries(shapes: Mapping[str, torch.Size]) -> dict[str, tuple[str, ...]]:
    """Return which of our tensors, beside each other, each of open_clip's is, by its name."""
    entries: dict[str, tuple[str, ...]] = {}
    for name in shapes:
        ours: tuple[str, ...] = (name,)
        theirs = name
        if found := _PART.match(name):
            start, part, kind = found.groups()
            ours = tuple(f"{start}{one}.{kind}" for one in ("query", "key", "value"))
            # Where the context is of another width than the queries, PyTorch holds the weights one by one.
            if kind == "weight" and len({shapes[one] for one in ours}) > 1:
                ours, theirs = (name,), f"{start}{part[0]}_proj_weight"
            else:
                theirs = f"{start}qkv.{kind}"
        for pattern, by in _RULES:
            theirs = re.sub(pattern, by, theirs)
        entries[theirs] = ours
    return entries


def _check_names(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, object]) -> None:
    for what, names in (
        ("missing", expected.keys() - tensors.keys()),
        ("left over", tensors.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(f"{path} does not fit the model: {len(names)} tensors {what} ({some(names)})")


def _stored(path: Path, metadata: Mapping[str, str]) -> CoCaSpec:
    """Return the spec that a file says."""
    try:
        return from_json(metadata["mobileclip.spec"], CoCaSpec)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the spec in {path} cannot be read: {error}") from error


def open_clip_spec(path: Path, tensors: Mapping[str, Tensor]) -> CoCaSpec:
    """Return the spec of open_clip's tensors, as far as shapes say it, and what is published alike beside."""
    try:
        vocab_size, width = tensors["text.token_embedding.weight"].shape
        image_width, channels, patch_size, _ = tensors["visual.conv1.weight"].shape
        side = math.isqrt(len(tensors["visual.positional_embedding"]) - 1)
        num_queries = len(tensors["visual.attn_pool.query"])
        context_length = len(tensors["text.positional_embedding"]) - 1
        text, image, decoder = (
            len({name.split(".")[place] for name in tensors if name.startswith(start)})
            for start, place in _DEPTHS.items()
        )
        return CoCaSpec(
            image=ViTSpec(
                input=ImageInput(
                    size=side * patch_size, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD
                ).of_channels(channels),
                width=image_width,
                depth=image,
                num_heads=image_width // _HEAD_DIM,
                embedding_dim=width,
                patch_size=patch_size,
                initialization="open_clip",
                **_OPEN_CLIP_VIT,
            ),
            text=TextTransformerSpec(
                input=TextInput(context_length=context_length, vocab_size=vocab_size),
                width=width,
                depth=text,
                num_heads=width // _HEAD_DIM,
                embedding_dim=width,
                causal=True,
            ),
            decoder_depth=decoder,
            decoder_heads=width // _HEAD_DIM,
            num_queries=num_queries,
            pooler_heads=_POOLER_HEADS,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is open_clip's CoCa of another architecture than a ViT's ({error}); give its spec"
        ) from error


def _check_open_clip(spec: CoCaSpec) -> None:
    image = spec.image
    if not isinstance(image, ViTSpec) or any(getattr(image, name) != one for name, one in _OPEN_CLIP_VIT.items()):
        raise ValueError(
            "open_clip's CoCa has a ViT with stem='patch', class_position=True and norm_before=True, and this image "
            "tower is another; save it in our own layout, mobileclip"
        )
