"""An HTTP server for embeddings of texts and images, and for zero-shot classification of images.

    pip install starlette uvicorn
    python examples/serving/app.py icons --port 8000
    curl -d '{"texts": ["a cat", "a dog"]}' http://127.0.0.1:8000/texts
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/classify?label=a+cat&label=a+dog'
    kill -HUP PID        # loads MODEL again for new requests; current requests keep their model

For several processes, use `MODEL=s0_onnx uvicorn --factory --workers 2 app:application`. An export from another
machine, except for ONNX, needs `--trust` (with uvicorn, `TRUST=1`), because its runtime does not validate files.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import mobileclip

MOST_IMAGE_BYTES, MOST_TEXT_BYTES, MOST_TEXTS = 2**25, 2**20, 256
AT_ONCE = 8


class ModelHolder:
    """The current model of the server, which a reload replaces.

    Args:
        path: model for `mobileclip.load`.
        num_threads: number of threads per request; None for PyTorch's number.
        trust: whether to load exports from other machines, which may run any code.
    """

    def __init__(self, path: str, *, num_threads: int | None = None, trust: bool = False) -> None:
        self._path, self._num_threads, self._trust = path, num_threads, trust
        self._replacing = threading.Lock()
        self.current = (1, self._loaded())

    def replace(self) -> None:
        """Reload the model from `path`; if loading fails, keep the current model."""
        with self._replacing:
            try:
                self.current = (self.current[0] + 1, self._loaded())
            except (ValueError, OSError, ImportError) as error:
                print(f"the model stays as it was: {error}", flush=True)

    def _loaded(self) -> mobileclip.ImageTextModel:
        clip = mobileclip.load(self._path, num_threads=self._num_threads, trust=self._trust)
        # Warm up before the first request, since the first call is slow.
        clip.encode_text("a photo")
        return clip


def application(served: ModelHolder | None = None) -> Starlette:
    """Return the application, by default for the model in the environment variable MODEL."""
    model = served or ModelHolder(os.environ["MODEL"], trust=os.environ.get("TRUST") == "1")
    # A waiting request only holds its body in memory.
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def computed(work: Callable[[mobileclip.ImageTextModel], Any]) -> JSONResponse:
        version, clip = model.current
        try:
            found = await anyio.to_thread.run_sync(functools.partial(work, clip), limiter=limiter)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        return JSONResponse({"found": found, "version": version})

    async def texts(request: Request) -> JSONResponse:
        asked = texts_of(await body_of(request, MOST_TEXT_BYTES))
        return await computed(lambda clip: clip.encode_text(asked, keep=True).tolist())

    async def image(request: Request) -> JSONResponse:
        picture = await body_of(request, MOST_IMAGE_BYTES)
        return await computed(lambda clip: clip.encode_image(picture)[0].tolist())

    async def classify(request: Request) -> JSONResponse:
        picture, labels = await body_of(request, MOST_IMAGE_BYTES), request.query_params.getlist("label")
        return await computed(lambda clip: clip.classify(picture, labels))

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"version": model.current[0]})

    return Starlette(
        routes=[
            Route("/texts", texts, methods=["POST"]),
            Route("/image", image, methods=["POST"]),
            Route("/classify", classify, methods=["POST"]),
            Route("/health", health),
        ]
    )


async def body_of(request: Request, limit: int) -> bytes:
    """Return a request's body; stop reading and raise an error if the body is too large."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise HTTPException(413, f"the request has more than {limit:,} bytes; send less")
    return bytes(data)


def texts_of(data: bytes) -> list[str]:
    """Return the texts of a request: `{"texts": ["a cat", ...]}`."""
    try:
        asked = json.loads(data)["texts"]
    except (ValueError, KeyError, TypeError, RecursionError):
        asked = None
    is_list = isinstance(asked, list) and all(isinstance(one, str) for one in asked)
    if not is_list or not 0 < len(asked) <= MOST_TEXTS:
        raise HTTPException(400, f'expected {{"texts": [...]}} with 1 to {MOST_TEXTS} texts')
    return asked


def main() -> None:
    """Serve requests until the process gets a signal to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name, a file of weights, or the folder of an export")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 selects a free port")
    parser.add_argument("--num-threads", type=int, help="number of threads per request")
    parser.add_argument("--trust", action="store_true", help="load exports from other machines, which may run any code")
    given = parser.parse_args()
    served = ModelHolder(given.model, num_threads=given.num_threads, trust=given.trust)
    # Loading takes seconds, and the event loop must answer other requests meanwhile.
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=served.replace).start())
    with socket.create_server(("127.0.0.1", given.port)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(application(served), log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
