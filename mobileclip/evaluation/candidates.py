"""Models to evaluate: ours by name or from a file, and open_clip's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from mobileclip.evaluation.embedding import ImageTextModel, Tokenize
from mobileclip.evaluation.features import Transform
from mobileclip.evaluation.published import published_models
from mobileclip.weights import PRECISIONS, Precision, weights_sha256

if TYPE_CHECKING:
    from mobileclip.encoders import DualEncoder

_OPEN_CLIP = "open_clip:"


@attrs.frozen(kw_only=True, eq=False)
class Candidate:
    """A model with its own preprocessing, ready to be evaluated.

    Args:
        name: what tables call it.
        model: in evaluation mode, on its device.
        transform: from a picture to the model's input.
        tokenize: from texts to the model's ids.
        input: the contract of both towers with their inputs, as JSON.
        weights_sha256: hash of the weights, before folding.
        num_parameters: of both towers, before folding.
        image_size: side of the images that it takes, in pixels.
        published: the published model whose architecture and preprocessing it has; None where nothing says so.
    """

    name: str
    model: ImageTextModel
    transform: Transform
    tokenize: Tokenize
    input: str
    weights_sha256: str
    num_parameters: int
    image_size: int
    published: str | None = None

    @property
    def fingerprint(self) -> str:
        """What embeddings depend on: a hash of the weights and of what is done to images and texts."""
        return hashlib.sha256(f"{self.weights_sha256} {self.input}".encode()).hexdigest()


def open_candidate(text: str, *, device: str = "cpu", precision: Precision = "float32") -> Candidate:
    """Return the model that a person means.

    Args:
        text: a name, whose published weights are fetched once (`mobileclip_s2`); a file of weights, or
            `hf-hub:OWNER/NAME`; `NAME=FILE`, where a file does not say what it holds; or a model of open_clip, as
            `open_clip:MODEL/TAG`, `open_clip:MODEL=FILE` or `open_clip:hf-hub:OWNER/NAME`.
        device: where it computes, such as `cuda`.
        precision: of its weights.

    Raises:
        ValueError: if the model is unknown, or the weights do not fit it; see `mobileclip.load`. If open_clip is needed
            and not installed; the message says how to install it.
        FileNotFoundError: if there is no such file.
    """
    if text.startswith(_OPEN_CLIP):
        return _open_clip(text.removeprefix(_OPEN_CLIP), device, precision)
    from mobileclip.pipeline import load

    name, _, file = text.partition("=") if not Path(text).exists() else (text, "", "")
    clip = load(name, file or None, fold=False, dtype=PRECISIONS[precision], device=device)
    known = Path(name).name if Path(name).is_file() else name
    return _ours(
        clip.model,
        name=Path(file).stem if file else Path(known).stem if Path(name).is_file() else known,
        transform=clip.transform,
        tokenize=clip.tokenizer,
        published=name if name in published_models() else None,
    )


def candidate_of(model: DualEncoder, *, name: str) -> Candidate:
    """Return a model of ours as a candidate, such as one that is being trained; it is taken as it is.

    Args:
        model: a dual encoder, folded or not.
        name: what tables call it.
    """
    from mobileclip.data import ImageTransform, Tokenizer

    return _ours(
        model,
        name=name,
        transform=ImageTransform(model.spec.image.input),
        tokenize=Tokenizer(model.spec.text.input),
        published=None,
    )


def _ours(
    model: DualEncoder, *, name: str, transform: Transform, tokenize: Tokenize, published: str | None
) -> Candidate:
    spec = model.spec
    return Candidate(
        name=name,
        model=model,
        transform=transform,
        tokenize=tokenize,
        input=_json({"image": attrs.asdict(spec.image.input), "text": attrs.asdict(spec.text.input)}),
        weights_sha256=weights_sha256(model.state_dict()),
        num_parameters=_num_parameters(model),
        image_size=spec.image.input.size,
        published=published,
    )


def _open_clip(text: str, device: str, precision: Precision) -> Candidate:
    from mobileclip.open_clip_models import OpenClipSource, image_input, load_open_clip, open_clip_package

    open_clip_package()
    from open_clip.transform import PreprocessCfg, image_transform_v2  # type: ignore[import-untyped]

    if text.startswith(("hf-hub:", "local-dir:")):
        source = OpenClipSource(model=text, pretrained=None)
    else:
        model, _, weights = text.partition("=" if "=" in text else "/")
        source = OpenClipSource(model=model, pretrained=weights or None)
    loaded = load_open_clip(source, device=device, precision=precision)
    return Candidate(
        name=f"open_clip {loaded.name}",
        model=loaded.model,
        transform=image_transform_v2(PreprocessCfg(**loaded.preprocess), is_train=False),
        tokenize=_listed(loaded.tokenizer),
        input=_json({"image": dict(loaded.preprocess), "text": loaded.config["text_cfg"]}),
        weights_sha256=loaded.weights_sha256,
        num_parameters=_num_parameters(loaded.model),
        image_size=image_input(loaded.preprocess, loaded.name).size,
    )


def _listed(tokenizer: Any) -> Tokenize:
    def tokenize(texts: list[str]) -> torch.Tensor:
        ids: torch.Tensor = tokenizer(list(texts))
        return ids

    return tokenize


def _num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
