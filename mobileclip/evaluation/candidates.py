"""Models to evaluate, as people name them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip.blocks import models
from mobileclip.data.images.transform import READING
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
    """A model with its own preprocessing, ready to be evaluated.

    Args:
        name: what tables call it.
        clip: folded, on its device.
        weights_sha256: hash of the weights, before folding.
        num_parameters: number of parameters of both towers, before folding.
        published: the published model whose architecture and preprocessing it has; None where nothing says so.
    """

    name: str
    clip: Clip
    weights_sha256: str
    num_parameters: int
    published: str | None = None

    @property
    def input(self) -> str:
        """The contract of the towers with their inputs, as JSON."""
        spec, others = self.clip.model.spec, [side.model.text_encoder for side in self.clip.text_sides[1:]]
        inputs = {"image": json.loads(to_json(spec.image.input)), "text": json.loads(to_json(spec.text.input))}
        if others:
            inputs["others"] = [json.loads(to_json(text_spec(one).input)) for one in others]
        return json.dumps(inputs, sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """What embeddings depend on: a hash of the weights, of how pictures are read, and of both input contracts."""
        return hashlib.sha256(f"{READING} {self.weights_sha256} {self.input}".encode()).hexdigest()

    @property
    def reading(self) -> dict[str, int | str | None]:
        """How pictures and texts are read, as lines of results say it: size, filter, context length, precision."""
        about = json.loads(self.input)
        return {
            "image_size": self.clip.image_input.size,
            "interpolation": about.get("image", {}).get("interpolation"),
            "context_length": about.get("text", {}).get("context_length"),
            "precision": str(self.clip.model.logit_scale.dtype).removeprefix("torch."),
        }


@attrs.frozen(kw_only=True)
class Asked:
    """A model argument of the command line, parsed.

    Args:
        label: what tables are to call it; None for what it is called by itself.
        model: a name, `hf-hub:OWNER/NAME`, or the model of open_clip behind `open_clip:`; None where a file says it.
        file: of weights; None where the name says where they are.
        text: all that was typed, without the label.
    """

    label: str | None
    model: str | None
    file: str | None
    text: str

    @property
    def name(self) -> str:
        """The name in tables, as far as it is known before the model is opened."""
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
        """The model and the checkpoint, as `mobileclip.load` takes them."""
        return (self.model, self.file) if self.model else (self.file, None)


def asked(text: str) -> Asked:
    """Return the parsed model argument: `MODEL`, `FILE` or `NAME=FILE`, each optionally behind `LABEL=`.

    What stands before the first `=` is a NAME, which says what a file holds, where a model is known by it; and a LABEL
    otherwise, which is what tables call the model.

    Raises:
        ValueError: if a label or what is behind it is missing.
    """
    before, equals, rest = text.partition("=")
    is_path = Path(text).exists() or any(mark in before for mark in ("/", os.sep, ":"))
    if not equals or is_path:
        is_file = not text.startswith(_ELSEWHERE) and text not in models
        return Asked(label=None, model=None if is_file else text, file=text if is_file else None, text=text)
    if not before.strip() or not rest.strip():
        raise ValueError(f"{text!r} is no model: write LABEL=FILE, or NAME=FILE with the name of a model")
    if before in models:
        return Asked(label=None, model=before, file=rest, text=text)
    return attrs.evolve(asked(rest), label=before.strip())


def require_candidates(texts: Sequence[str]) -> None:
    """Raise if a model cannot be opened by its name, or two have one name; nothing is read or fetched.

    Args:
        texts: as `open_candidate` takes them.

    Raises:
        ValueError: if a name is unknown, one comes twice, or open_clip is needed and not installed.
        FileNotFoundError: if there is no such file.
    """
    called: dict[str, str] = {}
    for text in texts:
        one = asked(text)
        require_model(*one.source)
        if one.name in called:
            raise ValueError(
                f"two models would be called {one.name!r} in the results: {called[one.name]} and {text}; give them "
                f"names, as LABEL=FILE: first={called[one.name]} second={text}"
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
    """Return the model that a person means.

    Args:
        text: a name, whose published weights are fetched once (`mobileclip_s2`); a file of weights, training form or
            folded, a folder with one or with an export, or `hf-hub:OWNER/NAME`; `NAME=FILE`, where a file does not say
            what it holds; or a model of another package, as `open_clip:MODEL/TAG`, `open_clip:MODEL=FILE`,
            `open_clip:hf-hub:OWNER/NAME` or `transformers:OWNER/NAME`. Before any of them, `LABEL=` says what tables
            call it.
        device: where it computes, such as `cuda`; `auto` for the best that is here.
        precision: precision of its weights.
        image_size: side of the images, in pixels, where not the model's own.
        context_length: ids per text, where fewer than the model's own.
        interpolation: filter that resizes pictures, which the model's name in tables then ends with; None for the
            model's own.
        trust: whether to open an export that may run code here; see `mobileclip.load`.
        text_model: a text tower in place of the model's own, whose name that in tables then ends with; see
            `mobileclip.load`.

    Raises:
        ValueError: if the model is unknown, it cannot have that size, or the weights do not fit it; see
            `mobileclip.load`. If open_clip is needed and not installed; the message says how to install it.
        FileNotFoundError: if there is no such file.
    """
    one = asked(text)
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
    """Return what tables call a text tower: its file, or the folder of a run that left it."""
    path = Path(tower)
    return path.parent.name or path.stem if path.stem == "model" else path.stem


def candidate_device(text: str, device: str) -> str:
    """Return where a model that a person asks for computes; see `device_for`.

    Args:
        text: as `open_candidate` takes it.
        device: a name, or `auto`.

    Raises:
        ValueError: if there is no such device.
    """
    one = asked(text)
    return device_for(one.model, one.file, device)


def candidate_of(model: DualEncoder | Clip, *, name: str) -> Candidate:
    """Return a model of the library as a candidate, such as one that is being trained; it is taken as it is.

    Args:
        model: a dual encoder, folded or not, or a model that `mobileclip.load` returned.
        name: what tables call it.
    """
    if isinstance(model, Clip):
        return _of_clip(model, name=name)
    return attrs.evolve(_of_clip(Clip.of(model), name=name), weights_sha256=weights_sha256(model.state_dict()))


def _of_clip(clip: Clip, *, name: str, published: str | None = None) -> Candidate:
    model, others = clip.model, [side.model.text_encoder for side in clip.text_sides[1:]]
    state = model.state_dict()
    for number, one in enumerate(others, 1):
        state |= {f"text_encoder_{number}.{part}": weight for part, weight in one.state_dict().items()}
    # The towers of an export have none that PyTorch knows.
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
    """Return a model as it encodes fastest; a copy where that is another form."""
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
