"""What libraries take seconds for, computed once for the same input where a test asks for it many times."""

import contextlib
import io
from collections.abc import Iterator
from functools import cache

import pytest
import torch


@contextlib.contextmanager
def programs_read_once() -> Iterator[None]:
    """PyTorch reads the same bytes of a program once; each that asks makes a module of its own of them.

    Not around files whose reading does something.
    """
    read = cache(lambda data: load(io.BytesIO(data)))
    load = torch.export.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "load", lambda stream: read(stream.read()))
        yield
