"""A model as a folder: weights with the spec inside, what open_clip or timm needs to load them, and a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import attrs
from torch import nn

from mobileclip import storage
from mobileclip.encoders import ClassifierSpec, DualEncoderSpec, ImageEncoderSpec, save_model
from mobileclip.encoders.checkpoints import ModelSpec
from mobileclip.encoders.checkpoints.layouts import Form, form_of
from mobileclip.encoders.checkpoints.published import OPEN_CLIP
from mobileclip.encoders.checkpoints.saving import NATIVE, tokenizer_of
from mobileclip.interop.card import Result, model_card
from mobileclip.interop.open_clip import open_clip_config
from mobileclip.interop.timm import timm_config
from mobileclip.interop.transformers_folder import TRANSFORMERS, transformers_files

CARD, TOKENIZER = "README.md", "tokenizer.json"
_WEIGHTS = {**dict.fromkeys(("mobileclip", "timm", "transformers"), "model.safetensors"), "open_clip": OPEN_CLIP}
_CONFIGS = {"open_clip": "open_clip_config.json", "timm": "config.json"}
WEIGHTS = tuple(sorted(set(_WEIGHTS.values())))
"""What the file of weights in a folder may be called."""
FILES = tuple(sorted({CARD, TOKENIZER, *WEIGHTS, *_CONFIGS.values(), *TRANSFORMERS}))
"""Every file that a folder may hold."""

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,59}")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@attrs.frozen(kw_only=True)
class Layout:
    """The layout of a model folder, and the libraries that can load it.

    Args:
        name: of the layout of its weights.
        config: what the library needs that the layout is of; None where that is this one.
        why_not: why neither open_clip nor timm can load it; None where one can.
        transformers: files beside the weights for transformers; none where it cannot load it.
        why_not_transformers: why it cannot load an image-text model; None where it can, and for other models.
    """

    name: str
    config: Mapping[str, Any] | None = None
    why_not: str | None = None
    transformers: Mapping[str, str] = attrs.field(factory=dict)
    why_not_transformers: str | None = None


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    license: str = "",  # noqa: A002 - the hub's name
    repository: str | None = None,
    base_model: str | None = None,
    results: Sequence[Result] = (),
    library: Literal["transformers"] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model to a folder that this library loads, and other libraries where they can build it.

    A dual encoder is written in open_clip's layout with its `open_clip_config.json`, and in transformers' with its
    configurations (`VisionTextDualEncoderModel`; sentence-transformers loads it too), as far as these build such a
    model; an image tower or a classifier in timm's with its `config.json`; any other model in our own. A folded model
    is always in our own, since the others build the training form. Each file of weights has the spec inside. A
    tokenizer of the model's own is there as `tokenizer.json` too, and `README.md` is a model card. The folder appears
    whole or not at all.

    Args:
        model: a dual encoder, a tower or a classifier, in training form or folded.
        folder: where to.
        license: of the weights, as the hub calls it: `mit`, `cc-by-4.0`, ... Apple's are `apple-amlr`, for research
            only, and so is what was trained from them.
        repository: owner and name that it will have on the hub, for the card's examples; they name the folder without.
        base_model: owner and name of the model on the hub that this one was made of, such as `apple/MobileCLIP-S2`;
            the card names it, and the hub lists this model under it.
        results: what it reaches on data sets, such as `mobileclip.evaluation.read_results` returns; none are made up.
        library: `transformers` to write for this library alone.
        overwrite: whether a folder that this function wrote is replaced.

    Raises:
        ValueError: if license, repository or base model are no names, the model is not as its spec builds it, or the
            library that is asked for cannot build it.
        FileExistsError: if the folder holds something that may not be replaced.
        OSError: if it cannot be written.

    Examples:
        >>> tower = mobileclip.encoders.ViTSpec(width=16, depth=1, num_heads=2).build()
        >>> sorted(path.name for path in save_pretrained(tower, "tower", license="mit").iterdir())
        ['README.md', 'model.safetensors']
        >>> type(from_pretrained("tower")).__name__
        'ViT'
    """
    require_names(license, repository, base_model=base_model)
    place = Path(folder)
    require_folder(place, overwrite=overwrite)
    spec, form = cast("ModelSpec", model.spec), form_of(model)
    layout = layout_for(spec, form, licence=license)
    if library is not None:
        layout = _for_transformers(layout)
    source = f"local-dir:{place.name}" if repository is None else f"hf-hub:{repository}"
    card = model_card(
        spec,
        form,
        layout=layout.name,
        why_not=layout.why_not,
        for_transformers=bool(layout.transformers),
        why_not_transformers=layout.why_not_transformers,
        source=source,
        licence=license,
        base_model=base_model,
        results=results,
    )
    with storage.atomic_folder(place, overwrite=overwrite) as temporary:
        for name in {layout.name, *(["transformers"] if layout.transformers else [])}:
            save_model(model, temporary / _WEIGHTS[name], layout=name)
        for name, content in layout.transformers.items():
            (temporary / name).write_text(content, encoding="utf-8")
        if layout.config is not None:
            (temporary / _CONFIGS[layout.name]).write_text(json.dumps(layout.config, indent=2) + "\n", encoding="utf-8")
        tokenizer = tokenizer_of(spec)
        if tokenizer is not None and tokenizer.content is not None:
            (temporary / TOKENIZER).write_text(tokenizer.content, encoding="utf-8", newline="")
        (temporary / CARD).write_text(card, encoding="utf-8")
    return place


def layout_for(spec: ModelSpec, form: Form, *, licence: str) -> Layout:
    """Return the layout in which the most libraries load a model.

    Args:
        spec: of the model.
        form: that it is in.
        licence: of the weights, as the hub calls it.
    """
    if form != "training":
        folded = "the model is folded, and they build the training form"
        unlike = "the model is folded, and it builds the training form" if isinstance(spec, DualEncoderSpec) else None
        return Layout(name=NATIVE, why_not=folded, why_not_transformers=unlike)
    if isinstance(spec, DualEncoderSpec):
        return _for_two_towers(spec)
    try:
        if isinstance(spec, (ImageEncoderSpec, ClassifierSpec)):
            return Layout(name="timm", config=timm_config(spec, licence=licence))
    except ValueError as error:
        return Layout(name=NATIVE, why_not=str(error))
    return Layout(name=NATIVE, why_not="they have no text tower alone")


def _for_two_towers(spec: DualEncoderSpec) -> Layout:
    layout = Layout(name=NATIVE)
    try:
        layout = attrs.evolve(layout, name="transformers", transformers=transformers_files(spec))
    except ValueError as error:
        layout = attrs.evolve(layout, why_not_transformers=str(error))
    try:
        return attrs.evolve(layout, name="open_clip", config=open_clip_config(spec))
    except ValueError as error:
        return attrs.evolve(layout, why_not=str(error))


def _for_transformers(layout: Layout) -> Layout:
    """Return the layout without what other libraries need.

    Raises:
        ValueError: if transformers cannot load the model.
    """
    if not layout.transformers:
        why = layout.why_not_transformers or "it is no image-text model"
        raise ValueError(f"transformers cannot load this model: {why}")
    return Layout(name="transformers", transformers=layout.transformers)


def require_names(licence: str, repository: str | None, *, base_model: str | None = None) -> None:
    """Make sure that a licence, a repository and a base model are called as the hub calls such.

    Raises:
        ValueError: if not.
    """
    if not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"the licence is {licence[:80]!r}; expected its name on the hub, such as mit, apache-2.0, cc-by-4.0, "
            "apple-amlr (Apple's weights and what was trained from them) or other"
        )
    if repository is not None and not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"the repository is {repository[:120]!r}; expected owner/name")
    if base_model is not None and not _REPOSITORY.fullmatch(base_model):
        raise ValueError(f"the base model is {base_model[:120]!r}; expected owner/name, as the hub calls it")


def require_folder(place: Path, *, overwrite: bool) -> None:
    """Make sure that a folder can be written, and that nothing is lost by it but what was written so before.

    Raises:
        FileExistsError: if it holds something that may not be replaced.
        OSError: if it cannot be made or written to.
    """
    marker = next((name for name in WEIGHTS if (place / name).is_file()), WEIGHTS[0])
    storage.require_output_folder(place, overwrite=overwrite, marker=marker)
    others = sorted(path.name for path in place.iterdir() if path.name not in FILES) if place.is_dir() else []
    if others:
        raise FileExistsError(
            f"{place} holds {storage.printable(others[0])} besides a model, and is not replaced; choose another folder"
        )
