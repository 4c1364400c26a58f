"""Renderings in a shard, so that none is made twice."""

from __future__ import annotations

import base64

import attrs

from examples.quickstart.emoji.rendering import Rendering
from mobileclip.data import ImageTextSample


def as_sample(key: str, label: str, rendering: Rendering) -> ImageTextSample:
    """Return a rendering as a sample of a shard, with what was measured on it as metadata."""
    facts = attrs.asdict(rendering, filter=attrs.filters.exclude("png", "thumbnail"))
    facts["thumbnail"] = base64.b64encode(rendering.thumbnail).decode()
    return ImageTextSample(key=key, captions=(label,), image=rendering.png, image_extension="png", metadata=facts)


def from_sample(sample: ImageTextSample) -> Rendering:
    """Return the rendering that `as_sample` stored."""
    assert sample.image is not None, "renderings are stored with their picture"
    facts = dict(sample.metadata)
    thumbnail = base64.b64decode(facts.pop("thumbnail"))
    return Rendering(png=sample.image, colours=tuple(facts.pop("colours")), thumbnail=thumbnail, **facts)
