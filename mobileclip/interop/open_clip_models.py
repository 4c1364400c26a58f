"""Loads open_clip models with exactly the requested weights, and with their preprocessing and tokenizer."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, cast

import attrs
import torch
from attrs import validators
from torch import Tensor

from mobileclip.encoders import CoCa, CoCaSpec, DualEncoderSpec, OpenClipImageSpec, OpenClipTextSpec, ViTSpec
from mobileclip.encoders.checkpoints import LoadedCheckpoint, read_checkpoint
from mobileclip.encoders.checkpoints.layouts import layouts
from mobileclip.extras import needed
from mobileclip.inputs import Fit, ImageInput, TextInput
from mobileclip.interop.foreign import checked, stored_of, text_input_of
from mobileclip.registry import nearest
from mobileclip.strict import parse_json
from mobileclip.tensor_files import read_tensors
from mobileclip.tensor_files.weights import weights_sha256

_SCHEMES = ("hf-hub:", "local-dir:")
_LOADING_ERRORS = (RuntimeError, OSError, ValueError, KeyError, TypeError, pickle.UnpicklingError)


@attrs.frozen(kw_only=True)
class OpenClipSource:
    """The architecture and the weights of an open_clip model.

    Args:
        model: name of a model in open_clip, such as `ViT-L-14`; `hf-hub:OWNER/NAME` or `local-dir:PATH`, which include
            weights; or the path of an architecture's JSON file, with open_clip's `embed_dim`, `vision_cfg` and
            `text_cfg` at the top level, or under `model_cfg` next to a `preprocess_cfg`.
        pretrained: open_clip's tag for the model's weights, such as `openai`, or the path of a weights file; None if
            the model includes weights.

    Raises:
        ValueError: if there is no source of weights, or more than one.
    """

    model: str = attrs.field(validator=validators.min_len(1))
    pretrained: str | None

    def __attrs_post_init__(self) -> None:
        if self.model.startswith(_SCHEMES):
            if self.pretrained is not None:
                raise ValueError(
                    f"{self.model} includes weights, so pretrained={self.pretrained!r} would be ignored; set "
                    "pretrained to None"
                )
        elif not self.pretrained:
            raise ValueError(f"pretrained weights for {self.model} are missing; {_known_tags(self.model)}")

    @property
    def is_config(self) -> bool:
        """Whether `model` is the path of an architecture's JSON file."""
        return self.model.endswith(".json")

    def name(self, sha256: str) -> str:
        """Return the display name: the published name, or the names of the files and the start of the hash."""
        if self.pretrained is None:
            if self.model.startswith("hf-hub:"):
                return self.model
            return f"{Path(self.model.removeprefix('local-dir:')).name}-{sha256[:8]}"
        if not (self.is_config or Path(self.pretrained).is_file()):
            return f"{self.model}/{self.pretrained}"
        model = Path(self.model).stem if self.is_config else self.model
        weights = Path(self.pretrained).stem
        return f"{model}-{sha256[:8]}" if model == weights else f"{model}/{weights}-{sha256[:8]}"


@attrs.frozen(kw_only=True, eq=False)
class OpenClipModel:
    """A loaded model with its configuration, preprocessing and tokenizer.

    Args:
        model: model in evaluation mode.
        name: display name, see `OpenClipSource.name`.
        config: open_clip's configuration of the architecture.
        preprocess: open_clip's configuration of the image transform.
        tokenizer: function from texts to ids.
        weights_sha256: SHA-256 of the loaded float32 weights.
        quick_gelu: whether the model's layers use QuickGELU.
    """

    model: Any
    name: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    tokenizer: Callable[[Sequence[str]], Tensor]
    weights_sha256: str
    quick_gelu: bool = False


def open_clip_package() -> ModuleType:
    """Import and return the package `open_clip`.

    Raises:
        ImportError: if open_clip is not installed; the message contains the install command.
    """
    with needed("a model of open_clip", "teachers"):
        import open_clip  # type: ignore[import-untyped]
    package: ModuleType = open_clip
    return package


def load_open_clip(source: OpenClipSource) -> OpenClipModel:
    """Return a model with pretrained weights for every parameter, in float32 on the CPU.

    Raises:
        ImportError: if open_clip is not installed.
        ValueError: if open_clip does not have the model or the tag, or a weight is missing or has a different shape;
            the function does not interpolate position embeddings.
    """
    from safetensors import SafetensorError

    open_clip = open_clip_package()
    with _known_to_open_clip(source) as (model, pretrained):
        quick_gelu = _quick_gelu(model, pretrained)
        try:
            positions = _positions(source.pretrained)
            loaded = open_clip.create_model(
                model, pretrained, force_quick_gelu=quick_gelu, require_pretrained=True, weights_only=True
            )
            _require_positions(loaded, positions)
        except (*_LOADING_ERRORS, SafetensorError) as error:
            raise ValueError(f"{_spoken(source)} cannot be loaded: {error}") from error
        config = open_clip.get_model_config(model)
        tokenizer = _tokenizer(source, model, config)
    sha256 = weights_sha256(loaded.state_dict())
    preprocess = loaded.visual.preprocess_cfg
    return OpenClipModel(
        model=loaded.requires_grad_(requires_grad=False).eval().float(),
        name=source.name(sha256),
        config=config,
        preprocess=preprocess,
        tokenizer=tokenizer,
        weights_sha256=sha256,
        quick_gelu=quick_gelu or bool(config.get("quick_gelu", False)),
    )


def read_open_clip(source: OpenClipSource) -> LoadedCheckpoint:
    """Convert an open_clip image-text model, with its preprocessing and tokenizer, to a model of this library.

    Raises:
        ImportError: if open_clip is not installed.
        ValueError: if open_clip does not have the model or the tag, the weights do not fit, or the model is not an
            image-text model.
    """
    open_clip, name = open_clip_package(), _spoken(source)
    opened = load_open_clip(source)
    loaded, config = opened.model, opened.config
    if not isinstance(loaded, (open_clip.CLIP, open_clip.CustomTextCLIP)):
        raise ValueError(
            f"{name} is a {type(loaded).__name__}, but an image-text model has exactly two towers; to write captions "
            "with a CoCa, see mobileclip.reinforce.CocaCaptioner"
        )
    if "naflex" in str(config["vision_cfg"].get("timm_model_name", "")).lower():
        raise ValueError(
            f"{name} is a NaFlex model, which accepts images of any shape; use a model with a fixed image size"
        )
    quick = {"quick_gelu": True} if opened.quick_gelu else {}
    spec = DualEncoderSpec(
        image=OpenClipImageSpec(
            embedding_dim=config["embed_dim"],
            input=image_input(opened.preprocess, name),
            config=_json({**config["vision_cfg"], **quick}),
        ),
        text=OpenClipTextSpec(
            embedding_dim=config["embed_dim"],
            input=_text_input(config["text_cfg"], opened.tokenizer, loaded),
            config=_json({**config["text_cfg"], "hf_model_pretrained": False, **quick}),
        ),
    )
    weights = open_clip.model.convert_to_custom_text_state_dict(loaded.state_dict())
    return stored_of(spec, weights, {"visual.": "image_encoder.tower.", "text.": "text_encoder.tower."})


def coca_of(opened: OpenClipModel) -> CoCa:
    """Convert open_clip's CoCa to a model of this library, in float32 on the CPU.

    Raises:
        ValueError: if the model is not a CoCa, or the converted model returns different logits.
    """
    theirs, name = opened.model, opened.name
    if not isinstance(theirs, open_clip_package().CoCa):
        raise ValueError(f"{name} is not a CoCa, so it cannot write captions")
    state = theirs.state_dict()
    try:
        spec = layouts["open_clip_coca"].spec_of(state)
        assert isinstance(spec, CoCaSpec) and isinstance(spec.image, ViTSpec), "it is a CoCa"  # noqa: PT018
        # Numbers of heads, which the shapes do not determine.
        image, text, decoder, pooler = (
            part.attn.num_heads
            for part in (
                theirs.visual.transformer.resblocks[0],
                theirs.text.transformer.resblocks[0],
                theirs.text_decoder.resblocks[0],
                theirs.visual.attn_pool,
            )
        )
        words = _text_input(opened.config["text_cfg"], opened.tokenizer, theirs)
        spec = attrs.evolve(
            spec,
            image=attrs.evolve(spec.image, num_heads=image, input=image_input(opened.preprocess, name)),
            text=attrs.evolve(spec.text, num_heads=text, input=words),
            decoder_heads=decoder,
            pooler_heads=pooler,
        )
        ours = cast("CoCa", read_checkpoint(state, spec).build())
        size, ids = spec.image.input.size, torch.arange(1, 9)[None]
        pixels = torch.linspace(-2, 2, 3 * size * size).reshape(1, 3, size, size)
        with torch.inference_mode():
            found, expected = ours(pixels, ids).logits, theirs(pixels, ids, output_labels=False)["logits"][:, :-1]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    except (ValueError, RuntimeError, KeyError, AttributeError, AssertionError) as error:
        raise ValueError(f"{name} is a CoCa, but its architecture differs from coca_ViT-L-14: {error}") from error
    return ours


def open_clip_source(text: str) -> OpenClipSource:
    """Parse `MODEL/TAG`, `MODEL=FILE` or `hf-hub:OWNER/NAME`, and check the names without downloading.

    Raises:
        ImportError: if open_clip is not installed.
        ValueError: if open_clip does not have the model or the tag.
        FileNotFoundError: if the weights file does not exist.
    """
    if text.startswith(_SCHEMES):
        return OpenClipSource(model=text, pretrained=None)
    model, _, weights = text.partition("=" if "=" in text else "/")
    source = OpenClipSource(model=model, pretrained=weights or None)
    if "=" in text and not Path(weights).is_file():
        raise FileNotFoundError(f"there is no weights file {weights} for {model}")
    if not source.is_config:
        require_known(model)
    if "=" not in text and weights not in (tags := _tags(model)):
        raise ValueError(
            f"open_clip has no weights {weights!r} for {model}; known tags: {', '.join(tags) or 'none'}; for a weights "
            f"file, write {model}=FILE"
        )
    return source


def _text_input(config: Mapping[str, Any], tokenizer: Any, loaded: Any) -> TextInput:
    """Convert open_clip's tokenizer to a text input."""
    length = loaded.context_length
    vocab_size = loaded.vocab_size if hasattr(loaded, "vocab_size") else loaded.text.vocab_size
    clean = config.get("tokenizer_kwargs", {}).get("clean", "whitespace")
    if not config.get("hf_tokenizer_name"):
        return checked(TextInput(context_length=length, vocab_size=vocab_size), tokenizer)
    inner = tokenizer.inner.tokenizer
    content = inner.backend_tokenizer.to_str()
    return checked(text_input_of(content, context_length=length, vocab_size=vocab_size, clean=clean), tokenizer)


def image_input(preprocess: Mapping[str, Any], name: str) -> ImageInput:
    """Convert open_clip's image transform to an image input.

    Args:
        preprocess: open_clip's configuration, with `size`, `mean`, `std` and `interpolation`.
        name: name of the model, for messages.

    Raises:
        ValueError: if the input is not square, the resize mode is neither `shortest` nor `squash`, or the filter is
            neither `bilinear` nor `bicubic`.
    """
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    if height != width:
        raise ValueError(f"{name} needs images of {width} x {height} pixels, but only square images are supported")
    fits: dict[str, Fit] = {"shortest": "crop", "squash": "stretch"}
    fit = fits.get(preprocess.get("resize_mode", "shortest"))
    if fit is None:
        raise ValueError(
            f"{name} uses the resize mode {preprocess['resize_mode']!r}; only 'shortest' and 'squash' are supported"
        )
    if preprocess["interpolation"] not in {"bilinear", "bicubic"}:
        raise ValueError(
            f"{name} resizes with the filter {preprocess['interpolation']!r}; only bilinear and bicubic are supported"
        )
    mean, std = (tuple(map(float, preprocess[key])) for key in ("mean", "std"))
    return ImageInput(size=height, interpolation=preprocess["interpolation"], mean=mean, std=std, fit=fit)


def require_known(model: str) -> None:
    """Check that open_clip has a model of this name.

    Raises:
        ValueError: if open_clip has no model of this name; the message suggests similar names.
    """
    known = open_clip_package().list_models()
    if model not in known:
        hint = nearest(model, known, otherwise="open_clip.list_models() lists the known names")
        raise ValueError(f"open_clip has no model {model!r}; {hint}")


@contextmanager
def _known_to_open_clip(source: OpenClipSource) -> Iterator[tuple[str, str | None]]:
    """Yield the model and weights under names that open_clip accepts."""
    if source.is_config:
        with tempfile.TemporaryDirectory() as directory:
            _lay_out(source, Path(directory))
            yield f"local-dir:{directory}", None
        return
    if source.pretrained is not None:
        require_known(source.model)
        tags = _tags(source.model)
        if source.pretrained not in tags and not Path(source.pretrained).is_file():
            raise ValueError(
                f"{source.pretrained!r} is neither a file nor a tag of pretrained weights for {source.model}; "
                f"{_known_tags(source.model)}"
            )
    yield source.model, source.pretrained


def _tokenizer(source: OpenClipSource, model: str, config: Mapping[str, Any]) -> Callable[[Sequence[str]], Tensor]:
    """Return a model's tokenizer, with a lock if it is a Hugging Face tokenizer."""
    open_clip = open_clip_package()
    text = config["text_cfg"]
    named = text.get("hf_tokenizer_name")
    if not named:
        return _of_clip(text.get("context_length"), json.dumps(text.get("tokenizer_kwargs", {}), sort_keys=True))
    if not source.is_config:
        return _OneAtATime(open_clip.get_tokenizer(model))
    # A folder next to the architecture's file, or a name on the hub.
    beside = Path(source.model).parent / named
    options = {"context_length": text.get("context_length", 77), "tokenizer_mode": text.get("tokenizer_mode")}
    place = str(beside) if beside.is_dir() else named
    try:
        return _OneAtATime(open_clip.tokenizer.HFTokenizer(place, **options, **text.get("tokenizer_kwargs", {})))
    except _LOADING_ERRORS as error:
        raise ValueError(f"the tokenizer {named} of {source.model} cannot be loaded: {error}") from error


@lru_cache(maxsize=8)
def _of_clip(context_length: int | None, options: str) -> Callable[[Sequence[str]], Tensor]:
    """Return open_clip's CLIP BPE tokenizer, which models share because building a tokenizer is slow.

    Args:
        context_length: number of ids per row; None for CLIP's 77.
        options: further arguments of the tokenizer, as JSON.
    """
    module = open_clip_package().tokenizer
    length = module.DEFAULT_CONTEXT_LENGTH if context_length is None else context_length
    tokenizer: Callable[[Sequence[str]], Tensor] = module.SimpleTokenizer(context_length=length, **json.loads(options))
    return tokenizer


class _OneAtATime:
    """A tokenizer with a lock: a Hugging Face tokenizer fails if another thread changes its padding during a call."""

    def __init__(self, tokenizer: Callable[[Sequence[str]], Tensor]) -> None:
        self.inner = tokenizer
        self._lock = Lock()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        with self._lock:
            return self.inner(texts)


def _lay_out(source: OpenClipSource, directory: Path) -> None:
    """Write an architecture and its weights to a folder that open_clip can load, for models unknown to open_clip."""
    weights = Path(str(source.pretrained)).resolve()
    for path in (Path(source.model), weights):
        if not path.is_file():
            raise ValueError(f"{path} does not exist; a model given by its JSON file also needs a weights file")
    try:
        config = parse_json(Path(source.model).read_bytes())
    except ValueError as error:
        raise ValueError(f"{source.model} is not a JSON file: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg", {}), dict):
        raise ValueError(f"{source.model} is not the configuration of an open_clip model: expected a JSON object")
    whole = config if "model_cfg" in config else {"model_cfg": config}
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - whole["model_cfg"].keys():
        raise ValueError(
            f"{source.model} is not the configuration of an open_clip model: {', '.join(sorted(missing))} missing"
        )
    (directory / "open_clip_config.json").write_text(json.dumps(whole), encoding="utf-8")
    suffix = ".safetensors" if weights.suffix == ".safetensors" else ".pth"
    place = directory / f"open_clip_model{suffix}"
    try:
        place.symlink_to(weights)
    except OSError:  # if links need a privilege
        shutil.copyfile(weights, place)


def _quick_gelu(model: str, pretrained: str | None) -> bool:
    """Return whether the weights need QuickGELU although the architecture does not use it.

    If weights and architecture disagree, open_clip only warns, and computes with the wrong activation.
    """
    if pretrained is None:
        return False
    tag = open_clip_package().get_pretrained_cfg(model, pretrained)
    if not tag:
        return False
    wanted = bool(tag.get("quick_gelu", False))
    if not wanted and open_clip_package().get_model_config(model).get("quick_gelu", False):
        raise ValueError(
            f"{pretrained} was trained without QuickGELU, but {model} has QuickGELU; choose the model without QuickGELU"
        )
    return wanted


def _positions(pretrained: str | None) -> dict[str, torch.Size]:
    """Return the shapes of position embeddings in a weights file, read with this library's checks of files."""
    if pretrained is None or not Path(pretrained).is_file() or Path(pretrained).suffix in (".npz", ".npy"):
        return {}  # only open_clip reads NumPy's files
    tensors, _ = read_tensors(Path(pretrained))
    return {name: tensor.shape for name, tensor in tensors.items() if name.endswith("positional_embedding")}


def _require_positions(model: Any, stored: Mapping[str, torch.Size]) -> None:
    """Raise unless file and model have equal position shapes; open_clip would silently interpolate the embeddings."""
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for theirs, shape in stored.items():
        name = theirs.removeprefix("module.")
        wanted = own.get(name, own.get(f"text.{name}", shape))
        if shape != wanted:
            raise ValueError(
                f"{name} has the shape {tuple(shape)} in the file, but {tuple(wanted)} in the model; choose the "
                "architecture with which the file was trained"
            )


def _tags(model: str) -> list[str]:
    return list(open_clip_package().list_pretrained_tags_by_model(model))


def _known_tags(model: str) -> str:
    tags = [] if model.endswith(".json") else _tags(model)
    known = f"its tags are {', '.join(tags)}; or pass" if tags else "pass"
    return f"{known} the path of a weights file"


def _spoken(source: OpenClipSource) -> str:
    return source.model if source.pretrained is None else f"{source.model} with the weights {source.pretrained}"


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)
