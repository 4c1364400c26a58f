"""A model as a folder: weights with the spec, configurations for open_clip or timm, and a model card."""

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
"""Possible names of the weights file in a folder."""
FILES = tuple(sorted({CARD, TOKENIZER, *WEIGHTS, *_CONFIGS.values(), *TRANSFORMERS}))
"""Names of all files that a folder may contain."""

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,59}")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@attrs.frozen(kw_only=True)
class Layout:
    """The layout of a model folder, and the libraries that can load it.

    Args:
        name: layout of the weights file.
        config: configuration for the layout's library; None for this library's own layout.
        why_not: reason why neither open_clip nor timm can load the model; None if either library can load the model.
        transformers: additional files for transformers, as content by file name; empty if transformers cannot load the
            model.
        why_not_transformers: reason why transformers cannot load an image-text model; None if transformers can load the
            model, or the model is not an image-text model.
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
    """Write a model to a folder for this library, and for other libraries that can build the model.

    The function writes an image-text model in open_clip's layout with `open_clip_config.json`, and in transformers'
    layout with its configurations (`VisionTextDualEncoderModel`, which sentence-transformers also loads), if these
    libraries can build the model. The function writes an image tower or a classifier in timm's layout with
    `config.json`, and any other model in this library's own layout. A reparameterized model is always in this library's
    layout, since the other libraries build the training form. Each weights file contains the spec, `tokenizer.json`
    contains a tokenizer other than CLIP's, and `README.md` is a model card. The function writes the folder atomically.

    Args:
        model: an image-text model, a tower or a classifier, in training form or reparameterized.
        folder: output folder.
        license: licence of the weights, as the hub's identifier, such as `mit` or `cc-by-4.0`. Apple's weights, and
            weights trained from them, are under `apple-amlr`, for research only.
        repository: owner and name on the hub, for the card's examples; None to use the folder in the examples.
        base_model: owner and name of the hub model that this model was trained or converted from, such as
            `apple/MobileCLIP-S2`. The card names the base model, and the hub's page of the base model lists this model.
        results: the model's results on data sets, such as the result of `mobileclip.evaluation.read_results`; the card
            has no results by default.
        library: `transformers` to write files for transformers only; None for all libraries that can build the model.
        overwrite: whether to replace a folder that this function wrote before.

    Raises:
        ValueError: if license, repository or base model are not valid names, the model does not match its spec, or the
            requested library cannot build the model.
        FileExistsError: if the folder has content, and `overwrite` is False or some files are not part of a model.
        OSError: if the folder cannot be written.

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
    """Return the layout that the largest number of libraries can load.

    Args:
        spec: spec of the model.
        form: form of the model's weights: `training`, `branches_folded` or `folded`.
        licence: licence of the weights, as the hub's identifier, such as `mit`.
    """
    if form != "training":
        folded = "the model is folded, but open_clip and timm build the training form"
        unlike = (
            "the model is folded, but transformers builds the training form"
            if isinstance(spec, DualEncoderSpec)
            else None
        )
        return Layout(name=NATIVE, why_not=folded, why_not_transformers=unlike)
    if isinstance(spec, DualEncoderSpec):
        return _for_two_towers(spec)
    try:
        if isinstance(spec, (ImageEncoderSpec, ClassifierSpec)):
            return Layout(name="timm", config=timm_config(spec, licence=licence))
    except ValueError as error:
        return Layout(name=NATIVE, why_not=str(error))
    return Layout(name=NATIVE, why_not="open_clip and timm do not support a text tower without an image tower")


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
    """Return the layout without the files of libraries other than transformers.

    Raises:
        ValueError: if transformers cannot load the model.
    """
    if not layout.transformers:
        why = layout.why_not_transformers or "this is not an image-text model"
        raise ValueError(f"transformers cannot load this model: {why}")
    return Layout(name="transformers", transformers=layout.transformers)


def require_names(licence: str, repository: str | None, *, base_model: str | None = None) -> None:
    """Check that a licence, a repository and a base model are valid names on the hub.

    Raises:
        ValueError: if the licence is not a hub identifier, or the repository or base model is not `owner/name`.
    """
    if not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"the licence is {licence[:80]!r}; expected an identifier of the hub, such as mit, apache-2.0, cc-by-4.0, "
            "other, or apple-amlr (for Apple's weights and weights trained from them)"
        )
    if repository is not None and not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"the repository is {repository[:120]!r}; expected owner/name")
    if base_model is not None and not _REPOSITORY.fullmatch(base_model):
        raise ValueError(f"the base model is {base_model[:120]!r}; expected owner/name of a model on the hub")


def require_folder(place: Path, *, overwrite: bool) -> None:
    """Check that a folder can be written, and that it has no content other than an earlier output of `save_pretrained`.

    Raises:
        FileExistsError: if the folder has content, and `overwrite` is False or some files are not part of a model.
        OSError: if the folder cannot be created or written to.
    """
    marker = next((name for name in WEIGHTS if (place / name).is_file()), WEIGHTS[0])
    storage.require_output_folder(place, overwrite=overwrite, marker=marker)
    others = sorted(path.name for path in place.iterdir() if path.name not in FILES) if place.is_dir() else []
    if others:
        raise FileExistsError(
            f"{place} contains {storage.printable(others[0])} in addition to a model, so the folder is not replaced; "
            "choose a different folder"
        )
