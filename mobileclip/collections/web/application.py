"""Routes of the local web server: the page, searches, duplicates, concepts and images."""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from mobileclip import storage
from mobileclip.collections.collection import Collection
from mobileclip.collections.concepts import Concept, ids_of, named_concepts
from mobileclip.collections.conditions import DATE, NUMBERS, TEXTS, matching, parse_condition
from mobileclip.collections.duplicates import THRESHOLD
from mobileclip.collections.queries import Matches
from mobileclip.collections.scan import Presence, stamp_of
from mobileclip.collections.snapshot import TAG, Match, first_of_videos, match_of
from mobileclip.collections.web.guard import SecurityMiddleware, Uploads
from mobileclip.collections.web.served import (
    SIDES,
    Indexed,
    ServedCollection,
    Thumbnails,
    UnreadableIndexError,
    display_values,
    image_of,
    read_if_unchanged,
)
from mobileclip.datasets import named_format
from mobileclip.encoders import PACKAGED, SupportsLocalEmbeddings
from mobileclip.terminal import say

_NUM_EXAMPLES = 6
_MOST_VALUES = 20
_MOST_TAGS_OFFERED = 40
# The sentence in a model's card about its limits.
_LIMITS = re.compile(r"\*\*(Not\s+for)\*\*([^.]*\.)")
# Nobody types a hash.
_NOT_OFFERED = ("sha256",)
_LONGEST_VALUE = 200
_MOST_UNREADABLE = 200


def overview(collection: Collection) -> dict[str, Any]:
    """Return a collection's data for the start page.

    Args:
        collection: collection with a loaded model.
    """
    about, snapshot = collection.store.about, collection.snapshot
    return {
        "index": storage.printable(collection.path),
        "num_images": len(snapshot),
        "num_unreadable": snapshot.num_unreadable,
        "model": storage.printable(about.model),
        "dim": about.dim,
        "limits": _limits(about.model.model),
        "tags": [] if snapshot.words is None else list(snapshot.words.words[:_MOST_TAGS_OFFERED]),
        "concepts": list(collection.concepts),
        "explains": isinstance(collection.clip.model.image_encoder, SupportsLocalEmbeddings),
    }


def _limits(model: str | None) -> str:
    card = PACKAGED[model].with_name(f"{model}.md").read_text(encoding="utf-8") if model in PACKAGED else ""
    said = _LIMITS.search(card)
    return "" if said is None else " ".join("".join(said.groups()).split())


def examples(collection: Collection) -> dict[str, Any]:
    """Return a few images whose files exist, spread evenly over a collection.

    Args:
        collection: collection, with or without images.
    """
    snapshot, there = collection.snapshot, Presence()
    if not len(snapshot):
        return {"examples": []}
    indices = np.unique(np.linspace(0, len(snapshot) - 1, _NUM_EXAMPLES).astype(np.int64))
    rows = [row for row in snapshot.rows(indices) if row is not None and row["path"] in there]
    return {"examples": [display_values(match_of(rows[number], 1.0)) for number in first_of_videos(rows)]}


def unreadable(collection: Collection) -> dict[str, Any]:
    """Return at most 200 unreadable files, with a reason per file.

    Args:
        collection: collection to inspect.
    """
    found = [(path, why) for path, why in collection.store.values("path", "problem") if why is not None]
    shown = found[:_MOST_UNREADABLE]
    return {"files": [[storage.printable(one, limit=_LONGEST_VALUE) for one in both] for both in shown]}


def columns(collection: Collection) -> dict[str, Any]:
    """Describe each column that has values: name, kind, and range or most common values.

    Args:
        collection: collection to inspect.
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
    if name == "path":
        folders = Counter(str(Path(one).parent) for one in known.tolist()).most_common(_MOST_VALUES)
        return {"kind": "text", "values": [storage.printable(one, limit=_LONGEST_VALUE) for one, _ in folders]}
    counted = Counter(known.tolist()).most_common(_MOST_VALUES + 1)
    values = [storage.printable(value, limit=_LONGEST_VALUE) for value, _ in counted]
    return {"kind": "text", "values": values if len(values) <= _MOST_VALUES else []}


def _is_unknown(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype == object:
        return np.array([value is None for value in values], np.bool_)
    unknown: NDArray[np.bool_] = np.isnat(values) if values.dtype.kind == "M" else np.isnan(values)
    return unknown


# HTML forms of other sites cannot send this content type.
_TYPE = "application/json"
_LONGEST_NAME = 200
_JUDGEMENTS = ("yes", "no", "neither")


def save_example(served: ServedCollection, request: Request) -> Response:
    """Add a concept, or an example to a concept, and return the updated concept.

    The URL's query contains the concept's `name`, and image ids as `yes`, `no` or `neither`.

    Args:
        served: collection whose index stores the concept.
        request: POST request without content.

    Raises:
        HTTPException: if the content type is not `application/json`, or an id is not an integer.
        ValueError: if the name is invalid, or the image does not exist.
        OSError: if the index cannot be written.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != _TYPE:
        raise HTTPException(415, f"changing a concept requires the content type {_TYPE}")
    asked, collection = request.query_params, served.current()
    try:
        yes, no, neither = ([int(number) for number in asked.getlist(kind)] for kind in _JUDGEMENTS)
    except ValueError:
        raise HTTPException(400, "the id of an image must be an integer") from None
    return JSONResponse(
        _concept_told(
            collection, collection.concepts.add(asked.get("name", ""), positive=yes, negative=no, unlabel=neither)
        )
    )


def requested_concept(collection: Collection, texts: Sequence[str]) -> dict[str, Any]:
    """Return a dict with the `concept` and its example ids if a query is a single concept; otherwise an empty dict.

    Args:
        collection: collection to search.
        texts: texts of the query.
    """
    rest, names = named_concepts(" ".join(texts))
    return (
        {"concept": _concept_told(collection, collection.concepts.require(names[0]))}
        if len(names) == 1 and not rest
        else {}
    )


def tags_of(collection: Collection, matches: Sequence[Match]) -> list[dict[str, Any]]:
    """Return a dict per image, with the key `tags` if the image has tags.

    Args:
        collection: collection with the tags.
        matches: matches of the images.
    """
    snapshot = collection.snapshot
    found = snapshot.tags([snapshot.index_of(match.id) for match in matches])
    return [{"tags": tags} if tags else {} for tags in found]


def _concept_told(collection: Collection, concept: Concept) -> dict[str, Any]:
    ids = ids_of(collection.path, [one.key for one in concept.examples])
    own: dict[str, list[Any]] = {
        kind: [ids[one.key] for one in concept.examples if one.is_positive == is_positive and one.key in ids]
        for kind, is_positive in (("yes", True), ("no", False))
    }
    return {
        "name": concept.name,
        "uses_examples": concept.uses_examples,
        **own,
    }


_MOST_FOUND = 200
_MOST_TEXTS = 16
_LAST_FOUND = 10_000
_MOST_GROUPS = 20
_MOST_SHOWN = 24
_LONGEST_MESSAGE = 500
_FILES = {
    "/": ("index.html", "text/html"),
    "/search.css": ("search.css", "text/css"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript")
        for name in ("search", "page", "address", "filters", "explain", "own")
    },
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Each explanation holds a decoded image in memory.
_EXPLAINING = threading.BoundedSemaphore(1)

_Endpoint = Callable[[Request], Response]


def build_application(collection: Collection, uploads: Uploads | None = None) -> Starlette:
    """Build the web application for a collection.

    Args:
        collection: collection to search. The application reads the index again after a change.
        uploads: limit for uploaded query images; None for the default limit.
    """
    served, thumbnails = ServedCollection(collection), Thumbnails()

    def duplicates(request: Request) -> Response:
        threshold = _number(request.query_params, "threshold", THRESHOLD, float)
        skip = max(0, _number(request.query_params, "skip", 0, int))
        groups = served.duplicates(threshold)
        some = groups[skip : skip + _MOST_GROUPS]
        told = {
            "num_groups": len(groups),
            "skip": skip,
            "threshold": threshold,
            "sizes": [1 + len(group.others) for group in some],
            "groups": [
                [display_values(one) for one in (group.best, *group.others[: _MOST_SHOWN - 1])] for group in some
            ],
        }
        return JSONResponse({**told, "version": served.version})

    def image(request: Request) -> Response:
        side = SIDES.get(request.path_params["size"])
        if side is None:
            raise HTTPException(404, f"the size is unknown; expected {' or '.join(SIDES)}")
        match, indexed = _found(served, request)
        data = thumbnails.get(match, indexed, side)
        if data is None:
            raise HTTPException(410, "the image is unreadable, or has changed since indexing")
        return Response(data, media_type="image/webp")

    def original(request: Request) -> Response:
        match, indexed = _found(served, request)
        kind = named_format(match.path)
        if match.time is None and (data := read_if_unchanged(match, indexed)) is not None:
            named, _ = guess_type(match.name)
            # The media type is never HTML. For other names, browsers detect the image format from the first bytes.
            return Response(data, media_type=named if named and named.startswith("image/") else "image/png")
        if kind is not None and stamp_of(match.path) == (indexed.mtime_ns, match.size):
            return FileResponse(match.path, media_type=kind.media_type)
        raise HTTPException(410, "the file is missing, or has changed since indexing")

    uploads = uploads or Uploads()
    return Starlette(
        routes=[
            *(Route(path, _file(name, kind)) for path, (name, kind) in _FILES.items()),
            Route("/api/collection", _telling(overview, served)),
            Route("/api/examples", _telling(examples, served)),
            Route("/api/unreadable", _telling(unreadable, served)),
            Route("/api/columns", _telling(columns, served)),
            Route("/api/search", _asking(_search, served, uploads), methods=["GET", "POST"]),
            Route("/api/explain/{number:int}", _asking(_explain, served, uploads), methods=["GET", "POST"]),
            Route("/api/concepts", lambda request: save_example(served, request), methods=["POST"]),
            Route("/api/duplicates", duplicates),
            Route("/images/{number:int}/{size}", image),
            Route("/originals/{number:int}", original),
        ],
        middleware=[Middleware(SecurityMiddleware)],
        exception_handlers={
            HTTPException: _refused,
            ClientDisconnect: lambda *_: Response(status_code=400),  # nobody reads this response
            UnreadableIndexError: _unreadable,
            ValueError: _wrong,
            OSError: _unreadable,
        },
    )


def _found(served: ServedCollection, request: Request) -> tuple[Match, Indexed]:
    try:
        return image_of(served.current(), request.path_params["number"])
    except ValueError as error:
        raise HTTPException(404, str(error)) from None


def _telling(told: Callable[[Collection], dict[str, Any]], served: ServedCollection) -> _Endpoint:
    return lambda _: JSONResponse({**told(served.current()), "version": served.version})


def _asking(
    answer: Callable[[ServedCollection, Request, bytes | None], Response], served: ServedCollection, uploads: Uploads
) -> Callable[[Request], Awaitable[Response]]:
    async def asked(request: Request) -> Response:
        if request.method != "POST":
            return await run_in_threadpool(answer, served, request, None)
        async with uploads.received(request) as image:
            return await uploads.in_turn(lambda: answer(served, request, image))

    return asked


def _query(asked: QueryParams, image: bytes | None) -> dict[str, Any]:
    text = asked.get("text", "").strip()
    return {
        "text": [text] if text else [],
        "image": [] if image is None else [image],
        "like": [_number(asked, "like", 0, int)] if "like" in asked else [],
        "without": _several(asked, "not"),
    }


def _several(asked: QueryParams, name: str) -> list[str]:
    """Return the values of a query parameter; refuse more than 16 values, since encoding each text takes time."""
    given = [one for one in asked.getlist(name) if one.strip()]
    if len(given) > _MOST_TEXTS:
        raise HTTPException(400, f"there are {len(given)} values of {name}=, expected at most {_MOST_TEXTS}")
    return given


def _search(served: ServedCollection, request: Request, image: bytes | None) -> Response:
    asked, collection = request.query_params, served.current()
    skip, k = _number(asked, "skip", 0, int), min(_MOST_FOUND, _number(asked, "k", 60, int))
    if not 0 <= skip <= _LAST_FOUND:
        raise HTTPException(400, f"skip is {skip}, expected 0 to {_LAST_FOUND}")
    query = _query(asked, image)
    try:
        where = [parse_condition(one) for one in _several(asked, "where")]
        matching(collection.snapshot, [one for one in where if one.column.startswith(TAG)])
    except ValueError as error:
        return _told(error, 400, field="where")
    is_browsed = bool(where) and not any(query.values())
    find: Callable[..., Matches] = collection.newest if is_browsed else partial(collection.search, **query)
    found = find(where=where, k=skip + k if k > 0 else k, all_frames=_frames(asked) == "all")
    like = [display_values(image_of(collection, number)[0]) for number in query["like"]]
    shown = [
        {**display_values(one), **tags}
        for one, tags in zip(found[skip:], tags_of(collection, found[skip:]), strict=True)
    ]
    if is_browsed:
        for one in shown:
            del one["score"]
    concept = {} if like or image else requested_concept(collection, query["text"])
    told = {"matches": shown, "like": like, "is_exact": found.is_exact, "version": served.version, **concept}
    told["order"] = "newest" if is_browsed else "similar"
    return JSONResponse(told)


def _explain(served: ServedCollection, request: Request, image: bytes | None) -> Response:
    match, _ = _found(served, request)
    with _EXPLAINING:
        shares = served.current().explain(match, **_query(request.query_params, image))
    return JSONResponse({"map": shares.tolist(), "score": float(shares.sum())})


def _frames(asked: QueryParams) -> str:
    given = asked.get("frames", "best")
    if given not in ("best", "all"):
        raise HTTPException(400, f"frames is '{storage.printable(given)}', expected best or all")
    return given


def _number(asked: QueryParams, name: str, otherwise: float, kind: type[Any]) -> Any:
    given = asked.get(name)
    if given is None:
        return otherwise
    try:
        return kind(given)
    except ValueError:
        raise HTTPException(400, f"{name} is '{storage.printable(given)}', expected a number") from None


def _file(name: str, kind: str) -> _Endpoint:
    folder = files(__package__) / "static"
    data = (folder / name).read_bytes().replace(b"<!-- search -->", (folder / "search.html").read_bytes())
    return lambda _: Response(data, media_type=kind)


def _told(message: object, status: int, headers: Mapping[str, str] | None = None, field: str | None = None) -> Response:
    told = {**({"field": field} if field else {}), "error": storage.printable(message, limit=_LONGEST_MESSAGE)}
    return JSONResponse(told, status_code=status, headers=headers)


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "the handler is registered for this class"
    return _told(error.detail, error.status_code, error.headers)


def _unreadable(_: Request, error: Exception) -> Response:
    return _told(f"the index cannot be read: {error}", 503)


def _wrong(_: Request, error: Exception) -> Response:
    return _told(error, 400)


_ADDRESS = "127.0.0.1"
_LAST_PORT = 65_535
_SECONDS_TO_END = 5


def serve(collection: Collection, *, port: int) -> None:
    """Serve a collection to browsers on this machine until a signal arrives.

    Args:
        collection: collection to search.
        port: port from 1 to 65535, or 0 for any free port. The function prints the URL.

    Raises:
        ValueError: if the port is not from 0 to 65535, or the index is damaged.
        OSError: if the index cannot be read, or the port is in use.
    """
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(f"port is {port}, expected 1 to {_LAST_PORT}, or 0 for any free port")
    collection.load()
    with _listening(port) as listener:
        config = uvicorn.Config(
            build_application(collection),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
        say(f"open http://{_ADDRESS}:{listener.getsockname()[1]}/ in a browser; Ctrl-C stops the server")
        uvicorn.Server(config).run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((_ADDRESS, port))
    except OSError as error:
        why = "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error})"
        raise OSError(f"port {port} {why}; choose another port with --port, or 0 for any free port") from None
