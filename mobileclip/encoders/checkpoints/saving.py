"""Writing checkpoints: this library's header, norms for layouts that need them, and atomic writes."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import attrs
import torch
from torch import Tensor, nn

from mobileclip import storage
from mobileclip.blocks import AttentionBlock, ConvNorm
from mobileclip.encoders.checkpoints.layouts import (
    Form,
    Layout,
    ModelSpec,
    form_of,
    has_projection,
    layouts,
    skeleton,
    state_of,
    towers,
)
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.coca import CoCaSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec
from mobileclip.encoders.mci import AttentionSpec, MCiSpec, RepMixerSpec
from mobileclip.encoders.text import MCtSpec, TextTransformerSpec
from mobileclip.encoders.vit import ViTSpec
from mobileclip.extras import UPDATE
from mobileclip.inputs import MAX_TOKENIZER_BYTES, TokenizerFile
from mobileclip.reparam import LayerScale
from mobileclip.reparam.fuse import widened
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import AnyPath, file_name
from mobileclip.strict import parse_json
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.errors import shown

NATIVE = "mobileclip"

_RUN = "mobileclip training state"
_OF_RUN = ("average/", "objective/model.")

_TOKENIZER = "mobileclip.tokenizer"
SPACE = "mobileclip.space"
"""Header key: identity of the model that defines the embedding space, as JSON."""
NGRAMS = "mobileclip.ngrams"
"""Name of the tensor with the n-grams of a text tower's training data, see `mobileclip.data.text.ngrams`."""
_KINDS: dict[str, type[Any]] = {
    "dual_encoder": DualEncoderSpec,
    "classifier": ClassifierSpec,
    "coca": CoCaSpec,
    "image_encoder": ImageEncoderSpec,
    "text_encoder": TextEncoderSpec,
}


@attrs.frozen(kw_only=True, eq=False)
class TrainingProvenance:
    """Training provenance of a tower or model, stored in checkpoints and in the model's attribute `provenance`.

    Args:
        space: identity of the model that defines the embedding space, as JSON, see `mobileclip.inference.space_of`;
            empty if the model defines its own space, or the space is unknown.
        ngrams: n-grams of the training texts, packed by `mobileclip.data.text.ngrams`; None if unknown.
    """

    space: str = ""
    ngrams: Tensor | None = None


NO_PROVENANCE = TrainingProvenance()
"""Provenance of a model that defines its own embedding space, or whose provenance is unknown."""


@attrs.frozen(kw_only=True)
class Header:
    """The header of a native checkpoint: spec, form, layout and embedding space.

    Args:
        spec: spec of the model.
        form: form of the tensors: `training`, `branches_folded` or `folded`.
        layout: checkpoint layout, which determines the tensor names.
        space: see `TrainingProvenance`.
    """

    spec: ModelSpec
    form: Form
    layout: str = NATIVE
    space: str = ""

    def to_metadata(self) -> dict[str, str]:
        """Return the header as strings for the metadata of safetensors.

        Raises:
            CheckpointError: if the spec has only the SHA-256 of its tokenizer, without the tokenizer's text.
        """
        header = {
            "mobileclip.kind": next(name for name, cls in _KINDS.items() if cls is read_back_as(self.spec)),
            "mobileclip.form": self.form,
            "mobileclip.spec": model_json(self.spec),
        }
        if self.layout != NATIVE:
            header["mobileclip.layout"] = self.layout
        if self.space:
            header[SPACE] = self.space
        tokenizer = tokenizer_of(self.spec)
        if tokenizer is not None:
            if tokenizer.content is None:
                raise CheckpointError(
                    f"the model has only the digest {tokenizer.sha256[:12]} of its tokenizer, but a checkpoint "
                    "stores the tokenizer's text; build the model with the text input that "
                    "mobileclip.data.read_text_input returns",
                    code="not_storable",
                )
            header[_TOKENIZER] = base64.b64encode(zlib.compress(tokenizer.content.encode(), 9)).decode("ascii")
        return header


def read_back_as(spec: Any) -> type[Any]:
    """Return the class for deserializing a spec: the base class for a tower spec, otherwise the class of the spec."""
    return next((family for family in (ImageEncoderSpec, TextEncoderSpec) if isinstance(spec, family)), type(spec))


def is_known(spec: Any) -> bool:
    """Return whether checkpoints can store a spec: a tower spec, or exactly one of this library's model specs."""
    return read_back_as(spec) in _KINDS.values()


def model_json(spec: Any) -> str:
    """Return the spec of a model as JSON."""
    return to_json(spec, unstructure_as=read_back_as(spec))


def tokenizer_of(spec: ModelSpec) -> TokenizerFile | None:
    """Return the tokenizer of the text tower; None for CLIP's tokenizer."""
    text = spec.text if isinstance(spec, (DualEncoderSpec, CoCaSpec)) else spec
    return text.input.tokenizer if isinstance(text, TextEncoderSpec) else None


def extract_model_state(
    tensors: dict[str, Tensor], metadata: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the model (its moving average, if any) of a training checkpoint; return other files unchanged."""
    if not metadata.get("format", "").startswith(_RUN) or "model" not in metadata:
        return tensors, metadata
    prefix = next((one for one in _OF_RUN if any(name.startswith(one) for name in tensors)), _OF_RUN[-1])
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    held = (("num_classes", "classifier"), ("decoder_depth", "coca"), ("image", "dual_encoder"))
    kind = next((kind for key, kind in held if f'"{key}"' in metadata["model"]), "text_encoder")
    header = {"mobileclip.kind": kind, "mobileclip.form": "training", "mobileclip.spec": metadata["model"]}
    return own, header | {SPACE: metadata.get(SPACE, "")}


def header_of(metadata: Mapping[str, str], path: Path) -> Header | None:
    """Return the header in the metadata of the file at `path`, or None if this library did not write the file.

    Raises:
        CheckpointError: if this version does not know the header's kind, form or layout, or cannot read the spec or
            tokenizer.
    """
    if "mobileclip.spec" not in metadata:
        metadata = _beside(path)
    if "mobileclip.spec" not in metadata:
        return None
    kind, form = metadata.get("mobileclip.kind", ""), metadata.get("mobileclip.form", "")
    layout = metadata.get("mobileclip.layout", NATIVE)
    if kind not in _KINDS or form not in get_args(Form) or layout not in (NATIVE, *layouts):
        raise CheckpointError(
            f"{path} holds a {shown(kind)} in the form {shown(form)} and the layout {shown(layout)}, which this "
            f"version of mobileclip does not support; another version wrote the file; update with: {UPDATE}",
            code="description",
        )
    try:
        spec = cast("ModelSpec", from_json(metadata["mobileclip.spec"], _KINDS[kind]))
    except ValueError as error:
        raise CheckpointError(f"the spec in {path} cannot be read: {error}", code="description") from error
    if tokenizer_of(spec) is not None:
        try:
            spec = _with_tokenizer(spec, _inflated(metadata.get(_TOKENIZER)))
        except ValueError as error:
            raise CheckpointError(f"could not read {path}: {error}", code="description") from None
    return Header(spec=spec, form=cast("Form", form), layout=layout, space=metadata.get(SPACE, ""))


def _beside(path: Path) -> Mapping[str, str]:
    """Return the header from the `config.json` next to the file, where the transformers layout stores the header."""
    config = path.parent / "config.json"
    if path.suffix != ".safetensors" or not config.is_file():
        return {}
    try:
        said = parse_json(config.read_text(encoding="utf-8"))
        said = said.get(NATIVE) if isinstance(said, dict) else None
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}


def _inflated(stored: str | None) -> str:
    """Decompress the text of a `tokenizer.json` from a file's metadata."""
    if stored is None:
        raise ValueError("the file lacks the tokenizer that the model needs; download the file again")
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(base64.b64decode(stored, validate=True), MAX_TOKENIZER_BYTES + 1)
        if len(data) > MAX_TOKENIZER_BYTES:
            raise ValueError(f"the tokenizer has more than {MAX_TOKENIZER_BYTES:,} bytes")
        return data.decode("utf-8")
    except (zlib.error, binascii.Error, UnicodeDecodeError) as error:
        raise ValueError(f"the tokenizer is damaged ({error}); download the file again") from None


def _with_tokenizer(spec: ModelSpec, content: str) -> ModelSpec:
    """Return the spec with `content`, the text of a `tokenizer.json`, in its tokenizer."""
    if isinstance(spec, (DualEncoderSpec, CoCaSpec)):
        return attrs.evolve(spec, text=cast("Any", _with_tokenizer(spec.text, content)))
    assert isinstance(spec, TextEncoderSpec), "images have no tokenizer"
    assert spec.input.tokenizer is not None, "the caller has checked this"
    tokenizer = attrs.evolve(spec.input.tokenizer, content=content)
    return attrs.evolve(spec, input=attrs.evolve(spec.input, tokenizer=tokenizer))


def write_tensors(path: storage.AnyPath, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors atomically, in safetensors for the suffix `.safetensors`, otherwise in PyTorch's format.

    Args:
        path: a path or URL; the suffix decides the format.
        tensors: contiguous tensors by name.
        metadata: strings to store with the tensors, in safetensors only.
    """
    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        if storage.file_name(path).endswith(".safetensors"):
            from safetensors.torch import save

            stream.write(save(tensors, metadata={"format": "pt", **metadata}))
        else:
            torch.save(tensors, stream)


def with_neutral_norms(folded: dict[str, Tensor], target: nn.Module) -> dict[str, Tensor]:
    """Convert tensors of a completely folded model to tensors of a model with only its branches folded.

    The added norms and scales are neutral, so the two models have equal outputs.

    Args:
        folded: tensors of the completely folded model.
        target: model in the form `branches_folded`; the function uses only its structure.

    Raises:
        ValueError: if an attention's `qkv` bias does not come from folding a norm, so that no norm can reproduce it.
    """
    dtype = next(tensor.dtype for tensor in folded.values() if tensor.is_floating_point())
    state = {name: folded[name] for name in target.state_dict() if name in folded}
    for name, module in target.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, ConvNorm):
            state[f"{prefix}conv.weight"] = folded[f"{prefix}weight"]
            state |= _neutral_norm(f"{prefix}norm.", module.norm, folded[f"{prefix}bias"])
        elif isinstance(module, LayerScale):
            state[f"{prefix}gamma"] = torch.ones(module.gamma.shape, dtype=dtype)
        elif isinstance(module, AttentionBlock) and isinstance(module.norm, nn.BatchNorm2d):
            shift = _input_shift(folded[f"{prefix}attention.qkv.weight"], folded[f"{prefix}attention.qkv.bias"], name)
            state |= _neutral_norm(f"{prefix}norm.", module.norm, shift)
    return {name: state[name] for name in target.state_dict()}


def _neutral_norm(prefix: str, norm: nn.BatchNorm2d, bias: Tensor) -> dict[str, Tensor]:
    return {
        f"{prefix}weight": torch.ones_like(bias),
        f"{prefix}bias": bias,
        f"{prefix}running_mean": torch.zeros_like(bias),
        # The norm adds its epsilon to the variance, and divides by the root of the sum, which must be one.
        f"{prefix}running_var": torch.full_like(bias, 1 - norm.eps),
        f"{prefix}num_batches_tracked": torch.tensor(0),
    }


def _input_shift(weight: Tensor, bias: Tensor, name: str) -> Tensor:
    """Return the input shift that `weight` maps to `bias`; folding computed `bias` from such a shift."""
    matrix, target = widened(weight), widened(bias)
    shift: Tensor = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0]
    residual = torch.linalg.vector_norm(matrix @ shift - target) / torch.linalg.vector_norm(target).clamp_min(1e-12)
    if residual > 1e-4:
        raise ValueError(
            f"the attention bias in {name!r} does not come from folding a norm (relative residual {residual:.1e}), so "
            "the norm of the new layout cannot represent the bias; convert the training form instead"
        )
    return shift.to(bias.dtype)


_KNOWN_ELSEWHERE = (MCiSpec, RepMixerSpec, AttentionSpec, ViTSpec, TextTransformerSpec, MCtSpec)


def save_model(model: nn.Module, path: AnyPath, *, layout: str = NATIVE) -> None:
    """Write a model or a tower to a file, atomically.

    Args:
        model: a model or tower, in training form or reparameterized; may be compiled.
        path: a path or URL. The layout `mobileclip` requires the suffix `.safetensors`; other layouts write a PyTorch
            file for any other suffix.
        layout: `mobileclip`, `official`, `open_clip`, or `timm` for an image tower or a classifier. Other libraries
            fold only branches, so a reparameterized model gets neutral norms and scales in their layouts. A safetensors
            file stores the spec and the embedding space in its header; the layout `mobileclip` also stores the n-grams
            of `provenance`.

    Raises:
        ValueError: if the layout is unknown or does not support the model, or two of the model's weights share a
            tensor.
        CheckpointError: if a file in this library's layout has a suffix other than `.safetensors`, or the model's spec
            is neither one of this library's model specs nor a tower spec.

    Examples:
        >>> tower = MCtSpec(width=16, depth=0, num_heads=2).build()
        >>> save_model(tower, "text.safetensors")
        >>> load_model("text.safetensors").spec == tower.spec
        True
    """
    name = file_name(path)
    spec = cast("ModelSpec", model.spec)
    if not is_known(spec):
        raise CheckpointError(
            f"a checkpoint cannot store a {type(spec).__name__}, only a DualEncoderSpec, a ClassifierSpec, a CoCaSpec "
            "or a tower's spec; store the weights separately, and the spec with mobileclip.serialization.to_json",
            code="not_storable",
        )
    form = form_of(model)
    space = getattr(model, "provenance", NO_PROVENANCE).space
    _check_untied(model)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state_of(model).items()}
    if layout == NATIVE:
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"mobileclip's own layout is safetensors, so name the file *.safetensors, not {name!r}",
                code="not_storable",
            )
        ngrams = getattr(getattr(model, "text_encoder", model), "provenance", NO_PROVENANCE).ngrams
        state |= {} if ngrams is None else {NGRAMS: ngrams.cpu()}
        write_tensors(path, state, Header(spec=spec, form=form, space=space).to_metadata())
        return
    if layout not in layouts:
        raise ValueError(f"{layouts.unknown(layout)}; the default layout is {NATIVE}")
    foreign = layouts[layout]
    _check_place(spec, foreign)
    if form == "folded":
        form = "branches_folded"
        state = with_neutral_norms(state, skeleton(spec, form))
    written: dict[str, Tensor] = {}
    for name, entry in foreign.entries(spec, form).items():
        tensor = state[name]
        written[entry.name] = entry.reshape.to_layout(tensor).contiguous() if entry.reshape is not None else tensor
    written = foreign.packed(written, spec)
    for _, tower in towers(spec):
        written |= foreign.constants(tower)
    header = Header(spec=spec, form=form, layout=layout, space=space)
    write_tensors(path, written, header.to_metadata())


def _check_untied(model: nn.Module) -> None:
    """Raise if two names of a model share a tensor."""
    known: dict[int, str] = {}
    for name, tensor in state_of(model).items():
        other = known.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if other != name:
            raise ValueError(
                f"{other} and {name} are one tensor (tied weights), but would be two tensors after loading; "
                "register the tensor once, and use it in both places in forward"
            )


def _check_place(spec: ModelSpec, layout: Layout) -> None:
    """Raise if another library's layout, or the code that reads the layout, does not support a model.

    Raises:
        ValueError: if the model is not supported; the message names the unsupported property.
    """
    own = f"save the model in our own layout, {NATIVE}"
    if tokenizer_of(spec) is not None:
        raise ValueError(
            f"the {layout.name} layout cannot store a tokenizer, and its readers use CLIP's tokenizer; {own}"
        )
    if not layout.has_place(spec):
        advice = " ".join(filter(None, (layout.advice, own)))
        raise ValueError(f"the {layout.name} layout does not support a {type(spec).__name__}; {advice}")
    for _, tower in towers(spec):
        mixers = [stage.mixer for stage in tower.stages] if isinstance(tower, MCiSpec) else []
        for part in (tower, *mixers):
            if type(part) not in _KNOWN_ELSEWHERE:
                raise ValueError(
                    f"the {layout.name} layout does not support a {type(part).__name__}, which the library that reads "
                    f"the layout cannot build; {own}"
                )
        if isinstance(tower, TextTransformerSpec | MCtSpec) and tower.pool != "end":
            raise ValueError(
                f"the code that reads the {layout.name} layout pools texts at the end token, but this text tower uses "
                f"pool={tower.pool}; {own}"
            )
        if not has_projection(tower) and not layout.has_bare_towers:
            raise ValueError(
                f"the {layout.name} layout supports only image towers with a projection, which this tower lacks; {own}"
            )
        if isinstance(tower, ImageEncoderSpec) and not layout.has_bare_towers:
            tower.input.require_rgb(f"the code that reads the {layout.name} layout builds image towers for")
        if has_projection(tower) and isinstance(spec, ClassifierSpec):
            raise ValueError(
                f"the {layout.name} layout supports a classifier only if its image tower has no projection, but this "
                f"classifier's tower has a projection; {own}"
            )
        layout.check(tower)
