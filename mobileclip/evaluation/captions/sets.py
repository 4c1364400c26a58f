"""Sets of captions of the same pictures, from any data sets that hold them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import attrs

from mobileclip.data import ImageTextSample, Skip, SkipReport
from mobileclip.data.images import ImageError, load_image
from mobileclip.datasets.sources import RowOptions, Source, as_source


@attrs.frozen(kw_only=True, eq=False)
class Captioned:
    """Pictures with sets of captions.

    Args:
        keys: of the pictures.
        images: encoded.
        names: of what they show, where all say it; empty otherwise.
        sets: captions of each picture, at least one, by the set's name.
        report: what could not be used.
    """

    keys: tuple[str, ...]
    images: tuple[bytes, ...]
    names: tuple[str, ...]
    sets: Mapping[str, tuple[tuple[str, ...], ...]]
    report: SkipReport = attrs.field(factory=SkipReport)


def read_caption_sets(
    places: Sequence[str],
    *,
    most: int = 1_000,
    pattern: str | None = None,
    rows: RowOptions = RowOptions(),  # noqa: B008
) -> Captioned:
    """Return the first pictures that all places have by key, with the real and the synthetic captions of each place.

    A set is called like its place, behind which stands the name of the synthetic set: `reinforced syn_text`.

    Args:
        places: data sets, see `as_source`; the first that has a picture gives its image.
        most: pictures.
        pattern: a regular expression in the names of the sets that are taken; None takes all.
        rows: how rows of lists and tables are read.

    Raises:
        ValueError: if the places have no picture in common, or no set has a caption of each.
    """
    report, found = SkipReport(), []
    wanted: set[str] = set()
    for number, place in enumerate(places):
        samples = _samples(as_source(place, rows=rows), report)
        if number == 0:
            found.append({one.key: one for one in islice(samples, most)})
            wanted = set(found[0])
        else:
            found.append({one.key: one for one in samples if one.key in wanted})
    keys = [key for key in found[0] if all(key in one for one in found)]
    images = {
        key: image
        for key in keys
        if (image := _readable(key, dict(zip(places, found, strict=True)), report)) is not None
    }
    keys = list(images)
    if not keys:
        raise ValueError(
            f"{' and '.join(places)} have no picture in common: none of the same key has an image; {report}"
        )
    sets: dict[str, list[tuple[str, ...]]] = {}
    for called, samples_of in zip(_called(places), found, strict=True):
        for key in keys:
            one = samples_of[key]
            for name, texts in {
                called: one.captions,
                **{f"{called} {s}": t for s, t in one.syn_captions.items()},
            }.items():
                if texts and (pattern is None or re.search(pattern, name)):
                    sets.setdefault(name, []).append(tuple(texts))
    whole = {name: tuple(texts) for name, texts in sets.items() if len(texts) == len(keys)}
    if not whole:
        raise ValueError(
            f"no set has a caption of each of the {len(keys):,} pictures: {', '.join(sets) or 'there is none'}"
        )
    labels = [found[0][key].metadata.get("label") for key in keys]
    return Captioned(
        keys=tuple(keys),
        images=tuple(images[key] for key in keys),
        names=tuple(map(str, labels)) if all(isinstance(one, str) for one in labels) else (),
        sets=whole,
        report=report,
    )


def _samples(source: Source, report: SkipReport) -> Iterator[ImageTextSample]:
    for unit in source.units():
        yield from unit.read(report)


def _readable(key: str, found: Mapping[str, Mapping[str, ImageTextSample]], report: SkipReport) -> bytes | None:
    """Return the first image of a key, or None, counted, where there is none or it cannot be decoded."""
    place, image = next(
        ((place, image) for place, one in found.items() if (image := one[key].image) is not None),
        (next(iter(found)), None),
    )
    if image is None:
        report.add(Skip(reason="no_image", key=key, shard=place, detail="no place has an image of it"))
        return None
    try:
        load_image(image)
    except ImageError as error:
        report.add(Skip(reason=error.reason, key=key, shard=place, detail=str(error)))
        return None
    return image


def _called(places: Sequence[str]) -> list[str]:
    """Return short names of places, or the places themselves where these would be the same."""
    short = [Path(place).stem or place for place in places]
    return short if len(set(short)) == len(short) else list(places)
