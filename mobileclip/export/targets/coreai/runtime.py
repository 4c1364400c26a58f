"""Core AI's runtime, which answers asynchronously, for callers that wait."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Answer = TypeVar("Answer")

ENTRY = "main"


class Function:
    """The one function of a model, compiled for this machine.

    Args:
        path: of the `.aimodel`.

    Raises:
        RuntimeError: if the runtime cannot read or compile it.
    """

    def __init__(self, path: Path) -> None:
        from coreai.authoring import AIModelAsset

        executable = AIModelAsset.load(path).executable()
        model = _wait(executable.__aenter__())
        # What is compiled lies in a folder of its own, which goes with this object.
        weakref.finalize(self, _close, executable)
        self._function = model.load_function(ENTRY)

    def __call__(self, inputs: dict[str, Tensor], outputs: list[str]) -> tuple[Tensor, ...]:
        """Return outputs by their names, in this order."""
        from coreai.runtime import NDArray

        given: dict[str, Any] = {name: NDArray(value.numpy()) for name, value in inputs.items()}
        found: dict[str, Any] = _wait(self._function(given))
        # The runtime writes the next outputs where these are.
        return tuple(torch.from_numpy(np.array(found[name].numpy())) for name in outputs)


def require_entry(path: Path) -> None:
    """Refuse a model that Apple's own reader does not find one function in.

    Raises:
        RuntimeError: if it does not; the runtime reads some damaged models all the same.
    """
    from coreai.authoring import AIModelAsset

    summary = AIModelAsset.load(path).summary(include_statistics=False)
    if summary is None or list(summary.function_names) != [ENTRY]:
        raise RuntimeError(f"it has no function {ENTRY!r} alone")


def _wait(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """Return what a coroutine gives; the caller may be in an event loop of its own, as notebooks are."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="core-ai", daemon=True).start()
    return loop


def _close(executable: Any) -> None:
    _wait(executable.__aexit__(None, None, None))
