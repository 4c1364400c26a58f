"""Pictures on one HTML page, with lines below them: a file that a browser opens, without another file or a script."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import attrs
from PIL import Image

from mobileclip.data.images.transform import ImageSource, load_image
from mobileclip.storage import atomic_write, printable

SIDE = 416
"""Of a thumbnail, in pixels; shown at half of that, so that it is sharp on a screen of two pixels to one."""
PAPER = (252, 251, 248)
"""The colour below transparent pictures."""
_QUALITY = 80
_MOST_LETTERS = 4_096
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
    """A picture on a page, with lines below it.

    Args:
        picture: of any size; None where there is none.
        lines: below it; the first is the largest.
    """

    picture: Image.Image | None
    lines: tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False)
class Section:
    """Pictures below a heading.

    Args:
        title: the heading; empty for none.
        notes: below it, a paragraph each.
        pictures: side by side.
    """

    title: str = ""
    notes: tuple[str, ...] = ()
    pictures: Sequence[Thumbnail] = ()


def load_shown(source: ImageSource, *, orient: bool = True, reduce: int = 1) -> Image.Image:
    """Return a picture as a person looks at it: on paper where it is transparent.

    Args:
        source: see `load_image`.
        orient: see `load_image`; not where stored crops are drawn on it.
        reduce: see `load_image`.

    Raises:
        ImageError: if it cannot be read.
    """
    return load_image(source, orient=orient, background=PAPER, reduce=reduce)


def write_pictures(path: Path, title: str, sections: Iterable[Section], *, notes: Sequence[str] = ()) -> None:
    """Write a page of pictures; texts are shown as they are, whatever they hold.

    Args:
        path: the HTML file; replaced whole. Its folder is made where it is missing.
        title: above the page.
        sections: drawn from one after another.
        notes: below the title, a paragraph each.

    Raises:
        OSError: if it cannot be written.
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
        if section.pictures:
            yield "<ul>"
            yield from map(_item, section.pictures)
            yield "</ul>"
        yield "</section>"
    yield "</main>\n</body>\n</html>"


def _item(one: Thumbnail) -> str:
    lines = "".join(f"<div>{_shown(line)}</div>" for line in one.lines)
    return f"<li>{'' if one.picture is None else _image(one.picture)}{lines}</li>"


def _image(picture: Image.Image) -> str:
    small, stream = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(stream, "WEBP", quality=_QUALITY)
    address = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
    width, height = (max(1, side // 2) for side in small.size)
    return f'<img src="{address}" width="{width}" height="{height}" alt="" loading="lazy">'


def _shown(text: str) -> str:
    # A name cannot turn the direction in which the rest of the page is read.
    return escape(printable(text, limit=_MOST_LETTERS))
