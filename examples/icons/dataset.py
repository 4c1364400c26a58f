"""Makes an image-text data set of icons: renders, captions and splits icons, and writes shards in the public layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from attrs import validators
from PIL import Image

from examples.icons.reading import Icon, IconSet, read_sets
from examples.icons.sets import ALL_SETS, ICON_SETS
from examples.icons.splits import TITLES, divide
from examples.quickstart.emoji.captions import chosen_keywords, listed, with_article
from examples.quickstart.emoji.on_disk import DrawnDataset, claim, is_finished, load_finished, write_card, write_split
from examples.quickstart.emoji.rendering import Rendering, render_sets
from examples.quickstart.emoji.sources import NAMES_PACKAGE, download, with_version
from examples.quickstart.emoji.splits import chance
from mobileclip.data import ImageTextSample, decode_image
from mobileclip.serialization import to_json

_SET_NAMES = tuple(one.name for one in ALL_SETS)


def _known(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    unknown = [name for name in value if name not in _SET_NAMES]
    if unknown or len(set(value)) < 2 or len(set(value)) != len(value):
        raise ValueError(
            f"{attribute.name} must be two or more different sets of {', '.join(_SET_NAMES)}; got {', '.join(value)}"
        )


@attrs.frozen(kw_only=True)
class IconDataSpec:
    """Settings of the data set.

    Args:
        output: folder of the data set.
        sets: icon sets to use.
        image_size: side of the images, in pixels.
        max_words: maximum number of words in a name; the data set leaves out icons with longer names.
        held_out_set: icon set that training never sees; without effect if not in `sets`.
        min_sets: a name in at least this number of sets is a class of the held-out parts.
        name_fraction: fraction of the classes that training never sees.
        picture_fraction: fraction of the other classes of which one set's drawing is held out.
        validation_share: fraction of the held-out drawings of seen names for validation.
        duplicate_rms: maximum root mean squared difference of near duplicates, between 16 x 16 grey levels (0 to 1).
        samples_per_shard: number of images per shard.
        num_processes: number of drawings to render in parallel.
        seed: seed of all random choices, and of the order of the samples.

    Raises:
        ValueError: if a number is out of range, or a set is unknown.
    """

    output: Path = Path("outputs/icons")
    sets: tuple[str, ...] = attrs.field(default=_SET_NAMES, validator=_known)
    image_size: int = attrs.field(default=64, validator=validators.ge(16))
    max_words: int = attrs.field(default=4, validator=validators.gt(0))
    held_out_set: str = attrs.field(default="iconoir", validator=validators.in_(tuple(one.name for one in ICON_SETS)))
    min_sets: int = attrs.field(default=3, validator=validators.ge(2))
    name_fraction: float = attrs.field(default=0.1, validator=[validators.gt(0), validators.lt(1)])
    picture_fraction: float = attrs.field(default=0.5, validator=[validators.gt(0), validators.lt(1)])
    validation_share: float = attrs.field(default=0.3, validator=[validators.gt(0), validators.lt(1)])
    duplicate_rms: float = attrs.field(default=0.05, validator=[validators.ge(0), validators.lt(1)])
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))
    num_processes: int = attrs.field(default=2, validator=validators.gt(0))
    seed: int = 0


def build_dataset(spec: IconDataSpec) -> DrawnDataset:
    """Download, render, caption, split and write the data set; a second call skips finished steps.

    Args:
        spec: settings of the data set.

    Raises:
        ValueError: if the network or npm fails, or the folder holds a data set with other settings.
    """
    claim(spec.output, attrs.evolve(spec, output=Path()))
    if not is_finished(spec.output):
        styles = [one for one in ALL_SETS if one.name in spec.sets]
        modules = download(spec.output / "download", styles)
        build_from_sets(spec, read_sets(modules, styles, max_words=spec.max_words, seed=spec.seed))
    return load_finished(spec.output, TITLES)


def build_from_sets(spec: IconDataSpec, sets: Sequence[IconSet]) -> None:
    """Render, caption, split and write the icons of the packages, and write the card last."""
    drawings = {one.style.name: {icon.key: (icon.name, icon.svg) for icon in one.icons} for one in sets}
    found = render_sets(spec.output / "renderings", drawings, spec.image_size, num_processes=spec.num_processes)
    renderings = {key: one for several in found.values() for key, one in several.items()}
    icons = [icon for one in sets for icon in one.icons if icon.key in renderings]
    prints = [fingerprint(renderings[icon.key].png) for icon in icons]
    twins = list(near_duplicates(prints, max_rms=spec.duplicate_rms))
    division = divide(
        icons,
        twins,
        held_out_set=spec.held_out_set,
        name_fraction=spec.name_fraction,
        picture_fraction=spec.picture_fraction,
        validation_share=spec.validation_share,
        min_sets=spec.min_sets,
        seed=spec.seed,
    )
    styles = {one.style.name: one for one in sets}
    entries = {}
    for name, indices in division.members.items():
        # Shards are read in order, so neighbours must not be alike.
        chosen = sorted((icons[index] for index in indices), key=lambda icon: chance(spec.seed, "order", icon.key))
        entry = write_split(
            spec.output,
            name,
            [_sample(spec, icon, styles[icon.set_name], renderings[icon.key]) for icon in chosen],
            class_names=division.class_names[name],
            samples_per_shard=spec.samples_per_shard,
        )
        entries[name] = {**entry, "left_out_as_near_duplicates": division.num_twins.get(name, 0)}
    card = {
        **_origin(spec, sets, icons),
        "num_pairs_of_near_duplicates": len(twins),
        "num_in_no_split": division.num_unused,
        "splits": entries,
    }
    write_card(spec.output, card)


def _sample(spec: IconDataSpec, icon: Icon, one: IconSet, rendering: Rendering) -> ImageTextSample:
    return ImageTextSample(
        key=icon.key,
        captions=(keyword_caption(icon, seed=spec.seed),),
        syn_captions={"syn_text": synthetic_captions(icon, rendering)},
        image=rendering.png,
        image_extension="png",
        metadata={
            "label": icon.name,
            "set": icon.set_name,
            "set_title": one.style.title,
            "source": icon.source,
            "kind": icon.kind,
            "licence": one.licence["licence"].get("spdx", ""),
        },
    )


def _origin(spec: IconDataSpec, sets: Sequence[IconSet], icons: Sequence[Icon]) -> dict[str, Any]:
    """Return the sources of the images and their licences."""
    drawn = Counter(icon.set_name for icon in icons)
    return {
        "name": "icons and emoji of many sets with their names and keywords",
        "spec": json.loads(to_json(attrs.evolve(spec, output=Path()))),
        "num_pictures": len(icons),
        "num_names": len({icon.name for icon in icons}),
        "sources": [
            {
                "set": one.style.name,
                "title": one.style.title,
                "num_drawings": one.num_drawings,
                "num_pictures": drawn[one.style.name],
                **one.licence,
            }
            for one in sets
        ],
        "names": {"package": with_version(NAMES_PACKAGE), "licence": {"title": "MIT", "spdx": "MIT"}},
        "notes": (
            "The drawings were rendered on white and not changed otherwise. Those under CC BY and CC BY-SA ask for the "
            "attribution above wherever they are shown, and CC BY-SA for the same licence. Icons whose names or "
            "categories say that they are trade marks were left out."
        ),
    }


# Ink as a share of the image: below the first, an icon consists of lines; above the second, of filled shapes.
_LINES, _FILLED = 0.2, 0.35
# From this ratio of sides on, captions call a drawing wide or tall.
_WIDE = 1.6


def keyword_caption(icon: Icon, *, seed: int) -> str:
    """Return one to four of the icon's keywords in random order: a noisy caption, like captions on the web."""
    return chosen_keywords(icon.keywords, key=icon.key, seed=seed)


def synthetic_captions(icon: Icon, rendering: Rendering) -> tuple[str, ...]:
    """Return sentences like a captioner's, composed of name, kind, and measurements of the image."""
    colours = listed(rendering.colours)
    shape = "wide " if rendering.aspect > _WIDE else "tall " if rendering.aspect < 1 / _WIDE else ""
    manner = "line " if rendering.coverage < _LINES else "solid " if rendering.coverage > _FILLED else ""
    named = with_article(icon.name)
    return (
        f"{with_article(f'{shape}{manner}icon')} of {named} in {colours} on a white background",
        f"a simple drawing of {named}",
        f"{named}, from {icon.kind}" if icon.kind else f"a symbol that stands for {icon.name}",
        f"{with_article(f'{shape}{manner}symbol')} in {colours}",
    )


SIDE = 16
_ROWS = 2048


def fingerprint(png: bytes) -> npt.NDArray[np.float32]:
    """Return an image as 16 x 16 grey levels from 0 to 1, row by row."""
    small = decode_image(png).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    levels: npt.NDArray[np.float32] = np.asarray(small, dtype=np.float32).reshape(-1) / np.float32(255)
    return levels


def near_duplicates(prints: Sequence[npt.NDArray[np.float32]], *, max_rms: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs of images whose fingerprints differ by less than `max_rms`, in order.

    The function compares all pairs, in blocks of rows: 40,000 images take a minute on one core, and 400 MB.

    Args:
        prints: fingerprints, one per image.
        max_rms: maximum root mean squared difference of grey levels.
    """
    every = np.stack(prints)
    # Around zero, float32 keeps the digits that small differences need.
    every = every - every.mean(axis=0)
    squares = np.einsum("ij,ij->i", every, every)
    limit = every.shape[1] * max_rms**2
    for start in range(0, len(every), _ROWS):
        rows = every[start : start + _ROWS]
        squared = squares[start : start + _ROWS, None] + squares[None, start:] - 2 * rows @ every[start:].T
        for row, column in np.argwhere(squared < limit):
            if row < column:
                yield start + int(row), start + int(column)
