"""Renderings in shards, one for each set of drawings, so that none is made twice."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import attrs

from examples.quickstart.emoji.rendering import Rendering, render_all
from mobileclip.data import ImageTextSample, read_samples, write_shard
from mobileclip.progress import track


def render_sets(
    folder: Path, drawings: Mapping[str, Mapping[str, tuple[str, str]]], size: int, *, num_processes: int
) -> dict[str, dict[str, Rendering]]:
    """Return the renderings by set and key; a set's are kept in a shard as soon as it is done.

    Args:
        folder: of the shards.
        drawings: by set and key, a name and an SVG; what shows nothing has no rendering.
        size: side in pixels.
        num_processes: how many drawings are rendered at once.
    """
    stores = {name: folder / f"{name}.tar" for name in drawings}
    missing = [name for name in drawings if not stores[name].exists()]
    svgs = [svg for name in missing for _, svg in drawings[name].values()]
    made = render_all(svgs, size, num_processes=num_processes)
    rendered = track(made, total=len(svgs), title="rendering", unit="pictures")
    for name in missing:
        pairs = [(key, label, next(rendered)) for key, (label, _) in drawings[name].items()]
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(stores[name], [as_sample(key, label, one) for key, label, one in pairs if one is not None])
    # Lets the bar reach its end.
    assert next(rendered, None) is None, "every rendering belongs to a set"
    return {
        name: {sample.key: from_sample(sample) for sample in read_samples(str(store))} for name, store in stores.items()
    }


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
