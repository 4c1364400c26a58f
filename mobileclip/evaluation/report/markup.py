"""HTML that is escaped because there is no other way to make it."""

from __future__ import annotations

import html
from collections.abc import Mapping

import attrs

# Elements without an end tag.
_VOID = frozenset({"br", "img", "meta", "wbr"})


@attrs.frozen
class Markup:
    """Finished HTML; text becomes it by `escape` or inside `element`, never as it is.

    Args:
        html: well-formed.
    """

    html: str


def escape(text: str) -> Markup:
    """Return text that shows as it is, whatever is in it."""
    # Control characters show nothing, and some are not allowed.
    visible = "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)
    return Markup(html.escape(visible, quote=True))


def element(name: str, *children: str | Markup, attributes: Mapping[str, str] | None = None) -> Markup:
    """Return an element; texts among its children, and the values of its attributes, are escaped.

    Args:
        name: of the element.
        children: texts and elements, in order.
        attributes: by name.
    """
    written = "".join(f' {key}="{escape(value).html}"' for key, value in (attributes or {}).items())
    if name in _VOID:
        assert not children, f"{name} has no content"
        return Markup(f"<{name}{written}>")
    inner = "".join(one.html if isinstance(one, Markup) else escape(one).html for one in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def join(*parts: Markup) -> Markup:
    """Return one piece of HTML after the other."""
    return Markup("\n".join(one.html for one in parts))
