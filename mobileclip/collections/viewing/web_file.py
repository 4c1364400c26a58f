"""Pictures of an index in one file, which the page of `examples/web` searches without a server of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.searching.matches import Match, match_of
from mobileclip.collections.searching.pictures import small_pictures, webp
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.progress import Progress
from mobileclip.terminal import console

SUFFIXES = (".safetensors",)
"""How the name of such a file ends."""

PROBES = ("a photo of a dog", "a street at night", "two people on a beach", "a diagram with text")
"""Texts whose embeddings are stored: whoever has another text tower finds that out by them."""

_FACTS = ("part", "size", "width", "height", "camera", "taken", "time")
_FORMAT = "mobileclip pictures 1"
_SIDE = 320
_QUALITY = 70


def write_web_file(
    path: Path,
    snapshot: Snapshot,
    clip: ImageTextModel,
    *,
    overwrite: bool = False,
    show_progress: bool = True,
) -> int:
    """Write the pictures of an index with their embeddings and small copies, and return how many they are.

    The file is safetensors: `embedding`, float16, or `codes` with `mean`, `basis` and `scale`, see `Coder`; `names` and
    `facts`, lists of JSON; `thumbnails`, WebP files one behind another, each of which ends where `ends` says; `probes`,
    the embeddings of `PROBES`. A name begins with the path below the folder that all pictures are in. Facts are what
    conditions may be on, but for where a picture was taken. A picture that cannot be read any more has a small copy of
    no bytes; one that is gone is left out.

    Args:
        path: `*.safetensors`.
        snapshot: of the collection.
        clip: the model that it is of.
        vectors: how embeddings are written; `bits` as int4, since nothing ranks them again.
        overwrite: whether a file that is there is replaced.
        show_progress: whether to show how far it is.

    Raises:
        ValueError: if there are no pictures, or none is where it was, or the name ends otherwise.
        OSError: if the file is there already, or cannot be written.
    """
    from safetensors.numpy import save

    storage.require_output(path, overwrite=overwrite, suffixes=SUFFIXES)
    places, rows = snapshot.shown()
    matches = [match_of(row, 1.0) for row in rows]
    thumbnails, ends = bytearray(), []
    with Progress(
        "making small copies", total=len(matches), unit="pictures", console=console(shown=show_progress)
    ) as bar:
        for picture in small_pictures(matches, _SIDE):
            thumbnails += b"" if picture is None else webp(picture, _QUALITY)
            ends.append(len(thumbnails))
            bar.advance()
    # Where all of it is on this machine is nobody's business.
    folder = os.path.commonpath([os.path.dirname(match.path) for match in matches])  # noqa: PTH120 - texts, of any number
    names = json.dumps([_short(match.name, folder) for match in matches])
    facts = json.dumps([_facts(match, folder) for match in matches])
    content = save(
        {
            "embedding": snapshot.vectors[places],
            "probes": clip.encode_text(list(PROBES)).numpy().astype(np.float32),
            "names": np.frombuffer(names.encode(), np.uint8),
            "facts": np.frombuffer(facts.encode(), np.uint8),
            "ends": np.array(ends, np.int64),
            "thumbnails": np.frombuffer(bytes(thumbnails), np.uint8),
        },
        metadata={"format": _FORMAT, "probes": json.dumps(PROBES)},
    )
    with storage.atomic_write(path) as file:
        file.write(content)
    return len(matches)


def _short(path: str, folder: str) -> str:
    return storage.printable(os.path.relpath(path, folder), limit=4096)


def _facts(match: Match, folder: str) -> dict[str, Any]:
    known = {name: value for name, value in match.known().items() if name in _FACTS}
    return {**known, "path": _short(match.path, folder)}
