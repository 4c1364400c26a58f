"""Files of torch, in memory."""

import io
from typing import Any

import torch


def torch_bytes(value: Any, *, archive: bool = True, **options: Any) -> bytes:
    """Return what torch saves of a value: an archive, or the stream of before it."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=archive, **options)
    return stream.getvalue()
