"""What the start page says of a collection: its model, some of its pictures, and what conditions may be on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.collection import Collection
from mobileclip.collections.searching.filtering import DATE, NUMBERS, TEXTS
from mobileclip.collections.searching.matches import first_of_videos, match_of
from mobileclip.collections.store.presence import Presence
from mobileclip.collections.store.snapshot import TAG
from mobileclip.collections.web.served import as_shown
from mobileclip.encoders.features import GivesLocalEmbeddings

_NUM_EXAMPLES = 6
_MOST_VALUES = 20
# Nobody writes one by hand.
_NOT_OFFERED = ("sha256",)
_LONGEST_VALUE = 200


def overview(collection: Collection) -> dict[str, Any]:
    """Return what the start page says of a collection.

    Args:
        collection: with its model.
    """
    about, snapshot = collection.store.about, collection.snapshot
    return {
        "index": storage.printable(collection.path),
        "num_pictures": len(snapshot),
        "num_unreadable": snapshot.num_unreadable,
        "model": storage.printable(about.model),
        "dim": about.dim,
        "concepts": list(collection.concepts),
        "explains": isinstance(collection.clip.model.image_encoder, GivesLocalEmbeddings),
    }


def examples(collection: Collection) -> dict[str, Any]:
    """Return a few pictures from all over a collection, of those whose files are there.

    Args:
        collection: with or without pictures.
    """
    snapshot, there = collection.snapshot, Presence()
    if not len(snapshot):
        return {"examples": []}
    places = np.unique(np.linspace(0, len(snapshot) - 1, _NUM_EXAMPLES).astype(np.int64))
    rows = [row for row in snapshot.rows(places) if row is not None and row["path"] in there]
    return {"examples": [as_shown(match_of(rows[number], 1.0)) for number in first_of_videos(rows)]}


def columns(collection: Collection) -> dict[str, Any]:
    """Return the columns of which something is known: name, kind, and the least and the largest value or the commonest.

    Args:
        collection: whose columns are read.
    """
    found = []
    for name in (*NUMBERS, *TEXTS):
        values = collection.snapshot.column(name)
        known = values[~_is_unknown(values)]
        if name not in _NOT_OFFERED and len(known):
            found.append({"name": name, **_said_of(name, known)})
    if (words := collection.snapshot.words) is not None:
        found.append({"name": TAG, "kind": "tag", "values": words.words})
    return {"columns": found}


def _said_of(name: str, known: NDArray[Any]) -> dict[str, Any]:
    if name in NUMBERS:
        return {"kind": "number", "least": float(known.min()), "most": float(known.max())}
    if name == DATE:
        return {"kind": "date", "least": str(known.min()), "most": str(known.max())}
    counted = Counter(known.tolist()).most_common(_MOST_VALUES + 1)
    # Of paths there are too many to choose from.
    values = [storage.printable(value, limit=_LONGEST_VALUE) for value, _ in counted]
    return {"kind": "text", "values": values if len(values) <= _MOST_VALUES else []}


def _is_unknown(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype == object:
        return np.array([value is None for value in values], np.bool_)
    unknown: NDArray[np.bool_] = np.isnat(values) if values.dtype.kind == "M" else np.isnan(values)
    return unknown
