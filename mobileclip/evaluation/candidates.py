"""Opens the models to evaluate from command-line arguments."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip.blocks import models
from mobileclip.data.images.transform import DECODER_VERSION
from mobileclip.encoders.checkpoints import PREFIX
from mobileclip.encoders.families import text_spec
from mobileclip.evaluation.results import published_with
from mobileclip.hardware import WidePrecision, dtype_of
from mobileclip.inference.catalogue import num_parameters
from mobileclip.inference.forms import ReadyDualEncoder, with_fast_layout
from mobileclip.inference.image_text_model import ImageTextModel as Clip
from mobileclip.inference.loading import device_for, load, require_model
from mobileclip.inputs import Interpolation
from mobileclip.reparam import is_folded, reparameterize
from mobileclip.serialization import to_json
from mobileclip.tensor_files.weights import weights_sha256

if TYPE_CHECKING:
    from mobileclip.encoders import DualEncoder

_ELSEWHERE = (PREFIX, "open_clip:", "transformers:")


@attrs.frozen(kw_only=True, eq=False)
class Candidate:
    """A model with its own preprocessing, ready for evaluation.

    Args:
        name: name of the model in tables.
        clip: the folded model, on its device.
        weights_sha256: SHA-256 hash of the weights before folding.
        num_parameters: number of parameters of both towers, before folding.
        published: name of the published model with comparable results; None if no published results are comparable.
    """

    name: str
    clip: Clip
    weights_sha256: str
    num_parameters: int
    published: str | None = None

    @property
    def input(self) -> str:
        """The input settings of the image and text towers, as JSON."""
        spec, others = self.clip.model.spec, [side.model.text_encoder for side in self.clip.text_sides[1:]]
        inputs = {"image": json.loads(to_json(spec.image.input)), "text": json.loads(to_json(spec.text.input))}
        if others:
            inputs["others"] = [json.loads(to_json(text_spec(one).input)) for one in others]
        return json.dumps(inputs, sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that embeddings depend on: the weights, the image reader and `input`."""
        return hashlib.sha256(f"{DECODER_VERSION} {self.weights_sha256} {self.input}".encode()).hexdigest()

    @property
    def reading(self) -> dict[str, int | str | None]:
        """Image size, resize filter, context length and precision, as recorded with each result."""
        about = json.loads(self.input)
        return {
            "image_size": self.clip.image_input.size,
            "interpolation": about.get("image", {}).get("interpolation"),
            "context_length": about.get("text", {}).get("context_length"),
            "precision": str(self.clip.model.logit_scale.dtype).removeprefix("torch."),
        }


@attrs.frozen(kw_only=True)
class ModelArgument:
    """A parsed model argument of the command line.

    Args:
        label: name of the model in tables; None to derive the name from the argument.
        model: a model name, `hf-hub:OWNER/NAME`, or a model of another package that starts with `open_clip:` or
            `transformers:`; None if the weights file states the model.
        file: weights file; None if the model name determines the weights.
        text: the argument as typed, without the label.
    """

    label: str | None
    model: str | None
    file: str | None
    text: str

    @property
    def name(self) -> str:
        """Name of the model in tables, without the parts that `open_candidate` appends."""
        if self.label is not None:
            return self.label
        if self.file is not None:
            return Path(self.file).stem
        scheme, colon, where = self.text.partition(":")
        if not colon:
            return self.text
        of_files = "=" in where or Path(where).is_dir()
        return f"{scheme}:{'='.join(Path(part).stem for part in where.split('='))}" if of_files else self.text

    @property
    def source(self) -> tuple[str | None, str | None]:
        """The model and checkpoint arguments for `mobileclip.load`."""
        return (self.model, self.file) if self.model else (self.file, None)


def parse_model_argument(text: str) -> ModelArgument:
    """Parse a model argument: `MODEL`, `FILE` or `NAME=FILE`, each with an optional `LABEL=` prefix.

    The text before the first `=` is a NAME if it is the name of a registered model; FILE then holds weights of this
    model. Otherwise, the text before `=` is a LABEL, the name of the model in tables.

    Raises:
        ValueError: if the part before or after the first `=` is empty.
    """
    before, equals, rest = text.partition("=")
    is_path = Path(text).exists() or any(mark in before for mark in ("/", os.sep, ":"))
    if not equals or is_path:
        is_file = not text.startswith(_ELSEWHERE) and text not in models
        return ModelArgument(label=None, model=None if is_file else text, file=text if is_file else None, text=text)
    if not before.strip() or not rest.strip():
        raise ValueError(f"{text!r} is not a model; write LABEL=FILE, or NAME=FILE with the name of a model")
    if before in models:
        return ModelArgument(label=None, model=before, file=rest, text=text)
    return attrs.evolve(parse_model_argument(rest), label=before.strip())


def require_candidates(texts: Sequence[str]) -> None:
    """Check, without reading or downloading files, that model names are known and occur once.

    Args:
        texts: model arguments of `open_candidate`.

    Raises:
        ValueError: if a name is unknown, a name occurs twice, or a model needs open_clip and open_clip is not
            installed.
        FileNotFoundError: if a weights file does not exist.
    """
    called: dict[str, str] = {}
    for text in texts:
        one = parse_model_argument(text)
        require_model(*one.source)
        if one.name in called:
            raise ValueError(
                f"two models would have the name {one.name!r} in the results: {called[one.name]} and {text}; give them "
                f"different names, such as first={called[one.name]} second={text}"
            )
        called[one.name] = text


def open_candidate(
    text: str,
    *,
    device: str = "cpu",
    precision: WidePrecision = "float32",
    image_size: int | None = None,
    context_length: int | None = None,
    interpolation: Interpolation | None = None,
    trust: bool = False,
    text_model: str | Path | None = None,
) -> Candidate:
    """Open the model that a command-line argument names.

    Args:
        text: a model name such as `mobileclip_s2`, whose published weights are downloaded once; a file of weights, in
            training form or folded; a folder with such a file or with an export; `hf-hub:OWNER/NAME`; `NAME=FILE` if
            the file does not state the model; or a model of another package: `open_clip:MODEL/TAG`,
            `open_clip:MODEL=FILE`, `open_clip:hf-hub:OWNER/NAME` or `transformers:OWNER/NAME`. An optional prefix
            `LABEL=` sets the name of the model in tables.
        device: device that runs the model, such as `cuda`; `auto` for the best available device.
        precision: dtype of the weights, `float32` or `bfloat16`.
        image_size: side of the images in pixels; None for the model's own size.
        context_length: number of token ids per text, at most the model's own; None for the model's own.
        interpolation: filter for resizing images; None for the model's own filter. If set, the filter is part of the
            name of the model in tables.
        trust: whether to open an export that could run code on this machine; see `mobileclip.load`.
        text_model: file or folder of a text tower that replaces the model's own, see `mobileclip.load`; None for the
            model's own text tower. If set, the tower is part of the name of the model in tables.

    Raises:
        ValueError: if the model is unknown, does not support the image size or context length, or needs open_clip and
            open_clip is not installed, or if the weights do not match the model; see `mobileclip.load`.
        FileNotFoundError: if the weights file does not exist.
    """
    one = parse_model_argument(text)
    place = candidate_device(text, device)
    is_other_size = (image_size, context_length) != (None, None)
    clip = load(
        *one.source,
        fold=False,
        dtype=dtype_of(precision),
        device=place,
        image_size=image_size,
        context_length=context_length,
        interpolation=interpolation,
        trust=trust,
        text_model=text_model,
    )
    name = one.name if text_model is None else f"{one.name} with {_name_of(text_model)}"
    is_other = is_other_size or text_model is not None
    published = None if is_other else published_with(one.model, interpolation)
    return _of_clip(clip, name=name if interpolation is None else f"{name} ({interpolation})", published=published)


def _name_of(tower: str | Path) -> str:
    """Return the name of a text tower in tables: the file name, or the folder name if the file is named `model`."""
    path = Path(tower)
    return path.parent.name or path.stem if path.stem == "model" else path.stem


def candidate_device(text: str, device: str) -> str:
    """Return the device that runs a model; see `device_for`.

    Args:
        text: a model argument of `open_candidate`.
        device: name of a device, or `auto`.

    Raises:
        ValueError: if the device does not exist.
    """
    one = parse_model_argument(text)
    return device_for(one.model, one.file, device)


def candidate_of(model: DualEncoder | Clip, *, name: str) -> Candidate:
    """Return a candidate for a model of this library, such as a model in training; the model stays unchanged.

    Args:
        model: a dual encoder, folded or not, or a model returned by `mobileclip.load`.
        name: name of the model in tables.
    """
    if isinstance(model, Clip):
        return _of_clip(model, name=name)
    return attrs.evolve(_of_clip(Clip.of(model), name=name), weights_sha256=weights_sha256(model.state_dict()))


def _of_clip(clip: Clip, *, name: str, published: str | None = None) -> Candidate:
    model, others = clip.model, [side.model.text_encoder for side in clip.text_sides[1:]]
    state = model.state_dict()
    for number, one in enumerate(others, 1):
        state |= {f"text_encoder_{number}.{part}": weight for part, weight in one.state_dict().items()}
    # The towers of an export have no PyTorch parameters to count.
    if isinstance(model, ReadyDualEncoder):
        count = num_parameters(model.spec.image) + num_parameters(model.spec.text)
    else:
        count = sum(map(_num_parameters, (model, *others)))
    return Candidate(
        name=name,
        clip=_folded(clip),
        weights_sha256=weights_sha256(state),
        num_parameters=count,
        published=published,
    )


def _folded(clip: Clip) -> Clip:
    """Return the model if it is folded or an export; otherwise return a folded copy in the fastest memory layout."""
    if isinstance(clip.model, ReadyDualEncoder) or is_folded(clip.model):
        return clip
    towers = tuple(reparameterize(side.model.text_encoder) for side in clip.text_sides[1:])
    return Clip(
        with_fast_layout(reparameterize(clip.model)),
        num_threads=clip.num_threads,
        text_towers=towers,
        decode=clip.decode,
    )


def _num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
