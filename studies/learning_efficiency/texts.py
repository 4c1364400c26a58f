"""Sentence embeddings of all captions, computed once and kept: every teacher reads the same hundred thousand texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from examples.quickstart.emoji.joint import write_tensors
from examples.quickstart.emoji.trunks import TextTrunk
from mobileclip.progress import Progress
from mobileclip.tensor_files import read_tensors
from mobileclip.terminal import console

_PART = 512


def text_trunk(texts: Sequence[str], path: Path) -> TextTrunk:
    """Return a trunk that knows texts.

    Args:
        texts: what it is to know; it can encode others, too.
        path: file of their features, written where it is missing or of other texts.
    """
    trunk = TextTrunk()
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if path.exists():
        tensors, metadata = read_tensors(path)
        if metadata.get("texts") == digest:
            trunk.remember(texts, tensors["features"])
            return trunk
    with Progress("teachers read captions", total=len(texts), unit="texts", console=console()) as progress:
        for start in range(0, len(texts), _PART):
            part = texts[start : start + _PART]
            trunk(part)
            progress.advance(len(part))
    write_tensors(path, {"features": trunk(texts)}, {"texts": digest})
    return trunk
