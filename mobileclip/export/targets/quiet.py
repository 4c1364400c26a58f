"""Silences warnings of PyTorch's quantisation and of libraries built on it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mobileclip.terminal.silence import SILENCING


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what libraries log and warn of while they are imported and work.

    torchao tells of its own kernels, for other processors, that it cannot load, and PyTorch of what torchao and
    ExecuTorch do not do as it wants by now. ExecuTorch sets up the root logger, and that is undone.
    """
    with SILENCING:
        root = logging.getLogger()
        level, disabled, handlers = root.level, root.manager.disable, list(root.handlers)
        logging.disable(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(disabled)
            root.setLevel(level)
            root.handlers[:] = handlers
