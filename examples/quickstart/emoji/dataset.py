"""Makes the emoji data set: renders, captions and splits drawings of six vendors, and writes shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from attrs import validators

from examples.quickstart.emoji.captions import keyword_caption, real_captions, synthetic_captions
from examples.quickstart.emoji.concepts import Concept, join_names, read_concepts
from examples.quickstart.emoji.on_disk import DrawnDataset, claim, is_finished, load_finished, write_card, write_split
from examples.quickstart.emoji.rendering import THUMBNAIL_SIDE, Rendering, render_sets
from examples.quickstart.emoji.sources import (
    NAMES_PACKAGE,
    STYLES,
    DrawingSet,
    download,
    read_drawings,
    with_version,
)
from examples.quickstart.emoji.splits import SPLITS, TEST_CONCEPTS, TRAIN, Picture, chance, split_pictures
from mobileclip.data import ImageTextSample
from mobileclip.serialization import to_json

_TITLES = {
    "train": "training",
    "test_renderings": "unseen drawings of seen concepts",
    "test_style": "unseen style",
    "test_concepts": "unseen concepts",
}


@attrs.frozen(kw_only=True)
class EmojiDataSpec:
    """Settings of the data set. Captions for training are noisy: a few keywords of each image's concept.

    Args:
        image_size: side of the images, in pixels.
        held_out_style: the vendor that training never sees.
        concept_share: fraction of the families of concepts in the data set; a model learns fewer concepts faster.
        concept_fraction: fraction of the families of concepts that training never sees.
        rendering_fraction: fraction of the other families of which one vendor's drawings are held out.
        samples_per_shard: number of images per shard.
        num_processes: number of drawings to render in parallel.
        seed: seed of the splits and of the order of the samples.

    Raises:
        ValueError: if a number is out of range or the style is unknown.
    """

    image_size: int = attrs.field(default=128, validator=validators.ge(16))
    held_out_style: str = attrs.field(
        default="openmoji", validator=validators.in_(tuple(style.name for style in STYLES))
    )
    concept_share: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    concept_fraction: float = attrs.field(default=0.1, validator=[validators.gt(0), validators.lt(1)])
    rendering_fraction: float = attrs.field(default=0.4, validator=[validators.gt(0), validators.lt(1)])
    samples_per_shard: int = attrs.field(default=500, validator=validators.gt(0))
    num_processes: int = attrs.field(default=2, validator=validators.gt(0))
    seed: int = 0


def build_dataset(spec: EmojiDataSpec, output: Path, *, downloads: Path | None = None) -> DrawnDataset:
    """Download, render, caption, split and write the data set; a second call skips finished steps.

    Args:
        spec: settings of the data set.
        output: directory of the data set.
        downloads: directory of downloaded drawings, which several data sets may share; `output` / "download" if None.

    Raises:
        ValueError: if the network or npm fails, or `output` holds a data set with other settings.
    """
    claim(output, spec)
    if not is_finished(output):
        modules = download(downloads or output / "download")
        sets = [read_drawings(modules, style) for style in STYLES]
        _build(spec, output, read_concepts(modules), sets)
    return load_finished(output, _TITLES)


def _build(spec: EmojiDataSpec, output: Path, concepts: Mapping[str, Concept], sets: Sequence[DrawingSet]) -> None:
    """Render, caption, split and write the downloaded drawings."""
    names = join_names(concepts, sets)
    concepts = {
        code: concept
        for code, concept in concepts.items()
        if chance(spec.seed, "share", concept.family) < spec.concept_share
    }
    drawings = {one.style.name: _drawings(one, concepts, names) for one in sets}
    found = render_sets(output / "renderings", drawings, spec.image_size, num_processes=spec.num_processes)
    renderings = {(style, code): one for style, several in found.items() for code, one in several.items()}
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    pictures = [
        Picture(style=style, code=code, thumbnail=np.frombuffer(rendering.thumbnail, np.uint8).reshape(side))
        for (style, code), rendering in renderings.items()
    ]
    splits = split_pictures(
        pictures,
        concepts,
        held_out_style=spec.held_out_style,
        concept_fraction=spec.concept_fraction,
        rendering_fraction=spec.rendering_fraction,
        seed=spec.seed,
    )
    titles = {drawing_set.style.name: drawing_set.style.title for drawing_set in sets}
    entries = {}
    for name in SPLITS:
        # Shards are read in order, so neighbours must not be alike.
        chosen = sorted(splits[name], key=lambda picture: chance(spec.seed, "order", picture.style, picture.code))
        samples = [
            _sample(
                picture,
                titles[picture.style],
                concepts[picture.code],
                renderings[picture.style, picture.code],
                keywords_seed=spec.seed if name == TRAIN else None,
            )
            for picture in chosen
        ]
        entries[name] = write_split(
            output,
            name,
            samples,
            class_names=_class_names(name, splits, concepts),
            samples_per_shard=spec.samples_per_shard,
        )
    write_card(output, _data_card(spec, sets, entries, len(renderings)))


def _drawings(
    drawing_set: DrawingSet, concepts: Mapping[str, Concept], names: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Return a vendor's first drawing of each concept, with the concept's name, by code."""
    found: dict[str, tuple[str, str]] = {}
    for drawing in drawing_set.drawings:
        code = drawing.code or names.get(drawing.name, "")
        if code in concepts:
            found.setdefault(code, (concepts[code].label, drawing.svg))
    return found


def _sample(
    picture: Picture, title: str, concept: Concept, rendering: Rendering, *, keywords_seed: int | None
) -> ImageTextSample:
    key = f"{picture.style}-{picture.code}"
    return ImageTextSample(
        key=key,
        captions=real_captions(concept)
        if keywords_seed is None
        else (keyword_caption(concept, key=key, seed=keywords_seed),),
        syn_captions={"syn_text": synthetic_captions(concept, rendering)},
        image=rendering.png,
        image_extension="png",
        metadata={
            "label": concept.label,
            "style": picture.style,
            "style_title": title,
            "code": picture.code,
            "group": concept.group,
            "subgroup": concept.subgroup,
        },
    )


def _class_names(
    name: str, splits: Mapping[str, Sequence[Picture]], concepts: Mapping[str, Concept]
) -> tuple[str, ...]:
    pool = splits[TEST_CONCEPTS if name == TEST_CONCEPTS else TRAIN]
    return tuple(sorted({concepts[picture.code].label for picture in pool}))


def _data_card(
    spec: EmojiDataSpec, sets: Sequence[DrawingSet], entries: Mapping[str, Any], num_pictures: int
) -> dict[str, Any]:
    return {
        "name": "emoji drawings of several vendors with their names and keywords",
        "spec": json.loads(to_json(spec)),
        "num_pictures": num_pictures,
        "sources": [{"style": one.style.name, "title": one.style.title, **one.licence} for one in sets],
        "names": {
            "package": with_version(NAMES_PACKAGE),
            "licence": {"title": "MIT", "spdx": "MIT"},
            "author": "Miles Johnson",
        },
        "notes": (
            "The drawings were rendered on white and not changed otherwise. Those under CC BY and CC BY-SA ask for the "
            "attribution above wherever they are shown, and CC BY-SA for the same licence."
        ),
        "splits": entries,
    }
