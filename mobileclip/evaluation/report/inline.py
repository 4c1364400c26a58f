"""Pictures inside a page, so that it needs no other file."""

from __future__ import annotations

import base64

from mobileclip.evaluation.report.markup import Markup, element
from mobileclip.evaluation.report.pictures import Picture

_NOT_READABLE = "picture could not be read again"


def tile(picture: Picture | None, alt: str) -> Markup:
    """Return a square with a picture in it, or with the words that there is none.

    Args:
        picture: what to show.
        alt: what it shows, in words.
    """
    if picture is None:
        return element("span", _NOT_READABLE, attributes={"class": "tile"})
    image = element(
        "img",
        attributes={
            "src": data_address(picture.data, "image/webp"),
            "width": str(picture.width),
            "height": str(picture.height),
            "alt": alt,
            "loading": "lazy",
        },
    )
    return element("span", image, attributes={"class": "tile"})


def plot(light: bytes, dark: bytes, *, width: int, height: int, alt: str) -> Markup:
    """Return a figure for light pages and dark ones.

    Args:
        light: SVG.
        dark: SVG.
        width: in pixels.
        height: in pixels.
        alt: what it shows, in words.
    """
    # Which of the two is shown is for the style sheet to say, also when the page is printed.
    images = (
        element(
            "img",
            attributes={
                "class": theme,
                "src": data_address(data, "image/svg+xml"),
                "width": str(width),
                "height": str(height),
                "alt": alt,
            },
        )
        for theme, data in (("on-light", light), ("on-dark", dark))
    )
    return element("figure", *images)


def data_address(data: bytes, kind: str) -> str:
    """Return an address that holds the file itself.

    Args:
        data: the file.
        kind: its media type.
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
