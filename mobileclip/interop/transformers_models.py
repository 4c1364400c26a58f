"""Models of transformers: all of their weights, their own preprocessing and tokenizer, and no program of theirs."""

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
from mobileclip.encoders.checkpoints import Stored
from mobileclip.extras import needed
from mobileclip.hardware import WidePrecision, dtype_of
from mobileclip.inputs import Fit, ImageInput, Interpolation, TextInput
from mobileclip.interop.foreign import checked, stored_of, text_input_of
from mobileclip.tensor_files.numbers import own_numbers
from mobileclip.tensor_files.weights import weights_sha256

# Filters as Pillow numbers them.
_FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
_BYTE_SCALE = 1 / 255
# While it loads, transformers has functions of torch and its own verbosity changed, for all threads.
_LOADING = Lock()


@attrs.frozen(kw_only=True)
class TransformersSource:
    """The folder or hub repository of a transformers model.

    Args:
        model: a folder that `save_pretrained` has written, or `OWNER/NAME` on the hub.
        revision: of the hub's repository: a branch, a tag or a commit; None for the newest.

    Raises:
        ValueError: if there is no such folder, and it is no name on the hub either.
    """

    model: str = attrs.field(validator=validators.min_len(1))
    revision: str | None = None

    def __attrs_post_init__(self) -> None:
        if not self.is_folder and (self.model.count("/") != 1 or self.model.startswith((".", "/", "~"))):
            raise ValueError(f"{self.model} is neither a folder nor OWNER/NAME on the hub")
        if self.is_folder and self.revision is not None:
            raise ValueError(f"{self.model} is a folder, which has no revision {self.revision!r}; leave it out")

    @property
    def is_folder(self) -> bool:
        """Whether the model is on this machine."""
        return Path(self.model).is_dir()

    def name(self, sha256: str) -> str:
        """Return what people call the model: its name on the hub, or that of its folder and the start of its hash."""
        return f"{Path(self.model).resolve().name}-{sha256[:8]}" if self.is_folder else self.model

    def options(self) -> dict[str, Any]:
        """Return what every `from_pretrained` is told."""
        return {"revision": self.revision or "main", "trust_remote_code": False}


@attrs.frozen(kw_only=True, eq=False)
class LoadedWeights:
    """A model, and what it is called.

    Args:
        model: in evaluation mode, on its device and in its precision.
        name: what people call it.
        weights_sha256: hash of the weights as they are stored.
    """

    model: Any
    name: str
    weights_sha256: str


def transformers_package() -> ModuleType:
    """Return transformers.

    Raises:
        ImportError: if it is not installed; the message has the command that installs it.
    """
    with needed("a model of transformers", "transformers"):
        import transformers
    package: ModuleType = transformers
    return package


def read_dual_encoder(source: TransformersSource) -> Stored:
    """Return a dual encoder with what its model card says of texts and images, as one of the library's.

    CLIP and MetaCLIP 2 read a text as their tokenizer makes it. SigLIP and SigLIP 2 read it in lower case, without a
    start, with the end token behind it even where it was cut, and attend to the padding, as they were trained; their
    tokenizers alone say only a part of that. The bias of a sigmoid loss is left out: it is the same for all pairs.

    Raises:
        ValueError: if it cannot be loaded, weights are missing, it is of another kind, or its images are not square and
            of one size.
        ImportError: if transformers is missing.

    Source: Tschannen et al., "SigLIP 2", section 2.1: Gemma's tokenizer on texts in lower case, 64 ids. Zhai et al.,
        "Sigmoid Loss for Language Image Pre-Training". Chuang et al., "MetaCLIP 2: A Worldwide Scaling Recipe".
    """
    package = transformers_package()
    with _loading(source):
        config = package.AutoConfig.from_pretrained(source.model, **source.options())
    if config.model_type not in ("clip", "metaclip_2", "siglip"):
        raise ValueError(
            f"{source.model} is of the kind {config.model_type!r}; expected clip, metaclip_2 or siglip (SigLIP 2 of "
            "one size is of this kind too; its NaFlex models, which take pictures of any shape, are not)"
        )
    with _loading(source):
        tokenizer = package.AutoTokenizer.from_pretrained(source.model, **source.options())
        processor = package.AutoImageProcessor.from_pretrained(source.model, **source.options())
    model = load_weights(package.AutoModel, source, device="cpu", precision="float32").model
    whole, is_siglip = config.to_dict(), config.model_type == "siglip"
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"the tokenizer of {source.model} has no tokenizer.json, and cannot be read ({type(tokenizer).__name__}); "
            "SigLIP 1 is there as open_clip:ViT-B-16-SigLIP/webli"
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
    places = {
        "vision_model.": "image_encoder.tower.",
        "visual_projection.": "image_encoder.projection.",
        "text_model.": "text_encoder.tower.",
        "text_projection.": "text_encoder.projection.",
    }
    return stored_of(spec, model.state_dict(), places)


def _padded(tokenizer: Any, contract: TextInput) -> Callable[[list[str]], Tensor]:
    """Return how a tokenizer makes rows of ids by itself."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt", "padding_side": "right"}
    return lambda texts: tokenizer(texts, max_length=contract.context_length, **options)["input_ids"]


def _ended(tokenizer: Any, contract: TextInput) -> Callable[[list[str]], Tensor]:
    """Return how SigLIP's texts were made: in lower case, no start, an end even where they are cut."""

    def row(text: str) -> list[int]:
        ids = tokenizer(text.lower(), add_special_tokens=False)["input_ids"][: contract.context_length - 1]
        return [*ids, contract.end_id, *[contract.pad_id] * (contract.context_length - 1 - len(ids))]

    return lambda texts: torch.tensor([row(text) for text in texts])


def load_weights(kind: Any, source: TransformersSource, *, device: str, precision: WidePrecision) -> LoadedWeights:
    """Return a model with all of its weights, from safetensors alone.

    Args:
        kind: the class that loads it, such as `AutoModel`.
        source: which model.
        device: where to.
        precision: what the weights are cast to.

    Raises:
        ValueError: if it cannot be loaded, or weights are missing or of other shapes.
    """
    with _loading(source):
        model, told = kind.from_pretrained(
            source.model, dtype="auto", use_safetensors=True, output_loading_info=True, **source.options()
        )
    if lacking := sorted(map(str, (*told["missing_keys"], *told["mismatched_keys"]))):
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(
            f"{source.model} cannot be loaded: {', '.join(lacking[:3])}{more} would be random, for its file of weights "
            "lacks them or has them in other shapes"
        )
    own_numbers(model)
    sha256 = weights_sha256(model.state_dict())
    model.requires_grad_(requires_grad=False).eval().to(device=torch.device(device), dtype=dtype_of(precision))
    return LoadedWeights(model=model, name=source.name(sha256), weights_sha256=sha256)


def load_processor(source: TransformersSource) -> Any:
    """Return what makes a model's inputs of images and texts.

    Raises:
        ValueError: if it cannot be loaded.
    """
    with _loading(source):
        return transformers_package().AutoProcessor.from_pretrained(source.model, **source.options())


def image_input(processor: Mapping[str, Any], size: int, name: str) -> ImageInput:
    """Return transformers' description of an image transform as the image contract.

    Args:
        processor: an image processor as a dictionary.
        size: side of the model's input, in pixels.
        name: of the model, for messages.

    Raises:
        ValueError: if the contract cannot say it: another size than the model's, another filter, or another range.
    """
    is_cropped = bool(processor.get("do_center_crop"))
    sides = set(dict(processor["crop_size" if is_cropped else "size"]).values()) - {None}
    if sides != {size}:
        raise ValueError(f"{name} takes {size} x {size} pixels, and its images are prepared with {sorted(sides)}")
    if processor.get("resample") not in _FILTERS:
        raise ValueError(
            f"{name} resizes with filter {processor.get('resample')}; 2 (bilinear) or 3 (bicubic) is expected"
        )
    if not processor.get("do_rescale") or abs(processor.get("rescale_factor", 0) - _BYTE_SCALE) > 1e-6:
        raise ValueError(f"{name} does not scale pixels to the range from 0 to 1, which is not supported")
    stretches = not is_cropped and {"height", "width"} <= dict(processor["size"]).keys()
    fit: Fit = "stretch" if stretches else "crop"
    image = ImageInput(size=size, interpolation=_FILTERS[processor["resample"]], fit=fit)
    if not processor.get("do_normalize"):
        return image
    mean, std = (tuple(map(float, processor[key])) for key in ("image_mean", "image_std"))
    return attrs.evolve(image, mean=mean, std=std)


@contextmanager
def _loading(source: TransformersSource) -> Iterator[None]:
    """Load here, one thread after another, without bars and notes; whatever goes wrong is one kind of error."""
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
        raise ValueError(
            f"the tokenizer of {source.model} has no {what} token; give the files that came with the model"
        )
    return value
