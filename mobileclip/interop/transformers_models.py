"""Loads transformers models: all weights, the preprocessing and the tokenizer, without remote code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import attrs
import torch
from attrs import validators
from torch import Tensor

from mobileclip.encoders import DualEncoderSpec, TransformersImageSpec, TransformersTextSpec
from mobileclip.encoders.checkpoints import LoadedCheckpoint
from mobileclip.encoders.checkpoints.recognising import abbreviated_list
from mobileclip.extras import needed
from mobileclip.hardware import WidePrecision, dtype_of
from mobileclip.inputs import Fit, ImageInput, Interpolation, TextInput
from mobileclip.interop.foreign import checked, stored_of, text_input_of
from mobileclip.tensor_files.numbers import clone_tensors
from mobileclip.tensor_files.weights import weights_sha256

# Pillow identifies its resize filters by these numbers.
_FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
_BYTE_SCALE = 1 / 255
# While loading, transformers changes torch's functions and its own verbosity for all threads.
_LOADING = Lock()


@attrs.frozen(kw_only=True)
class TransformersSource:
    """The folder or hub repository of a transformers model.

    Args:
        model: a folder written by `save_pretrained`, or `OWNER/NAME` on the hub.
        revision: branch, tag or commit of the hub repository; None for the main branch.

    Raises:
        ValueError: if `model` is neither a folder nor a name on the hub.
    """

    model: str = attrs.field(validator=validators.min_len(1))
    revision: str | None = None

    def __attrs_post_init__(self) -> None:
        if not self.is_folder and (self.model.count("/") != 1 or self.model.startswith((".", "/", "~"))):
            raise ValueError(f"{self.model} is neither a folder nor OWNER/NAME on the hub")
        if self.is_folder and self.revision is not None:
            raise ValueError(
                f"{self.model} is a folder; leave out revision={self.revision!r}, which is for repositories on the hub"
            )

    @property
    def is_folder(self) -> bool:
        """Whether `model` is a folder on this machine."""
        return Path(self.model).is_dir()

    def name(self, sha256: str) -> str:
        """Return the display name: the name on the hub, or the folder's name and the start of the hash."""
        return f"{Path(self.model).resolve().name}-{sha256[:8]}" if self.is_folder else self.model

    def options(self) -> dict[str, Any]:
        """Return the arguments of every `from_pretrained` call."""
        return {"revision": self.revision or "main", "trust_remote_code": False}


@attrs.frozen(kw_only=True, eq=False)
class LoadedWeights:
    """A loaded model and its name.

    Args:
        model: model in evaluation mode, on the requested device and in the requested precision.
        name: display name, see `TransformersSource.name`.
        weights_sha256: SHA-256 of the weights in the precision of the file.
    """

    model: Any
    name: str
    weights_sha256: str


def transformers_package() -> ModuleType:
    """Import and return the package `transformers`.

    Raises:
        ImportError: if transformers is not installed; the message contains the install command.
    """
    with needed("a model of transformers", "transformers"):
        import transformers
    package: ModuleType = transformers
    return package


def read_dual_encoder(source: TransformersSource) -> LoadedCheckpoint:
    """Convert a transformers image-text model, with its preprocessing and tokenizer, to a model of this library.

    CLIP and MetaCLIP 2 keep the ids of their tokenizers. SigLIP and SigLIP 2 get the ids of their training: texts in
    lower case, without a start token, and with an end token even after truncation. Their tokenizers alone return other
    ids, and their text towers attend to padding. The function drops the bias of the sigmoid loss, which is the same for
    all pairs.

    Raises:
        ValueError: if the model cannot be loaded, weights are missing, the type is not `clip`, `metaclip_2` or
            `siglip`, or the images are not square or not of a single size.
        ImportError: if transformers is not installed.

    Source: Tschannen et al., "SigLIP 2", section 2.1: Gemma's tokenizer on lower-case texts, 64 ids. Zhai et al.,
        "Sigmoid Loss for Language Image Pre-Training". Chuang et al., "MetaCLIP 2: A Worldwide Scaling Recipe".
    """
    package = transformers_package()
    with _loading(source):
        config = package.AutoConfig.from_pretrained(source.model, **source.options())
    if config.model_type not in ("clip", "metaclip_2", "siglip"):
        raise ValueError(
            f"{source.model} has the model type {config.model_type!r}; expected clip, metaclip_2 or siglip (which "
            "includes SigLIP 2 with a fixed image size, but not NaFlex models, which accept images of any shape)"
        )
    with _loading(source):
        tokenizer = package.AutoTokenizer.from_pretrained(source.model, **source.options())
        processor = package.AutoImageProcessor.from_pretrained(source.model, **source.options())
    model = load_weights(package.AutoModel, source, device="cpu", precision="float32").model
    whole, is_siglip = config.to_dict(), config.model_type == "siglip"
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"the tokenizer of {source.model} has no tokenizer.json, so the tokenizer cannot be read "
            f"({type(tokenizer).__name__}); for SigLIP 1, use open_clip:ViT-B-16-SigLIP/webli"
        )
    about = {"model_type": config.model_type, "projection_dim": whole.get("projection_dim")}
    dim = config.text_config.projection_size if is_siglip else config.projection_dim
    texts = text_input_of(
        tokenizer.backend_tokenizer.to_str(),
        context_length=config.text_config.max_position_embeddings,
        vocab_size=config.text_config.vocab_size,
        pad_id=_known_id(tokenizer.pad_token_id, "padding", source),
        end_id=_known_id(tokenizer.eos_token_id, "end", source) if is_siglip else None,
        clean="lower case" if is_siglip else "",
    )
    spec = DualEncoderSpec(
        image=TransformersImageSpec(
            embedding_dim=dim,
            input=image_input(processor.to_dict(), config.vision_config.image_size, source.model),
            config=json.dumps({**about, "vision_config": whole["vision_config"]}, sort_keys=True),
        ),
        text=TransformersTextSpec(
            embedding_dim=dim,
            input=checked(texts, (_ended if is_siglip else _padded)(tokenizer, texts)),
            config=json.dumps({**about, "text_config": whole["text_config"]}, sort_keys=True),
        ),
    )
    prefix_map = {
        "vision_model.": "image_encoder.tower.",
        "visual_projection.": "image_encoder.projection.",
        "text_model.": "text_encoder.tower.",
        "text_projection.": "text_encoder.projection.",
    }
    return stored_of(spec, model.state_dict(), prefix_map)


def _padded(tokenizer: Any, contract: TextInput) -> Callable[[list[str]], Tensor]:
    """Return a function that encodes and pads texts with the tokenizer only."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt", "padding_side": "right"}
    return lambda texts: tokenizer(texts, max_length=contract.context_length, **options)["input_ids"]


def _ended(tokenizer: Any, contract: TextInput) -> Callable[[list[str]], Tensor]:
    """Return the function that makes SigLIP's ids: lower case, no start token, an end token even after truncation."""

    def row(text: str) -> list[int]:
        ids = tokenizer(text.lower(), add_special_tokens=False)["input_ids"][: contract.context_length - 1]
        return [*ids, contract.end_id, *[contract.pad_id] * (contract.context_length - 1 - len(ids))]

    return lambda texts: torch.tensor([row(text) for text in texts])


def load_weights(kind: Any, source: TransformersSource, *, device: str, precision: WidePrecision) -> LoadedWeights:
    """Return a model with all of its weights, read from safetensors only.

    Args:
        kind: class that loads the model, such as `AutoModel`.
        source: folder or hub repository of the model.
        device: device of the model.
        precision: precision of the returned weights.

    Raises:
        ValueError: if the model cannot be loaded, or weights are missing or have wrong shapes.
    """
    with _loading(source):
        model, told = kind.from_pretrained(
            source.model, dtype="auto", use_safetensors=True, output_loading_info=True, **source.options()
        )
    if lacking := [*map(str, (*told["missing_keys"], *told["mismatched_keys"]))]:
        raise ValueError(
            f"{source.model} cannot be loaded: the weights {abbreviated_list(lacking, 3)} are missing from the file or "
            "have wrong shapes, and would be random"
        )
    clone_tensors(model)
    sha256 = weights_sha256(model.state_dict())
    model.requires_grad_(requires_grad=False).eval().to(device=torch.device(device), dtype=dtype_of(precision))
    return LoadedWeights(model=model, name=source.name(sha256), weights_sha256=sha256)


def load_processor(source: TransformersSource) -> Any:
    """Return the processor that converts images and texts to a model's inputs.

    Raises:
        ValueError: if the processor cannot be loaded.
    """
    with _loading(source):
        return transformers_package().AutoProcessor.from_pretrained(source.model, **source.options())


def image_input(processor: Mapping[str, Any], size: int, name: str) -> ImageInput:
    """Convert the configuration of a transformers image processor to an image input.

    Args:
        processor: configuration of an image processor, as a dictionary.
        size: the model's input size in pixels.
        name: name of the model, for messages.

    Raises:
        ValueError: if the processor's output size is not `size`, its filter is neither bilinear nor bicubic, or the
            processor does not scale pixels to the range from 0 to 1.
    """
    is_cropped = bool(processor.get("do_center_crop"))
    sides = set(dict(processor["crop_size" if is_cropped else "size"]).values()) - {None}
    if sides != {size}:
        raise ValueError(f"{name} needs {size} x {size} pixels, but its image processor produces {sorted(sides)}")
    if processor.get("resample") not in _FILTERS:
        raise ValueError(
            f"{name} resizes with filter {processor.get('resample')}; expected 2 (bilinear) or 3 (bicubic)"
        )
    if not processor.get("do_rescale") or abs(processor.get("rescale_factor", 0) - _BYTE_SCALE) > 1e-6:
        raise ValueError(f"{name} does not scale pixels to the range from 0 to 1; other ranges are not supported")
    stretches = not is_cropped and {"height", "width"} <= dict(processor["size"]).keys()
    fit: Fit = "stretch" if stretches else "crop"
    image = ImageInput(size=size, interpolation=_FILTERS[processor["resample"]], fit=fit)
    if not processor.get("do_normalize"):
        return image
    mean, std = (tuple(map(float, processor[key])) for key in ("image_mean", "image_std"))
    return attrs.evolve(image, mean=mean, std=std)


@contextmanager
def _loading(source: TransformersSource) -> Iterator[None]:
    """Load in one thread at a time, without progress bars and warnings; turn loading errors into a ValueError."""
    from safetensors import SafetensorError

    logging = transformers_package().utils.logging
    try:
        with _LOADING, _silent(logging):
            yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        raise ValueError(f"{source.model} cannot be loaded: {error}") from error


@contextmanager
def _silent(logging: Any) -> Iterator[None]:
    level, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()


def _known_id(value: int | None, what: str, source: TransformersSource) -> int:
    if value is None:
        raise ValueError(f"the tokenizer of {source.model} has no {what} token; use the files that came with the model")
    return value
