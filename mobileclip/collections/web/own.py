"""What is a person's own on the page: concepts, which learn from what is accepted and rejected, and tags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mobileclip import storage
from mobileclip.collections.collection import Collection
from mobileclip.collections.searching.learned import named_concepts
from mobileclip.collections.searching.matches import Match
from mobileclip.collections.store.concepts import Concept, ids_of
from mobileclip.collections.web.served import ServedCollection

# Forms of other sites cannot send this type.
_TYPE = "application/json"
_LONGEST_NAME = 200
_JUDGEMENTS = ("yes", "no", "neither")


def judged(served: ServedCollection, request: Request) -> Response:
    """Add a concept, or what was said of a picture to one, and answer with it; it has learned by then.

    The query has its name, and `yes`, `no` or `neither` with the id of a picture.

    Args:
        served: whose index has it.
        request: a POST without content.

    Raises:
        HTTPException: if another site may have sent it, or the query is none.
        ValueError: if the name is none, or there is no such picture.
        OSError: if the index cannot be written.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != _TYPE:
        raise HTTPException(415, f"what is said of a concept is sent with the content type {_TYPE}")
    asked, collection = request.query_params, served.current()
    try:
        yes, no, neither = ([int(number) for number in asked.getlist(kind)] for kind in _JUDGEMENTS)
    except ValueError:
        raise HTTPException(400, "a picture is named by its id, a whole number") from None
    return JSONResponse(
        _told(collection, collection.concepts.add(asked.get("name", ""), yes=yes, no=no, neither=neither))
    )


def asked_concept(collection: Collection, texts: Sequence[str]) -> dict[str, Any]:
    """Return the concept that is asked for and nothing else, with the ids of its examples, as `concept`.

    Args:
        collection: that is searched.
        texts: of the query.
    """
    rest, names = named_concepts(" ".join(texts))
    return {"concept": _told(collection, collection.concepts.require(names[0]))} if len(names) == 1 and not rest else {}


def tags_of(collection: Collection, matches: Sequence[Match]) -> list[dict[str, Any]]:
    """Return the tags of pictures, as `tags`; nothing of those without.

    Args:
        collection: that has them.
        matches: the pictures.
    """
    snapshot = collection.snapshot
    found = snapshot.tags([snapshot.place(match.id) for match in matches])
    return [{"tags": tags} if tags else {} for tags in found]


def _told(collection: Collection, concept: Concept) -> dict[str, Any]:
    ids = ids_of(collection.path, [one.key for one in concept.examples])
    own: dict[str, list[Any]] = {
        kind: [ids[one.key] for one in concept.examples if one.is_yes == is_yes and one.key in ids]
        for kind, is_yes in (("yes", True), ("no", False))
    }
    return {
        "name": concept.name,
        "uses_examples": concept.uses_examples,
        **own,
    }
