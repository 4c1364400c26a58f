"""The routes of the local web server: the page, searches, duplicates and pictures."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any

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
from mobileclip.collections.searching.duplicates import THRESHOLD
from mobileclip.collections.searching.looks import stamp_of
from mobileclip.collections.searching.matches import Match
from mobileclip.collections.web.guard import Guard
from mobileclip.collections.web.overview import columns, examples, overview
from mobileclip.collections.web.own import asked_concept, judged, tags_of
from mobileclip.collections.web.served import ServedCollection, UnreadableIndexError, as_shown, picture_of
from mobileclip.collections.web.thumbnails import SIDES, Indexed, Thumbnails
from mobileclip.collections.web.uploads import Uploads
from mobileclip.datasets.videos.formats import named_format

_MOST_FOUND = 200
_LAST_FOUND = 10_000
_MOST_GROUPS = 100
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
# Each holds a decoded picture in memory.
_EXPLAINING = threading.BoundedSemaphore(1)

_Endpoint = Callable[[Request], Response]


def build_application(collection: Collection, uploads: Uploads | None = None) -> Starlette:
    """Return the application that shows a collection.

    Args:
        collection: that is searched. It is read anew when its index has changed.
        uploads: the room for pictures that are searched with; its own by default.
    """
    served, thumbnails = ServedCollection(collection), Thumbnails()

    def duplicates(request: Request) -> Response:
        threshold = _number(request.query_params, "threshold", THRESHOLD, float)
        groups = served.duplicates(threshold)
        shown = [
            [as_shown(match) for match in (group.best, *group.others[: _MOST_SHOWN - 1])]
            for group in groups[:_MOST_GROUPS]
        ]
        return JSONResponse({"num_groups": len(groups), "groups": shown, "version": served.version})

    def picture(request: Request) -> Response:
        side = SIDES.get(request.path_params["size"])
        if side is None:
            raise HTTPException(404, f"there is no such size; expected {' or '.join(SIDES)}")
        match, indexed = _found(served, request)
        data = thumbnails.get(match, indexed, side)
        if data is None:
            raise HTTPException(410, "the picture cannot be read any more, or has changed since it was indexed")
        return Response(data, media_type="image/webp")

    def video(request: Request) -> Response:
        match, indexed = _found(served, request)
        kind = named_format(match.path)
        if match.time is None or kind is None:
            raise HTTPException(404, "it is a picture, and no video")
        if stamp_of(match.path) != (indexed.mtime_ns, match.size):
            raise HTTPException(410, "the video is gone, or has changed since it was indexed")
        return FileResponse(match.path, media_type=kind.media_type)

    uploads = uploads or Uploads()
    return Starlette(
        routes=[
            *(Route(path, _file(name, kind)) for path, (name, kind) in _FILES.items()),
            Route("/api/collection", _telling(overview, served)),
            Route("/api/examples", _telling(examples, served)),
            Route("/api/columns", _telling(columns, served)),
            Route("/api/search", _asking(_search, served, uploads), methods=["GET", "POST"]),
            Route("/api/explain/{number:int}", _asking(_explain, served, uploads), methods=["GET", "POST"]),
            Route("/api/concepts", lambda request: judged(served, request), methods=["POST"]),
            Route("/api/duplicates", duplicates),
            Route("/pictures/{number:int}/{size}", picture),
            Route("/videos/{number:int}", video),
        ],
        middleware=[Middleware(Guard)],
        exception_handlers={
            HTTPException: _refused,
            ClientDisconnect: lambda *_: Response(status_code=400),  # which nobody reads
            UnreadableIndexError: _unreadable,
            ValueError: _wrong,
            OSError: _unreadable,
        },
    )


def _found(served: ServedCollection, request: Request) -> tuple[Match, Indexed]:
    try:
        return picture_of(served.current(), request.path_params["number"])
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
        async with uploads.received(request) as picture:
            return await uploads.in_turn(lambda: answer(served, request, picture))

    return asked


def _query(asked: QueryParams, picture: bytes | None) -> dict[str, Any]:
    text = asked.get("text", "").strip()
    return {
        "text": [text] if text else [],
        "image": [] if picture is None else [picture],
        "like": [_number(asked, "like", 0, int)] if "like" in asked else [],
        "without": [one for one in asked.getlist("not") if one.strip()],
    }


def _search(served: ServedCollection, request: Request, picture: bytes | None) -> Response:
    asked, collection = request.query_params, served.current()
    skip, k = _number(asked, "skip", 0, int), min(_MOST_FOUND, _number(asked, "k", 60, int))
    if not 0 <= skip <= _LAST_FOUND:
        raise HTTPException(400, f"skip is {skip}, expected 0 to {_LAST_FOUND}")
    query = _query(asked, picture)
    found = collection.search(
        **query,
        where=[one for one in asked.getlist("where") if one.strip()],
        k=skip + k if k > 0 else k,
        all_frames=_frames(asked) == "all",
        # What comes behind the first, or once more, was encoded for the first.
        encode=skip == 0 and "again" not in asked,
    )
    like = [as_shown(picture_of(collection, number)[0]) for number in query["like"]]
    shown = [
        {**as_shown(one), **tags} for one, tags in zip(found[skip:], tags_of(collection, found[skip:]), strict=True)
    ]
    concept = {} if like or picture else asked_concept(collection, query["text"])
    told = {"matches": shown, "like": like, "version": served.version, "num_waiting": collection.num_waiting, **concept}
    served.fill()
    return JSONResponse(told)


def _explain(served: ServedCollection, request: Request, picture: bytes | None) -> Response:
    match, _ = _found(served, request)
    with _EXPLAINING:
        shares = served.current().explain(match, **_query(request.query_params, picture))
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


def _told(message: object, status: int, headers: Mapping[str, str] | None = None) -> Response:
    told = {"error": storage.printable(message, limit=_LONGEST_MESSAGE)}
    return JSONResponse(told, status_code=status, headers=headers)


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "the handler is for it"
    return _told(error.detail, error.status_code, error.headers)


def _unreadable(_: Request, error: Exception) -> Response:
    return _told(f"the index cannot be read: {error}", 503)


def _wrong(_: Request, error: Exception) -> Response:
    return _told(error, 400)
