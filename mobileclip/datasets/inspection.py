"""Writes HTML pages of images, and shows one sample of a shard: members, augmentations, similarities."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import attrs
import numpy as np
from PIL import Image, ImageDraw

from mobileclip import storage
from mobileclip.data.augmentation.operations import operation_of
from mobileclip.data.augmentation.policy import AugmentationParams, datacompdr_augmentation
from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.transform import ImageSource, load_image
from mobileclip.data.samples.members import RECORD, parse_reinforced_sample, parse_sample
from mobileclip.data.samples.readers import Embeddings
from mobileclip.data.samples.sample import ImageTextSample, ReinforcedSample, check_source_image, hash_image
from mobileclip.data.shards.files import RawSample, parse, read_shard
from mobileclip.data.shards.sidecars import ReinforcementCard, find_card
from mobileclip.data.skips import BadSampleError, Skip
from mobileclip.registry import nearest
from mobileclip.storage import atomic_write, printable
from mobileclip.terminal import say

SIDE = 416
"""Longer side of a thumbnail, in pixels. Pages show thumbnails at half size, which is sharp on high-DPI screens."""
PAPER = (252, 251, 248)
"""Background colour of transparent images."""
_QUALITY = 80
_MOST_LETTERS = 4_096
# Letters of a name to show; the end of a name tells more than its beginning.
_MOST_OF_NAME, _HEAD, _TAIL = 60, 20, 39
_STYLE = """
:root { color-scheme: light dark; --faint: #6b7079; --rule: #d8d6d0; }
@media (prefers-color-scheme: dark) { :root { --faint: #a2a7b0; --rule: #3c3f45; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
ul { list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(13rem, calc(50% - 0.5rem)), 1fr)); }
li { min-width: 0; font-size: 0.85rem; } li div:first-of-type { font-weight: 600; font-size: 1rem; }
img { max-width: 100%; height: auto; border-radius: 4px; display: block; }
p { color: var(--faint); font-size: 0.85rem; margin: 0.2rem 0; }
"""


@attrs.frozen(kw_only=True, eq=False)
class Thumbnail:
    """An image on a page, with lines of text below the image.

    Args:
        image: image of any size; None for text only.
        lines: lines of text below the image; the first line has the largest font.
        name: file name below the lines; empty for no name. The page shortens a long name, and shows the full name
            as a tooltip.
    """

    image: Image.Image | None
    lines: tuple[str, ...]
    name: str = ""


@attrs.frozen(kw_only=True, eq=False)
class Section:
    """A part of an HTML page: a heading with notes and images.

    Args:
        title: the heading; empty for no heading.
        notes: notes below the heading, one paragraph each.
        thumbnails: images with their texts, side by side.
    """

    title: str = ""
    notes: tuple[str, ...] = ()
    thumbnails: Sequence[Thumbnail] = ()


def load_shown(source: ImageSource, *, orient: bool = True, reduce: int = 1) -> Image.Image:
    """Load an image for display, with a paper-coloured background behind transparent pixels.

    Args:
        source: see `load_image`.
        orient: see `load_image`. Use False to draw stored crops on the image, because crops refer to the image
            without EXIF rotation.
        reduce: see `load_image`.

    Raises:
        ImageError: if the image cannot be read.
    """
    return load_image(source, orient=orient, background=PAPER, reduce=reduce)


def write_images(path: Path, title: str, sections: Iterable[Section], *, notes: Sequence[str] = ()) -> None:
    """Write an HTML page of images, with escaped text.

    Args:
        path: path of the HTML file. The function replaces the file atomically, and creates a missing folder.
        title: title and first heading of the page.
        sections: sections of the page, consumed one at a time.
        notes: notes below the title, one paragraph each.

    Raises:
        OSError: if the page cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        for line in _lines(title, sections, notes):
            stream.write(f"{line}\n".encode())


def _lines(title: str, sections: Iterable[Section], notes: Sequence[str]) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield f"<title>{_shown(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{_shown(title)}</h1>"
    yield from (f"<p>{_shown(note)}</p>" for note in notes)
    for section in sections:
        yield "<section>"
        if section.title:
            yield f"<h2>{_shown(section.title)}</h2>"
        yield from (f"<p>{_shown(note)}</p>" for note in section.notes)
        if section.thumbnails:
            yield "<ul>"
            yield from map(_item, section.thumbnails)
            yield "</ul>"
        yield "</section>"
    yield "</main>\n</body>\n</html>"


def _item(one: Thumbnail) -> str:
    lines = "".join(f"<div>{_shown(line)}</div>" for line in one.lines)
    if one.name:
        short = (
            one.name
            if len(one.name) <= _MOST_OF_NAME
            else f"{one.name[:_HEAD]}\N{HORIZONTAL ELLIPSIS}{one.name[-_TAIL:]}"
        )
        lines += f'<div title="{_shown(one.name)}">{_shown(short)}</div>'
    return f"<li>{'' if one.image is None else _image(one.image)}{lines}</li>"


def _image(image: Image.Image) -> str:
    small, stream = image.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(stream, "WEBP", quality=_QUALITY)
    address = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
    width, height = (max(1, side // 2) for side in small.size)
    return f'<img src="{address}" width="{width}" height="{height}" alt="" loading="lazy">'


def _shown(text: str) -> str:
    # A name cannot change the text direction of the rest of the page.
    return escape(printable(text, limit=_MOST_LETTERS))


# Side of an augmented view, in pixels, if no card states it.
_VIEW_SIDE = 224
# Effect of an operation with a positive and with a negative magnitude.
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
    """Cosine similarities between a caption and the augmented images, for one teacher.

    Args:
        teacher: name of the teacher.
        least: minimum cosine similarity over the augmentations.
        mean: mean cosine similarity.
        greatest: maximum cosine similarity.
    """

    teacher: str
    least: float
    mean: float
    greatest: float


@attrs.frozen(kw_only=True)
class Caption:
    """A caption and its similarity to the image, for each teacher.

    Args:
        source: `real`, or the name of the set of synthetic captions.
        text: text of the caption.
        similarities: similarities, one entry per teacher; empty for plain shards.
    """

    source: str
    text: str
    similarities: tuple[Similarity, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class Inspection:
    """A sample with the result of a replay check and the similarities of its captions.

    Args:
        shard: path or URL of the sample's shard.
        sample: the plain or reinforced sample.
        members: number of bytes of each member of the sample, by extension.
        image: decoded image; None for a missing or broken image.
        problem: reason why the augmentations cannot be replayed; empty if replay is possible.
        card: reinforcement card in the shard's folder; None without a card.
        teachers: name and embedding columns of every teacher.
        captions: all captions of the sample.
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
        """The stored augmentations; empty for plain shards."""
        return tuple(self.sample.augmentations) if isinstance(self.sample, ReinforcedSample) else ()


def inspect_sample(shard: str | os.PathLike[str], key: str | None = None) -> Inspection:
    """Inspect one sample of a shard.

    Args:
        shard: path or URL of a shard in any layout.
        key: key of the sample; None for the first sample.

    Raises:
        ValueError: if the shard cannot be read or has no sample with this key, or the sample is malformed.
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
    teachers: tuple[tuple[str, slice], ...] = ()
    if isinstance(sample, ReinforcedSample):
        fits = card is not None and sum(card.teacher_dims) == sample.dim
        named = [(one.name, one.dim) for one in card.teachers] if card and fits else [("all teachers", sample.dim)]
        ends = np.cumsum([dim for _, dim in named]).tolist()
        teachers = tuple((name, slice(end - dim, end)) for (name, dim), end in zip(named, ends, strict=True))
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
    """Describe the crop of an augmentation in words: size, position, and share of the image's area.

    Args:
        params: the augmentation.
        size: width and height of the image in pixels; None to omit the share of the area.
    """
    top, left, height, width = params.crop
    share = f", {width * height / (size[0] * size[1]):.0%}" if size else ""
    return f"{width} x {height} at ({left}, {top}){share}"


def describe_operations(params: AugmentationParams) -> tuple[str, ...]:
    """Describe the operations of an augmentation in words, in order of application."""
    words = []
    for stored, magnitude in params.operations:
        operation = operation_of(stored)
        # Replay truncates translations to whole pixels.
        strength = int(abs(magnitude)) if operation.translates else abs(magnitude)
        known = _OPERATIONS.get(operation.name)
        words.append(f"{operation.name} {magnitude:g}" if known is None else known[magnitude < 0].format(strength))
    return tuple(words)


def print_inspection(inspection: Inspection) -> None:
    """Print an inspection as text, on standard output.

    Args:
        inspection: result of `inspect_sample`.
    """
    for section in _sections(inspection, is_drawn=False):
        rows = ["  ".join(one.lines) for one in section.thumbnails]
        say("\n  ".join([section.title, *section.notes, *rows]) + "\n")


def write_inspection(path: Path, inspection: Inspection) -> None:
    """Write an HTML page of a sample: the image with its crops, all replayed augmentations, and the captions.

    Args:
        path: path of the HTML file; the function replaces the file atomically.
        inspection: result of `inspect_sample`.

    Raises:
        OSError: if the page cannot be written.
    """
    write_images(path, inspection.sample.key, _sections(inspection, is_drawn=True))


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
    raise ValueError(f"{shard} holds {len(keys)} samples, but no sample with the key {key!r}; {hint}")


def _decode(sample: ImageTextSample) -> tuple[Image.Image | None, str]:
    if sample.image is None:
        return None, "the sample has no image; `mobileclip data join` adds images from other shards"
    image = None
    try:
        image = load_shown(sample.image, orient=not isinstance(sample, ReinforcedSample))
        if isinstance(sample, ReinforcedSample):
            check_source_image(sample, sample.image, image.size)
    except ImageError as error:
        return None, error.message
    except BadSampleError as error:
        return image, error.detail
    return image, ""


def _captions(sample: ImageTextSample, teachers: Sequence[tuple[str, slice]]) -> Iterator[Caption]:
    if not isinstance(sample, ReinforcedSample):
        yield from (Caption(source="real", text=text) for text in sample.captions)
        return
    sets = {"real": (sample.captions, sample.text_emb)}
    sets |= {name: (texts, sample.syn_text_emb[name]) for name, texts in sample.syn_captions.items()}
    for name, (texts, rows) in sets.items():
        for text, row in zip(texts, rows, strict=False):
            similarities = tuple(_similarity(*teacher, sample.image_emb, row) for teacher in teachers)
            yield Caption(source=name, text=text, similarities=similarities)


def _similarity(teacher: str, columns: slice, images: Embeddings, text: Embeddings) -> Similarity:
    images, text = images[:, columns], text[columns]
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(text)
    cosines = images @ text / np.maximum(norms, np.finfo(np.float32).tiny)
    least, mean, greatest = (float(value) for value in (cosines.min(), cosines.mean(), cosines.max()))
    return Similarity(teacher=teacher, least=least, mean=mean, greatest=greatest)


def _sections(inspection: Inspection, *, is_drawn: bool) -> Iterator[Section]:
    """Yield the sections of a sample's description, with or without images."""
    sample, image, card = inspection.sample, inspection.image, inspection.card
    shown = [] if image is None or not is_drawn else [_with_crops(image, inspection.augmentations)]
    yield Section(title=f"Sample {sample.key}", notes=tuple(_facts(inspection)), thumbnails=shown)
    title = "Captions, and their mean cosine similarity with the augmented images"
    captions = [Thumbnail(image=None, lines=tuple(_said(one))) for one in inspection.captions]
    yield Section(title=title if inspection.teachers else "Captions", thumbnails=captions)
    if not isinstance(sample, ReinforcedSample):
        return
    policy = (card and card.augmentation) or datacompdr_augmentation(_VIEW_SIDE)
    views = []
    for params in inspection.augmentations:
        size = params.image_size or (image.size if image else None)
        words = (*(describe_operations(params) or ("the crop alone",)), describe_crop(params, size))
        is_replayed = image is not None and is_drawn and not inspection.problem
        views.append(Thumbnail(image=policy.apply(image, params) if image and is_replayed else None, lines=words))
    if views:
        title = f"Augmentations, {len(views)}: operations, then width x height at (left, top)"
        agreement = None if card is None else card.agreement
        yield Section(
            title=title, notes=() if agreement is None else (f"On the first shard, {agreement}.",), thumbnails=views
        )
    named = (f"teacher {number}: {name}" for number, (name, _) in enumerate(inspection.teachers, 1))
    arrays = {"image_emb": sample.image_emb, "text_emb": sample.text_emb}
    arrays |= {f"{name}_emb": array for name, array in sample.syn_text_emb.items()}
    norms = (_norms(name, array, inspection.teachers) for name, array in arrays.items())
    yield Section(title="Embeddings", notes=(*named, *norms))


def _with_crops(image: Image.Image, augmentations: Sequence[AugmentationParams]) -> Thumbnail:
    """Return a thumbnail of an image with outlined crops, and the image size as text."""
    shown, width = image.copy(), max(1, round(max(image.size) / 200))
    draw = ImageDraw.Draw(shown)
    for params in augmentations:
        top, left, height, wide = params.crop
        draw.rectangle((left, top, left + wide - 1, top + height - 1), None, (214, 58, 0), width)
    return Thumbnail(image=shown, lines=(f"{image.width} x {image.height} pixels",))


def _facts(inspection: Inspection) -> Iterator[str]:
    sample, image = inspection.sample, inspection.image
    yield f"shard {inspection.shard}"
    if sample.url is not None:
        yield f"url {sample.url}"
    if image is not None and sample.image is not None:
        yield f"image {image.width} x {image.height}, {sample.image_extension}, {len(sample.image):,} bytes"
        yield f"sha256 {hash_image(sample.image)}"
    if isinstance(sample, ReinforcedSample):
        stated = " and ".join(["size"] * bool(sample.image_size) + ["hash"] * bool(sample.image_sha256))
        yield f"made for an image {f'of the stated {stated}' if stated else 'of unknown size and hash'}"
    yield "members " + ", ".join(f"{name} {size:,}" for name, size in sorted(inspection.members.items()))
    if inspection.problem:
        yield f"cannot be replayed: {inspection.problem}"


def _said(caption: Caption) -> Iterator[str]:
    yield from (caption.text, "real" if caption.source == "real" else f"synthetic, {caption.source}")
    for one in caption.similarities:
        yield f"{one.mean:.3f} by {one.teacher}, from {one.least:.3f} to {one.greatest:.3f}"


def _norms(name: str, array: Embeddings, teachers: Sequence[tuple[str, slice]]) -> str:
    norms = [np.linalg.norm(array[:, columns], axis=1) for _, columns in teachers]
    ranges = (f"{one.min():.4f} to {one.max():.4f}" if len(one) else "none" for one in norms)
    return f"{name} {' x '.join(map(str, array.shape))}, norms {', '.join(ranges)}"
