"""Loads a model, one of its towers or a backbone from a checkpoint in any known layout and form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.blocks import named_spec
from mobileclip.encoders.checkpoints.hub import fetched
from mobileclip.encoders.checkpoints.layouts import (
    OWN,
    Form,
    ModelSpec,
    in_form,
    layouts,
    prefix_of,
    skeleton,
    tensor_dtypes,
    tensor_shapes,
)
from mobileclip.encoders.checkpoints.published import PRETRAINED
from mobileclip.encoders.checkpoints.recognising import (
    CheckpointMatch,
    Tower,
    abbreviated_list,
    adapted,
    is_optional_tensor,
    matching_names,
    part,
    recognised,
    without_projection,
)
from mobileclip.encoders.checkpoints.saving import (
    NATIVE,
    NGRAMS,
    NO_PROVENANCE,
    Header,
    TrainingProvenance,
    extract_model_state,
    header_of,
)
from mobileclip.encoders.checkpoints.tensors import (
    check_cast,
    check_numbers,
    resized,
)
from mobileclip.encoders.classifier import Classifier, ClassifierSpec
from mobileclip.encoders.coca import CoCaSpec
from mobileclip.encoders.dual import DualEncoder, DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec, as_trained, image_spec
from mobileclip.registry import Registry
from mobileclip.reparam import reparameterize
from mobileclip.tensor_files import CheckpointError, read_tensors, weights_of
from mobileclip.tensor_files.errors import shown

model_sources: Registry[ModelSource] = Registry("model_source", home="mobileclip.interop.sources")
"""Sources of models from other packages, by the checkpoint's prefix: `open_clip:` or `transformers:`."""


@attrs.frozen(kw_only=True)
class ModelSource:
    """A source of models from another package.

    Args:
        read: function from the text after the colon (the model's name) to the model with all weights.
        check: function that raises if the model does not exist; needs no network connection.
        licence: function that returns the licence of the weights from the model card; None if the card is unreadable.
    """

    read: Callable[[str], LoadedCheckpoint]
    check: Callable[[str], object]
    licence: Callable[[str], str | None]


def source_of(checkpoint: str | Path) -> tuple[ModelSource, str] | None:
    """Return a checkpoint's source, and the model's name after the colon; None for files and the hub."""
    scheme, colon, name = str(checkpoint).partition(":")
    return (model_sources[scheme], name) if colon and scheme in ("open_clip", "transformers") else None


@attrs.frozen(kw_only=True)
class LoadedCheckpoint:
    """The content of a checkpoint, with tensors under this library's names.

    Args:
        spec: spec of the stored model.
        form: form of the tensors: `training`, `branches_folded` or `folded`.
        layout: name of the file's layout.
        tensors: stored tensors by this library's names.
        provenance: the embedding space, and the n-grams of a text tower's training data.
    """

    spec: ModelSpec
    form: Form
    layout: str
    tensors: dict[str, Tensor] = attrs.field(repr=False, eq=False)
    provenance: TrainingProvenance = attrs.field(default=NO_PROVENANCE, repr=False, eq=False)

    def build(self) -> nn.Module:
        """Return the model in its stored form, in float32 and evaluation mode.

        A text tower gets the whole `provenance`; a dual encoder's text tower gets only the n-grams, since training may
        change the embedding space.
        """
        model = self._built()
        if isinstance(self.spec, TextEncoderSpec):
            model.provenance = self.provenance  # type: ignore[assignment]
        elif isinstance(model, DualEncoder):
            model.text_encoder.provenance = attrs.evolve(self.provenance, space="")  # type: ignore[assignment]
        return model

    def _built(self) -> nn.Module:
        model = skeleton(self.spec, self.form)
        wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in self.tensors.items()}
        model.load_state_dict(wide, assign=True)
        if not _lacks_numbers(model):
            return model
        # Building on the CPU creates the tensors that the file lacks, such as non-persistent buffers.
        with torch.random.fork_rng(devices=()):
            model = in_form(self.spec.build().eval(), self.form, inplace=True)
        model.load_state_dict(wide, assign=True)
        return model

    def of_size(
        self, *, image_size: int | None = None, context_length: int | None = None, in_channels: int | None = None
    ) -> LoadedCheckpoint:
        """Return the checkpoint for a different image size, number of channels or context length.

        See `load_model` for the arguments.

        Raises:
            ValueError: if the model has no tower for a changed input, or the tower supports only its current input.
        """
        sizes = {"image_size": image_size, "context_length": context_length, "in_channels": in_channels}
        if all(size is None for size in sizes.values()):
            return self
        spec, tensors = resized(self.spec, self.form, self.tensors, **sizes)
        return attrs.evolve(self, spec=spec, tensors=tensors)


def _lacks_numbers(model: nn.Module) -> bool:
    """Return whether a model on the meta device has tensors outside its state dict."""
    held = (value for module in model.modules() for value in vars(module).values())
    return any(buffer.is_meta for buffer in model.buffers()) or any(type(value) is Tensor for value in held)


def load_model(
    checkpoint: str | Path | Mapping[str, Any],
    model: str | ModelSpec | None = None,
    *,
    tower: Tower | None = None,
    fold: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    context_length: int | None = None,
    in_channels: int | None = None,
    mmap: bool = False,
) -> nn.Module:
    """Load a model from a checkpoint, in evaluation mode; a missing or unexpected tensor is an error.

    A different image size or context length changes the model's spec (`input.size`, `input.context_length`), and
    therefore the transform, tokenizer, checkpoints and exports.

    Args:
        checkpoint: a file in Apple's, open_clip's, timm's or this library's layout, in training form or
            reparameterized, possibly wrapped by a training script (`state_dict`, `model`, `ema`), or the checkpoint of
            a training step; a folder with one such file; a hub repository, `hf-hub:owner/name`; or a `state_dict` in
            memory. The function prefers averaged weights, and removes wrapper prefixes from tensor names.
        model: name or spec of the model, or of one tower to load only this tower; None to detect the model from the
            file, if only one model fits.
        tower: `image` or `text` to load only this tower; None for the whole model.
        fold: whether to reparameterize branches, norms and scales for inference. False returns the training form,
            which a reparameterized checkpoint cannot provide.
        dtype: dtype of the weights; the function reparameterizes before the cast.
        device: device of the model.
        image_size: side of the images in pixels, if it differs from the checkpoint's. A ViT interpolates its position
            embeddings; an MCi has no position embeddings. Published models were trained at one image size only.
        context_length: ids per text, at most the checkpoint's number. In causal towers, texts that fit keep their
            embeddings. Other towers attend to padding, so every embedding changes. With random weights, the mean cosine
            with the embedding of 77 ids is 0.69 for 16 ids and 0.96 for 32 ids in the base tower, 0.77 for 16 ids and
            0.97 for 32 ids in MCt, and at least 0.998 for 64 ids in both. Evaluate the model before you use it.
        in_channels: number of image channels, if different from the checkpoint's number. Like timm, the function sums
            the first convolution's weights to one channel, or repeats and scales the weights for more channels; mean
            and std come from `ImageInput.of_channels`. Train or evaluate the model before you use it.
        mmap: whether to leave unchanged weights in the file instead of copying them into memory. Do not change the file
            afterwards: truncating the file kills the process.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if a tensor is missing, unexpected, of the wrong shape, or not finite; if the file contains a
            different model; or if `fold` is False and the checkpoint is reparameterized.
        ValueError: if no model has this name, or the model does not support the image size, channels or context length.

    Examples:
        >>> save_model(MCtSpec(width=16, depth=0, num_heads=2).build(), "text.safetensors")
        >>> mobileclip.reparam.is_folded(load_model("text.safetensors"))
        True
        >>> mobileclip.reparam.is_folded(load_model("text.safetensors", fold=False))
        False
        >>> load_model("text.safetensors", context_length=32).spec.input.context_length
        32
    """
    stored = read_checkpoint(checkpoint, model, tower=tower, mmap=mmap, to_train=not fold)
    sizes = {"image_size": image_size, "context_length": context_length, "in_channels": in_channels}
    loaded = stored.of_size(**sizes).build()
    if fold and stored.form != "folded":
        loaded = reparameterize(loaded, inplace=True)
    check_cast(loaded, dtype)
    return loaded.requires_grad_(not fold).to(device=device, dtype=dtype)


def read_checkpoint(
    checkpoint: str | Path | Mapping[str, Any],
    model: str | ModelSpec | None = None,
    *,
    tower: Tower | None = None,
    mmap: bool = False,
    to_train: bool = False,
) -> LoadedCheckpoint:
    """Return a checkpoint's content, checked against the expected model; see `load_model` for arguments and errors.

    With `to_train`, the function refuses reparameterized checkpoints.
    """
    if not isinstance(checkpoint, Mapping) and (source := source_of(checkpoint)) is not None:
        if model is not None:
            raise ValueError(f"{checkpoint} names its model; omit the model argument")
        whole = source[0].read(source[1])
        of_tower_alone, tensors = _one_tower(checkpoint, whole.spec, whole.tensors, tower)
        return attrs.evolve(whole, spec=of_tower_alone, tensors=tensors)
    if isinstance(checkpoint, Mapping):
        path, tensors, metadata = Path("the state_dict"), weights_of(checkpoint), dict[str, str]()
    else:
        path = fetched(checkpoint)
        tensors, metadata = extract_model_state(*read_tensors(path, mmap=mmap))
    wanted = resolve_spec(model) if isinstance(model, str) else model
    tower = tower or _tower_of(wanted)
    header = header_of(metadata, path)
    provenance = TrainingProvenance(space="" if header is None else header.space, ngrams=tensors.pop(NGRAMS, None))
    match = recognised(path, tensors, wanted, tower) if header is None else _match_of_header(path, tensors, header)
    spec, placed = _one_tower(path, match.spec, _placed(path, match, wanted), tower)
    if header is not None and wanted is not None:
        spec = _checked_spec(path, spec, part(adapted(match.layout, wanted, tensors), tower))
    if to_train and match.form != "training":
        raise CheckpointError(
            f"{checkpoint} is folded and no longer has the branches for training; start from the original "
            "checkpoint in training form (a folded checkpoint can be evaluated, converted and exported, but not "
            "trained)",
            code="folded",
        )
    check_numbers(path, placed, tensor_dtypes(spec, match.form))
    return LoadedCheckpoint(spec=spec, form=match.form, layout=match.layout.name, tensors=placed, provenance=provenance)


def _match_of_header(path: Path, tensors: dict[str, Tensor], header: Header) -> CheckpointMatch:
    """Return the match that a file's header states, with the file's tensors."""
    layout = OWN if header.layout == NATIVE else layouts[header.layout]
    prefix = prefix_of(header.spec) if layout is OWN else ""
    _check_size(path, tensors, header.spec)
    named = {f"{prefix}{name}": tensor for name, tensor in layout.unpacked(tensors, header.spec).items()}
    return CheckpointMatch(spec=header.spec, form=header.form, layout=layout, tensors=named)


def resolve_spec(name: str) -> ModelSpec:
    """Return the spec of the model or tower with this name.

    Raises:
        ValueError: if no registered model or tower has this name.
    """
    return cast("ModelSpec", named_spec(name))


def is_other_model(spec: DualEncoderSpec, other: DualEncoderSpec) -> bool:
    """Return whether two specs differ in more than training-only or layout-dependent options."""
    layout = layouts["official"]
    return as_trained(adapted(layout, spec, {})) != as_trained(adapted(layout, other, {}))


def _placed(path: Path, match: CheckpointMatch, wanted: ModelSpec | None) -> dict[str, Tensor]:
    """Return exactly the model's tensors, with this library's names and shapes."""
    given = dict(match.tensors)
    for name, constant in match.constants.items():
        if not torch.equal(given.pop(name, constant).float(), constant):
            raise CheckpointError(
                f"{path} does not fit the model: the model has no tensor {shown(name)}", code="does_not_fit"
            )
    entries = match.layout.entries(match.spec, match.form)
    given |= {entries[name].name: one for name, one in _usual(match).items() if entries[name].name not in given}
    expected = {entry.name for entry in entries.values()}
    problems = [
        f"{len(names)} {what} ({abbreviated_list(names)})"
        for what, names in (("missing key(s)", expected - given.keys()), ("unexpected key(s)", given.keys() - expected))
        if names
    ]
    if problems:
        fitting = [] if wanted is None else matching_names(match)
        hint = f"; its tensors fit {' or '.join(fitting)}" if fitting else ""
        raise CheckpointError(f"{path} does not fit the model: {' and '.join(problems)}{hint}", code="does_not_fit")
    placed = {}
    for name, shape in tensor_shapes(match.spec, match.form).items():
        tensor = held = given[entries[name].name]
        reshape = entries[name].reshape
        # Reshape a tensor that the layout stores in another shape, unless its number of elements differs.
        if reshape is not None and held.numel() == torch.Size(shape).numel():
            tensor = reshape.from_layout(held).contiguous()
        elif len(shape) < 2 and held.numel() == math.prod(shape) == 1:
            tensor = held.reshape(shape)
        if name.endswith("num_batches_tracked"):
            tensor = tensor.long()  # a script that casts a whole file to half precision also casts counters
        if tuple(tensor.shape) != shape:
            others = held.ndim == len(shape) == 4 and held.shape[1] != shape[1] and held.shape[2:] == shape[2:]
            hint = f"; in_channels={shape[1]} of load_model adapts weights to other channels" if others else ""
            raise CheckpointError(
                f"{path} does not fit the model: {shown(entries[name].name)} has the shape {tuple(held.shape)}, "
                f"but the model needs {shape}{hint}",
                code="does_not_fit",
            )
        placed[name] = tensor
    return placed


def _usual(match: CheckpointMatch) -> dict[str, Tensor]:
    """Return default values for tensors that a file may lack: batch counters, and the logit scale at its maximum."""
    spec = match.spec
    cap = torch.tensor(math.log(spec.max_logit_scale)) if isinstance(spec, (DualEncoderSpec, CoCaSpec)) else None
    counter = torch.zeros((), dtype=torch.int64)
    lacking = filter(is_optional_tensor, tensor_shapes(spec, match.form))
    return {name: cap if name == "logit_scale" and cap is not None else counter for name in lacking}


def _checked_spec(path: Path, stored: ModelSpec, wanted: ModelSpec) -> ModelSpec:
    """Return the requested spec, after a comparison with the file's spec; training-only options may differ."""
    there, asked = as_trained(stored), as_trained(wanted)
    if there != asked:
        raise CheckpointError(
            f"{path} holds a different model from the requested model: {difference(there, asked)}; "
            "omit the model to load the file's model",
            code="another_model",
        )
    if stored == wanted:  # equal specs may differ in the text of the tokenizer, which the stored spec may have
        return stored
    if isinstance(stored, DualEncoderSpec) and isinstance(wanted, DualEncoderSpec):
        return attrs.evolve(wanted, max_logit_scale=stored.max_logit_scale)
    return wanted


def _check_size(path: Path, tensors: dict[str, Tensor], spec: ModelSpec) -> None:
    """Raise if a spec has more blocks than the file has tensors, before building the model."""
    if spec.num_blocks > len(tensors):
        raise CheckpointError(
            f"{path} declares a model of {spec.num_blocks:,} blocks, but has only {len(tensors):,} tensors; the file "
            "is damaged"
        )


def _one_tower(
    path: str | Path, spec: ModelSpec, tensors: dict[str, Tensor], tower: Tower | None
) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return a tower with its tensors, or the whole model if `tower` is None."""
    if tower is None:
        return spec, tensors
    if isinstance(spec, ClassifierSpec) and tower == "text":
        raise CheckpointError(f"{path} holds a classifier, which has no text tower", code="no_such_tower")
    if not isinstance(spec, (DualEncoderSpec, ClassifierSpec)):
        if _tower_of(spec) != tower:
            kind = "a captioner" if isinstance(spec, CoCaSpec) else "the other tower"
            raise CheckpointError(f"{path} has no {tower} tower, but only {kind}", code="no_such_tower")
        return spec, tensors
    prefix = f"{tower}_encoder."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return part(spec, tower), own


def _tower_of(spec: ModelSpec | None) -> Tower | None:
    if spec is None or not prefix_of(spec):
        return None
    return "image" if isinstance(spec, ImageEncoderSpec) else "text"


def difference(stored: Any, wanted: Any) -> str:
    """Return the first difference of two specs, as a path and two values."""
    if type(stored) is not type(wanted):
        return f"a {type(stored).__name__}, not a {type(wanted).__name__}"
    for field in attrs.fields(type(stored)):
        own, other = getattr(stored, field.name), getattr(wanted, field.name)
        if own != other:
            nested = attrs.has(type(own)) and attrs.has(type(other))
            return f"{field.name}.{difference(own, other)}" if nested else f"{field.name} is {own!r}, not {other!r}"
    raise AssertionError("equal specs do not differ")


def load_backbone(classifier: Classifier, checkpoint: str | Path, model: str | ModelSpec | None = None) -> None:
    """Load the image tower of a checkpoint into a classifier in training form; the head stays unchanged.

    The function drops the projection if the classifier's encoder has none, and interpolates a ViT's position embeddings
    to the classifier's image size. Otherwise the two encoders must have equal specs, except for drop path and the
    initial layer scale.

    Args:
        classifier: classifier in training form; the function changes its image encoder in place.
        checkpoint: an image-text model, an image tower or another classifier: a file in any known layout, a repository
            on the hub (`hf-hub:owner/name`), or the name of a model with published weights (`mobileclip_s0`).
        model: the name or spec of the file's model, if the function cannot detect the model.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if the file is damaged, reparameterized, or has a different image tower.
        ValueError: if no registered model has the name `model`.

    Examples:
        >>> image = MCiSpec(stages=(StageSpec(dim=8, depth=1),), embedding_dim=4)
        >>> save_model(image.build(), "tower.safetensors")
        >>> classifier = ClassifierSpec(image=image.without_projection(), num_classes=3).build()
        >>> load_backbone(classifier, "tower.safetensors")
        >>> tower = load_model("tower.safetensors", fold=False)
        >>> all(torch.equal(*pair) for pair in zip(classifier.image_encoder.stem.parameters(), tower.stem.parameters()))
        True
    """
    is_name = str(checkpoint) in PRETRAINED and not Path(checkpoint).exists()
    file = PRETRAINED[str(checkpoint)] if is_name else checkpoint
    encoder = classifier.image_encoder
    wanted = image_spec(encoder)
    stored = read_checkpoint(file, model, tower="image", to_train=True).of_size(image_size=wanted.input.size)
    # load_state_dict copies, and casts to the encoder's dtypes.
    encoder.load_state_dict(_fitted(stored, wanted, checkpoint))


def _fitted(stored: LoadedCheckpoint, wanted: ImageEncoderSpec, checkpoint: str | Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights for an encoder with the spec `wanted`, or raise if the encoders differ."""
    spec, tensors = stored.spec, stored.tensors
    assert isinstance(spec, ImageEncoderSpec), "the caller requested an image tower"
    if without_projection(wanted) == wanted:
        spec = without_projection(spec) or spec
        tensors = {name: tensors[name] for name in tensor_shapes(spec, "training")}
    if as_trained(spec) != as_trained(wanted):
        raise CheckpointError(
            f"{checkpoint} holds a different image tower from the classifier's: "
            f"{difference(as_trained(spec), as_trained(wanted))}; build the classifier with the file's tower, "
            "which `mobileclip info` shows",
            code="another_model",
        )
    return tensors
