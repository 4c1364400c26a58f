"""What people would type to find an icon, and what a captioner would say of it."""

from __future__ import annotations

from examples.icons.reading import Icon
from examples.quickstart.emoji.captions import chosen_keywords, listed, with_article
from examples.quickstart.emoji.rendering import Rendering

# Of the square: below the first an icon consists of lines, above the second of filled shapes.
_LINES, _FILLED = 0.2, 0.35
# Drawings this much wider than tall, or taller than wide, are called so.
_WIDE = 1.6


def keyword_caption(icon: Icon, *, seed: int) -> str:
    """Return one to four keywords in any order, the same for an icon and a seed: a noisy caption, as the web's are."""
    return chosen_keywords(icon.keywords, key=icon.key, seed=seed)


def synthetic_captions(icon: Icon, rendering: Rendering) -> tuple[str, ...]:
    """Return sentences as a captioner would write them: of name, kind, and what was measured on the picture."""
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
