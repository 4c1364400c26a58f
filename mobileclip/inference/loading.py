"""Loads models with preprocessing, from a name, a file or an export, and text towers for other languages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from torch import nn

from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.encoders import Classifier, CoCa, DualEncoder, DualEncoderSpec, TextEncoderSpec
from mobileclip.encoders.checkpoints import (
    PREFIX,
    PRETRAINED,
    ModelSpec,
    companion,
    packaged,
    read_checkpoint,
    resolve_spec,
    unpublished,
)
from mobileclip.encoders.checkpoints.hub import local_checkpoint, parsed
from mobileclip.encoders.checkpoints.loading import source_of
from mobileclip.encoders.checkpoints.published import PUBLISHED, is_export, with_timm_tower
from mobileclip.encoders.checkpoints.tensors import check_cast, spec_of_size
from mobileclip.encoders.families import image_spec
from mobileclip.hardware import AUTO, pick_device
from mobileclip.inference.forms import with_fast_layout, with_towers
from mobileclip.inference.identity import ModelIdentity, identity_of, stored_space
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inputs import Decode, Interpolation
from mobileclip.registry import Registry, nearest_file
from mobileclip.reparam import reparameterize

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Common file name suffixes of weights files."""

openers: Registry[Callable[..., DualEncoder]] = Registry("opener", home="mobileclip.export.running")
"""Functions that load a model from a folder, by kind of folder; the only kind is `export`."""


def load(
    model: str | Path | DualEncoderSpec | None = None,
    checkpoint: str | Path | None = None,
    *,
    fold: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    context_length: int | None = None,
    interpolation: Interpolation | None = None,
    num_threads: int | None = None,
    trust: bool = False,
    mmap: bool = False,
    text_model: str | Path | None = None,
    decode: Decode = "exact",
    any_language: bool = False,
    identify: bool = False,
) -> ImageTextModel:
    """Return a pretrained model with preprocessing, folded and in evaluation mode.

    `load("mobileclip_s2", "mobileclip_s2.pt")` and `load("clip.safetensors")` load files. `load("mobileclip_s2")`
    downloads the published weights once (the licence of the weights permits research only). `load("icons")` loads a
    small model for drawings, included in the package; `mobileclip info icons` prints the model card.
    `load("open_clip:ViT-B-32/openai")` and `load("transformers:google/siglip2-base-patch16-256")` load models of other
    packages. `load("s2_onnx")` opens an export, a folder from `mobileclip export`, in the runtime of the export.

    Args:
        model: name or spec of the model, or a checkpoint that names the model.
        checkpoint: a file in any known layout, in training form or reparameterized; a folder with one weights file,
            such as the output of `save_pretrained`; `hf-hub:owner/name`; or the folder of an export, which fixes form,
            dtype and sizes. None for the weights of `model`.
        fold: whether to reparameterize branches, norms and scales for inference; False keeps the stored form.
        dtype: dtype of the loaded weights and of the computation.
        device: device of the model; for an export, `cpu` or a device of the export's runtime, see
            `mobileclip.export.load_export`.
        image_size: image size in pixels; None for the model's image size. See `mobileclip.encoders.load_model`.
        context_length: token ids per text, at most the model's context length, which is the default. See
            `mobileclip.encoders.load_model`.
        interpolation: resize filter, `bilinear` or `bicubic`, for the image transform; None for the model's filter.
        num_threads: CPU threads per call; None for PyTorch's setting. See `mobileclip.export.load_export` for exports.
        trust: whether to open an export from another machine for a target other than ONNX, although the export can run
            code.
        mmap: whether to memory-map the weights rather than copy the weights into memory; weights that need a conversion
            are always copied. Do not change a mapped file: truncating the file kills the process.
        text_model: checkpoint of a text tower (a file, or a folder with one file) that replaces the model's text tower.
            Both text towers must have the same embedding space; tokenizer and context length may differ.
        decode: JPEG decoding, `exact` or `fast`; see `ImageTextModel`.
        any_language: whether to add the second text tower that the package has for the model: `icons` then supports the
            languages of `icons-multilingual`.
        identify: whether to compute the model's `identity`, with a hash of the stored weights.

    Raises:
        ImportError: if the runtime of an export is not installed.
        FileNotFoundError: if the checkpoint file does not exist.
        CheckpointError: if names or shapes of tensors in the file do not match the model.
        ValueError: if the model name is unknown, the model does not support the image size or context length, or the
            text tower has a different embedding space.

    Examples:
        The first two lines download weights from the hub, so the tests skip them.

        >>> clip = mobileclip.load("mobileclip_s2")  # doctest: +SKIP
        >>> probabilities = clip.classify("cat.jpg", ["a cat", "a dog"])  # doctest: +SKIP
        >>> mobileclip.load("mobileclip_s5")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown model 'mobileclip_s5'; did you mean 'mobileclip_s4' or ...
    """
    wanted, found = place_of(model, checkpoint)
    if context_length is not None and text_model is not None:
        raise ValueError(
            f"{text_model} has its own context length; omit the context length, or convert the text tower: "
            "mobileclip convert FILE -o SHORT.safetensors --context-length N"
        )
    identity = None
    if is_export(found):
        if wanted is not None or dtype != torch.float32 or {image_size, context_length, interpolation} != {None}:
            raise ValueError(
                f"{found} is an export with a fixed model, precision, sizes and resize filter; omit the "
                "arguments for the model, dtype, sizes and filter, or pass the original checkpoint"
            )
        built = openers["export"](found, device=str(device), num_threads=num_threads, trust=trust)
        identity, device = identity_of(built), "cpu"
    else:
        stored = read_checkpoint(found, wanted, mmap=mmap)
        stored = stored.of_size(image_size=image_size, context_length=context_length)
        built = _resizing(_both_towers(stored.build(), found), interpolation)
        if identify:
            identity = identity_of(built)
        if fold and stored.form != "folded":
            built = reparameterize(built, inplace=True)
        check_cast(built, dtype)
        built.requires_grad_(not fold).to(device=device, dtype=dtype)
        if fold and not mmap:
            built = with_fast_layout(built)
    towers: tuple[nn.Module, ...] = ()
    if (other := text_model or companion(found, of_file=any_language)) is not None:
        own = identity_of(built) if is_export(found) else stored_space(read_checkpoint(found, wanted), found)
        called = str(model) if isinstance(model, str | Path) else str(found)
        tower = _text_tower(other, own, model=called, fold=fold).to(device=device, dtype=dtype)
        if text_model is None:
            towers = (tower,)
        else:
            built = with_towers(built, text_encoder=tower)
    return ImageTextModel(built, num_threads=num_threads, text_towers=towers, decode=decode, identity=identity)


def _text_tower(place: str | Path, space: ModelIdentity, *, model: str, fold: bool) -> nn.Module:
    """Load a text tower in evaluation mode from a checkpoint, to encode texts for another model.

    Args:
        place: a weights file, a folder with one weights file, or the name of a packaged model with a second text tower.
        space: embedding space of the model.
        model: name of the model, for messages.
        fold: whether to fold the tower.

    Raises:
        FileNotFoundError, CheckpointError: if the checkpoint does not exist, or cannot be read.
        ValueError: if the checkpoint is not a text tower, or names no embedding space or a different embedding space
            than the model's.
    """
    stored = read_checkpoint(companion(place) or place)
    if not isinstance(stored.spec, TextEncoderSpec):
        raise ValueError(
            f"{place} is not a single text tower; expected the result of `mobileclip train distil_text` or "
            "`mobileclip convert MODEL --tower text -o FILE`"
        )
    own = stored_space(stored, place)
    if not own.is_same(space):
        spoken, wanted = (f"the model with the weights {one.weights_sha256[:12]}" for one in (own, space))
        raise ValueError(
            f"{place} has the embedding space of {spoken}, not that of {model} ({wanted}); distil a tower from "
            f"{model}'s text "
            f"tower with `mobileclip train distil_text -m {model}`"
        )
    tower = stored.build()
    if fold and stored.form != "folded":
        tower = reparameterize(tower, inplace=True)
    return tower.requires_grad_(requires_grad=False)


def space_of(
    model: str | Path | DualEncoderSpec | None = None, checkpoint: str | Path | None = None, *, trust: bool = False
) -> ModelIdentity:
    """Return the embedding space that a checkpoint names, or else the identity of the checkpoint's model.

    A distilled text tower stores the embedding space of its teacher, and works with every model of the same embedding
    space.

    Args:
        model: model name, spec or checkpoint, see `load`; or a distilled text tower.
        checkpoint: weights file, folder, `hf-hub:` name or export, see `load`.
        trust: whether to open an export that can run code, see `load`.

    Raises:
        ValueError: if the file is a single tower without the name of an embedding space; see also `load`.
        FileNotFoundError, CheckpointError: if the checkpoint is missing or does not match the model, see `load`.

    Examples:
        >>> space_of("icons").weights_sha256[:12]
        'eacc2f915a66'
    """
    wanted, found = place_of(model, checkpoint)
    if is_export(found):
        return identity_of(load(model, checkpoint, trust=trust).model)
    return stored_space(read_checkpoint(found, wanted), found)


def require_model(model: str | Path | DualEncoderSpec | None, checkpoint: str | Path | None = None) -> None:
    """Raise an error for an unknown model name or a missing file, without reading or downloading weights.

    Raises:
        ValueError, FileNotFoundError: if the model name is unknown or the file is missing, see `load`.
    """
    wanted, found = place_of(model, checkpoint)
    if isinstance(wanted, str):
        resolve_spec(wanted)
    if (source := source_of(found)) is not None:
        source[0].check(source[1])
    elif not str(found).startswith(PREFIX) and not is_export(found) and not local_checkpoint(found).is_file():
        raise FileNotFoundError(f"no checkpoint at {found}: there is no such file{nearest_file(Path(found))}")


def spec_known_by_name(
    model: str | Path | DualEncoderSpec | None,
    checkpoint: str | Path | None = None,
    *,
    image_size: int | None = None,
    context_length: int | None = None,
) -> DualEncoderSpec | None:
    """Return the spec of the model that `load` would return, if the model's name or hub URL determines the spec.

    The function reads and downloads no weights. The result is None if only the weights determine the spec. The layout
    of the checkpoint may change details of the spec, see `mobileclip.encoders.checkpoints.loading.is_other_model`.

    Args:
        model: model name, spec or checkpoint, see `load`.
        checkpoint: weights file, folder, `hf-hub:` name or export, see `load`.
        image_size: image size in pixels; None for the model's image size.
        context_length: token ids per text; None for the model's context length.

    Raises:
        ValueError, FileNotFoundError: if the model name is unknown or the file is missing, see `load`.
    """
    wanted, found = place_of(model, checkpoint)
    if wanted is None and str(found).startswith(PREFIX):
        repository = parsed(str(found)).repository
        wanted = next((name for name, one in PUBLISHED.items() if one.repository == repository), None)
    spec = resolve_spec(wanted) if isinstance(wanted, str) else wanted
    if not isinstance(spec, DualEncoderSpec):
        return None
    return spec_of_size(spec, image_size=image_size, context_length=context_length)


def device_for(model: str | Path | None, checkpoint: str | Path | None, device: str) -> str:
    """Return the device for a model; `auto` selects the best device of this machine, or the CPU for an export.

    Raises:
        ValueError: if this machine does not have the device.
    """
    if is_export(checkpoint or model or ""):
        return "cpu" if device == AUTO else device
    return str(pick_device(device))


def holds_weights(name: str | Path) -> bool:
    """Return whether a name refers to weights (a file, folder, hub repository or packaged model), not an architecture.

    Args:
        name: value of `--model`; the name of a known model refers to the model, even if a folder has the same name.
    """
    text = str(name)
    if text.startswith(PREFIX) or source_of(name) is not None or packaged(name) is not None or Path(text).is_file():
        return True
    is_known = any(text in registry for registry in (models, image_encoders, text_encoders))
    return bool(text.strip()) and not is_known and Path(text).is_dir()


def place_of(
    model: str | Path | DualEncoderSpec | None, checkpoint: str | Path | None
) -> tuple[str | ModelSpec | None, str | Path]:
    """Return the model name or spec, if any, and the place of the checkpoint."""
    if checkpoint is None and model is not None and not isinstance(model, DualEncoderSpec):
        if str(model) in PRETRAINED:
            checkpoint = PRETRAINED[str(model)]
        elif holds_weights(model):
            model, checkpoint = None, model
        else:
            spec_by_name(model)
    if checkpoint is None:
        raise ValueError(unpublished(None if model is None or isinstance(model, DualEncoderSpec) else str(model)))
    return str(model) if isinstance(model, Path) else model, checkpoint


def spec_by_name(name: str | Path) -> ModelSpec:
    """Return the spec of a named model or tower.

    Raises:
        FileNotFoundError: if the name looks like a path, but the file does not exist.
        ValueError: if the name is unknown; the message suggests the nearest names.
    """
    try:
        return resolve_spec(str(name))
    except ValueError:
        if whole := with_timm_tower(str(name)):
            raise ValueError(f"{name} is a single image tower; the model with its text tower is {whole}") from None
        path = Path(name)
        if isinstance(name, Path) or len(path.parts) > 1 or path.suffix.lower() in CHECKPOINT_SUFFIXES:
            raise FileNotFoundError(f"there is no checkpoint at {path}{nearest_file(path)}") from None
        raise


def _resizing(model: DualEncoder, interpolation: Interpolation | None) -> DualEncoder:
    """Replace the model's resize filter, unless `interpolation` is None."""
    if interpolation is not None:
        spec = image_spec(model.image_encoder)
        changed = attrs.evolve(spec, input=attrs.evolve(spec.input, interpolation=interpolation))
        model.image_encoder.spec = changed  # type: ignore[assignment]
    return model


_KINDS = {Classifier: "a classifier", CoCa: "a captioner"}


def _both_towers(loaded: nn.Module, checkpoint: str | Path) -> DualEncoder:
    if not isinstance(loaded, DualEncoder):
        kind = next((name for cls, name in _KINDS.items() if isinstance(loaded, cls)), "one tower")
        raise ValueError(
            f"{checkpoint} contains {kind} instead of an image-text model; load the file with "
            "mobileclip.encoders.load_model"
        )
    return loaded
