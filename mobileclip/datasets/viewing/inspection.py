"""One sample of a shard in readable form: its members, its augmentations, and the teachers' similarities."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
from PIL import Image, ImageDraw

from mobileclip import storage
from mobileclip.data.augmentation.operations import operation_of
from mobileclip.data.augmentation.replay import AugmentationParams, datacompdr_augmentation
from mobileclip.data.images.limits import ImageError
from mobileclip.data.samples.members import RECORD, parse_reinforced_sample, parse_sample
from mobileclip.data.samples.readers import Embeddings
from mobileclip.data.samples.sample import (
    ImageTextSample,
    ReinforcedSample,
    check_source_image,
    hash_image,
)
from mobileclip.data.shards.card import ReinforcementCard, find_card
from mobileclip.data.shards.files import RawSample, parse, read_shard
from mobileclip.data.skips import BadSampleError, Skip
from mobileclip.datasets.viewing.page import Section, Thumbnail, load_shown, write_pictures
from mobileclip.registry import nearest
from mobileclip.terminal import print_table, shown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Column

# Of a view, in pixels, where no card says it.
_VIEW_SIDE = 224
# What an operation does, with a positive magnitude and with a negative one.
_OPERATIONS = {
    "Identity": ("nothing", "nothing"),
    "ShearX": ("shear left {:.2f}", "shear right {:.2f}"),
    "ShearY": ("shear up {:.2f}", "shear down {:.2f}"),
    "TranslateX": ("move right {:.0f} px", "move left {:.0f} px"),
    "TranslateY": ("move down {:.0f} px", "move up {:.0f} px"),
    "Rotate": ("turn left {:g}°", "turn right {:g}°"),
    "Brightness": ("brightness +{:.0%}", "brightness -{:.0%}"),
    "Color": ("colour +{:.0%}", "colour -{:.0%}"),
    "Contrast": ("contrast +{:.0%}", "contrast -{:.0%}"),
    "Sharpness": ("sharpness +{:.0%}", "sharpness -{:.0%}"),
    "Posterize": ("posterize to {:.0f} bits", "posterize to -{:.0f} bits"),
    "Solarize": ("solarize from {:g}", "solarize from -{:g}"),
    "AutoContrast": ("autocontrast", "autocontrast"),
    "Equalize": ("equalize", "equalize"),
}


@attrs.frozen(kw_only=True)
class Similarity:
    """How similar one teacher finds a caption and the augmented images.

    Args:
        teacher: its name.
        least: of the cosine similarities, over the augmentations.
        mean: of them.
        greatest: of them.
    """

    teacher: str
    least: float
    mean: float
    greatest: float


@attrs.frozen(kw_only=True)
class Caption:
    """A caption, and how similar each teacher finds it to the image.

    Args:
        source: `real`, or the name of its synthetic set.
        text: of it.
        similarities: of every teacher; none in plain shards.
    """

    source: str
    text: str
    similarities: tuple[Similarity, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class Inspection:
    """A sample with what can be said about it.

    Args:
        shard: where it is.
        sample: the plain or reinforced sample.
        members: extension and number of bytes of everything under its key.
        image: decoded; None where there is none, or it cannot be.
        problem: why the augmentations cannot be replayed; empty where they can.
        card: beside the shard, if there is one.
        teachers: name and columns of every teacher.
        captions: all of them.
    """

    shard: str
    sample: ImageTextSample
    members: Mapping[str, int]
    image: Image.Image | None
    problem: str
    card: ReinforcementCard | None
    teachers: tuple[tuple[str, slice], ...]
    captions: tuple[Caption, ...]

    @property
    def augmentations(self) -> tuple[AugmentationParams, ...]:
        """The stored augmentations; none in plain shards."""
        return tuple(self.sample.augmentations) if isinstance(self.sample, ReinforcedSample) else ()


def inspect_sample(shard: str | os.PathLike[str], key: str | None = None) -> Inspection:
    """Return what a sample of a shard holds.

    Args:
        shard: path or URL of a shard in any layout.
        key: of the sample; the first one by default.

    Raises:
        ValueError: if the shard cannot be read, there is no such sample, or it is malformed.
    """
    shard = os.fspath(shard)
    raw = _find(shard, key)
    reinforced = "paug.json" in raw.members or RECORD in raw.members
    skips: list[Skip] = []
    sample = parse(raw, parse_reinforced_sample if reinforced else parse_sample, skips.append)
    if sample is None:
        raise ValueError(f"{skips[0].key}: {skips[0].reason}: {skips[0].detail}")
    image, problem = _decode(sample)
    card = find_card(shard.removesuffix(storage.file_name(shard)) or ".")
    teachers = _teachers(sample, card)
    return Inspection(
        shard=shard,
        sample=sample,
        members={name: len(content) for name, content in raw.members.items()},
        image=image,
        problem=problem,
        card=card,
        teachers=teachers,
        captions=tuple(_captions(sample, teachers)),
    )


def describe_crop(params: AugmentationParams, size: tuple[int, int] | None) -> str:
    """Return a crop in words: width and height, where it starts, and its share of the image.

    Args:
        params: the augmentation.
        size: width and height of the image, where they are known.
    """
    top, left, height, width = params.crop
    share = f", {width * height / (size[0] * size[1]):.0%}" if size else ""
    return f"{width} x {height} at ({left}, {top}){share}"


def describe_operations(params: AugmentationParams) -> tuple[str, ...]:
    """Return the operations in words, in the order in which they are applied."""
    words = []
    for stored, magnitude in params.operations:
        operation = operation_of(stored)
        # Translations are cut to whole pixels when they are applied.
        strength = int(abs(magnitude)) if operation.translates else abs(magnitude)
        known = _OPERATIONS.get(operation.name)
        words.append(f"{operation.name} {magnitude:g}" if known is None else known[magnitude < 0].format(strength))
    return tuple(words)


def print_inspection(inspection: Inspection, *, min_width: int = 100) -> None:
    """Print everything for a person to read, on standard output.

    Args:
        inspection: of a sample.
        min_width: columns that a narrower terminal, or none, is taken to have.
    """
    from rich.text import Text

    for title, *contents in _sections(inspection):
        print_table(Text(str(title), style="bold"), *contents, "", min_width=min_width)


def write_inspection(path: Path, inspection: Inspection) -> None:
    """Write a page of a sample: the image with its crops, every stored augmentation replayed, and the captions.

    Args:
        path: the HTML file; replaced whole.
        inspection: of a sample with an image or without, reinforced or plain.

    Raises:
        OSError: if it cannot be written.
    """
    image, sample = inspection.image, inspection.sample
    facts = [inspection.problem] if inspection.problem else []
    facts += [sample.url] if sample.url is not None else []
    names = ", ".join(name for name, _ in inspection.teachers)
    sections = [Section(title="Image", notes=tuple(facts), pictures=() if image is None else [_with_crops(inspection)])]
    if inspection.augmentations:
        views = [_replayed(inspection, one) for one in inspection.augmentations]
        sections.append(Section(title="Augmentations", pictures=views))
    captions = tuple(
        Thumbnail(
            picture=None,
            lines=(
                one.text,
                "real" if one.source == "real" else f"synthetic, {one.source}",
                *(f"{each.mean:.3f} by {each.teacher}" for each in one.similarities),
            ),
        )
        for one in inspection.captions
    )
    scored = any(one.similarities for one in inspection.captions)
    note = (f"below each its mean cosine similarity with the augmented images, by {names}",) if scored else ()
    sections.append(Section(title="Captions", notes=note, pictures=captions))
    write_pictures(path, sample.key, sections, notes=(inspection.shard,))


def _with_crops(inspection: Inspection) -> Thumbnail:
    """Return the image with its crops outlined, and its size."""
    image = inspection.image
    assert image is not None, "there is an image to draw on"
    shown, width = image.copy(), max(1, round(max(image.size) / 200))
    draw = ImageDraw.Draw(shown)
    for params in inspection.augmentations:
        top, left, height, wide = params.crop
        draw.rectangle((left, top, left + wide - 1, top + height - 1), None, (214, 58, 0), width)
    return Thumbnail(picture=shown, lines=(f"{image.width} x {image.height} pixels",))


def _replayed(inspection: Inspection, params: AugmentationParams) -> Thumbnail:
    """Return an augmentation in words, with its picture where it can be replayed."""
    image, card = inspection.image, inspection.card
    size = params.image_size or (image.size if image else None)
    words = (*(describe_operations(params) or ("the crop alone",)), describe_crop(params, size))
    if image is None or inspection.problem:
        return Thumbnail(picture=None, lines=words)
    policy = None if card is None else card.augmentation
    return Thumbnail(picture=(policy or datacompdr_augmentation(_VIEW_SIDE)).apply(image, params), lines=words)


def _find(shard: str, key: str | None) -> RawSample:
    skips: list[Skip] = []
    keys: list[str] = []
    for raw in read_shard(shard, skips.append):
        if key in (None, raw.key):
            return raw
        keys.append(raw.key)
    if skips:
        raise ValueError(f"{shard}: {skips[0].reason}, {skips[0].detail}")
    if key is None or not keys:
        raise ValueError(f"{shard} holds no samples")
    hint = nearest(key, keys, otherwise=f"the first is {keys[0]!r}, the last {keys[-1]!r}")
    raise ValueError(f"{shard} holds {len(keys)} samples, but none with the key {key!r}; {hint}")


def _decode(sample: ImageTextSample) -> tuple[Image.Image | None, str]:
    if sample.image is None:
        return None, "there is no image here; `mobileclip data join` brings it from the shards that have the images"
    try:
        image = load_shown(sample.image, orient=not isinstance(sample, ReinforcedSample))
    except ImageError as error:
        return None, error.message
    if isinstance(sample, ReinforcedSample):
        try:
            check_source_image(sample, sample.image, image.size)
        except BadSampleError as error:
            return image, error.detail
    return image, ""


def _teachers(sample: ImageTextSample, card: ReinforcementCard | None) -> tuple[tuple[str, slice], ...]:
    if not isinstance(sample, ReinforcedSample):
        return ()
    if card is None or sum(card.teacher_dims) != sample.dim:
        return (("all teachers", slice(0, sample.dim)),)
    ends = np.cumsum(card.teacher_dims).tolist()
    names = (teacher.name for teacher in card.teachers)
    return tuple((name, slice(end - dim, end)) for name, dim, end in zip(names, card.teacher_dims, ends, strict=True))


def _captions(sample: ImageTextSample, teachers: Sequence[tuple[str, slice]]) -> Iterator[Caption]:
    sets = {"real": sample.captions, **sample.syn_captions}
    for name, texts in sets.items():
        for index, text in enumerate(texts):
            similarities: tuple[Similarity, ...] = ()
            if isinstance(sample, ReinforcedSample):
                row = sample.text_emb[index] if name == "real" else sample.syn_text_emb[name][index]
                similarities = tuple(_similarity(*teacher, sample.image_emb, row) for teacher in teachers)
            yield Caption(source=name, text=text, similarities=similarities)


def _similarity(teacher: str, columns: slice, images: Embeddings, text: Embeddings) -> Similarity:
    images, text = images[:, columns], text[columns]
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(text)
    cosines = images @ text / np.maximum(norms, np.finfo(np.float32).tiny)
    least, mean, greatest = (float(value) for value in (cosines.min(), cosines.mean(), cosines.max()))
    return Similarity(teacher=teacher, least=least, mean=mean, greatest=greatest)


def _sections(inspection: Inspection) -> Iterator[tuple[RenderableType, ...]]:
    yield "Sample", _about(inspection)
    yield _captions_title(inspection), _table_of_captions(inspection)
    if inspection.augmentations:
        agreement = None if inspection.card is None else inspection.card.agreement
        measured = () if agreement is None else (f"On the first shard, {agreement}.",)
        yield f"Augmentations, {len(inspection.augmentations)}", *measured, _table_of_augmentations(inspection)
    if isinstance(inspection.sample, ReinforcedSample):
        names = (f"teacher {number}: {name}" for number, (name, _) in enumerate(inspection.teachers, 1))
        yield "Embeddings", "\n".join(names), _table_of_embeddings(inspection.sample, inspection.teachers)


def _captions_title(inspection: Inspection) -> str:
    if not inspection.teachers:
        return "Captions"
    return "Captions, and their cosine similarity with the augmented images: mean, least to greatest"


def _about(inspection: Inspection) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    sample, image = inspection.sample, inspection.image
    table = Table.grid(padding=(0, 2, 0, 0))
    lines = {"key": sample.key, "shard": inspection.shard}
    if sample.url is not None:
        lines["url"] = sample.url
    if image is not None and sample.image is not None:
        lines["image"] = f"{image.width} x {image.height}, {sample.image_extension}, {len(sample.image):,} bytes"
        lines["sha256"] = hash_image(sample.image)
    if isinstance(sample, ReinforcedSample):
        stated = "size" if sample.image_size else ""
        stated += (" and " if stated else "") + ("hash" if sample.image_sha256 else "")
        lines["made for"] = f"an image of the stated {stated}" if stated else "an image whose size and hash are unknown"
    lines["members"] = ", ".join(f"{name} {size:,}" for name, size in sorted(inspection.members.items()))
    for name, text in lines.items():
        table.add_row(name, Text(shown(text), overflow="fold"))
    if inspection.problem:
        table.add_row(Text("replay", "red"), Text(shown(inspection.problem), "red", overflow="fold"))
    return table


def _table_of_captions(inspection: Inspection) -> RenderableType:
    from rich.table import Column
    from rich.text import Text

    cosines = (Column(f"cosine, teacher {number}", no_wrap=True) for number in range(1, len(inspection.teachers) + 1))
    rows: list[tuple[RenderableType, ...]] = []
    for caption in inspection.captions:
        values = (f"{one.mean:.2f}  {one.least:.2f} to {one.greatest:.2f}" for one in caption.similarities)
        rows.append((caption.source, Text(shown(caption.text)), *values))
    return _table((Column("set", no_wrap=True), Column("caption", overflow="fold", min_width=24), *cosines), rows)


def _table_of_augmentations(inspection: Inspection) -> RenderableType:
    rows = []
    for number, params in enumerate(inspection.augmentations, 1):
        size = params.image_size or (inspection.image.size if inspection.image else None)
        operations = ", ".join(describe_operations(params)) or "nothing"
        rows.append((str(number), describe_crop(params, size), operations))
    return _table(("", "crop: width x height at (left, top)", "then"), rows)


def _table_of_embeddings(sample: ReinforcedSample, teachers: Sequence[tuple[str, slice]]) -> RenderableType:
    arrays = {"image_emb": sample.image_emb, "text_emb": sample.text_emb}
    arrays |= {f"{name}_emb": array for name, array in sample.syn_text_emb.items()}
    rows = []
    for name, array in arrays.items():
        norms = [np.linalg.norm(array[:, columns], axis=1) for _, columns in teachers]
        ranges = (f"{one.min():.4f} to {one.max():.4f}" if len(one) else "none" for one in norms)
        rows.append((name, " x ".join(map(str, array.shape)), *ranges))
    return _table(("array", "shape", *(f"norms, teacher {number}" for number in range(1, len(teachers) + 1))), rows)


def _table(titles: Iterable[Column | str], rows: Iterable[Iterable[RenderableType]]) -> RenderableType:
    from rich.table import Table

    table = Table(*titles, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table
