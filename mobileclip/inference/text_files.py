"""Embeddings of labels kept on the disk, for the next process that asks the same model for them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.encoders import TextEncoderSpec
from mobileclip.extras import VERSION
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.kept import SUFFIX, make_room, read_kept, state_of, write_kept
from mobileclip.inference.labels import fill_templates, label_keys
from mobileclip.serialization import to_json
from mobileclip.tensor_files.weights import weights_sha256

WORTH_A_FILE = 100
"""Texts whose embeddings take longer than telling the model from every other one."""

MOST_FILE_BYTES = 2**30
"""Of all files of labels."""

_TENSOR, _FORMAT = "labels", 1


def keep_on_disk(
    clip: ImageTextModel, labels: Sequence[str], template: str | Sequence[str], *, most_bytes: int = MOST_FILE_BYTES
) -> None:
    """Let a model keep the embeddings of labels, from a file where one is there; else they are encoded and written.

    Few texts take less time than looking. Files are in the user's cache, of `XDG_CACHE_HOME`: one for each model,
    templates and list of labels. A damaged one is made again.

    Args:
        clip: the model.
        labels: that it is going to choose among, no two equal.
        template: see `ImageTextModel.classify`.
        most_bytes: of all files; those that were not used for longest make room.
    """
    texts, cache = fill_templates(labels, template), storage.cache_folder()
    if len(texts) < WORTH_A_FILE or cache is None:
        return
    folder = cache / "texts"
    path = folder / f"{_identity(clip, texts, len(labels))}{SUFFIX}"
    rows = _of_file(path, (len(labels), clip.model.spec.text.embedding_dim))
    if rows is None:
        rows = clip.encode_labels(labels, template=template, progress=True)
        write_kept(path, {_TENSOR: rows}, "")
        make_room(folder, most_bytes)
        return
    with suppress(OSError):
        os.utime(path)
    known = dict(zip(label_keys(labels, template), rows, strict=True))
    clip.kept_texts.embeddings(
        list(known), lambda new: torch.stack([known[key] for key in new]), of=state_of(clip.text_sides)
    )


def _of_file(path: Path, shape: tuple[int, int]) -> Tensor | None:
    kept = read_kept(path)
    rows = None if kept is None else kept[0].get(_TENSOR)
    fits = rows is not None and rows.shape == shape and rows.dtype == torch.float32
    return rows if fits else None


def _identity(clip: ImageTextModel, texts: list[str], num_labels: int) -> str:
    """Return a name for what embeddings depend on: the text towers, and the labels in their templates."""
    towers = [side.model.text_encoder for side in clip.text_sides]
    weights = [weights_sha256(tower.state_dict()) for tower in towers]
    specs = [to_json(side.model.spec.text, unstructure_as=TextEncoderSpec) for side in clip.text_sides]
    taught = [hashlib.sha256(repr(getattr(tower, "taught", None)).encode()).hexdigest() for tower in towers]
    parts = [_FORMAT, VERSION, type(clip.model).__name__, weights, specs, taught, num_labels, texts]
    return hashlib.sha256(json.dumps(parts).encode("utf-8", errors="surrogatepass")).hexdigest()[:40]
