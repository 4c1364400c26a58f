"""The icon sets and their packages. The data card lists the licences in the packages."""

from __future__ import annotations

from examples.quickstart.emoji.sources import STYLES, Style

ICON_SETS = (
    Style(name="bi", package="@iconify-json/bi", title="Bootstrap Icons"),
    Style(name="carbon", package="@iconify-json/carbon", title="Carbon"),
    Style(name="fa6-solid", package="@iconify-json/fa6-solid", title="Font Awesome 6 Solid"),
    Style(name="fluent-ui", package="@iconify-json/fluent", title="Fluent UI System Icons"),
    Style(name="game-icons", package="@iconify-json/game-icons", title="Game Icons"),
    Style(name="iconoir", package="@iconify-json/iconoir", title="Iconoir"),
    Style(name="ion", package="@iconify-json/ion", title="IonIcons"),
    Style(name="lucide", package="@iconify-json/lucide", title="Lucide"),
    Style(name="material-symbols", package="@iconify-json/material-symbols", title="Material Symbols"),
    Style(name="mdi", package="@iconify-json/mdi", title="Material Design Icons"),
    Style(name="mingcute", package="@iconify-json/mingcute", title="MingCute"),
    Style(name="ph", package="@iconify-json/ph", title="Phosphor"),
    Style(name="ri", package="@iconify-json/ri", title="Remix Icon"),
    Style(name="solar", package="@iconify-json/solar", title="Solar"),
    Style(name="tabler", package="@iconify-json/tabler", title="Tabler Icons"),
)
EMOJI_SETS = STYLES
ALL_SETS = (*ICON_SETS, *EMOJI_SETS)
# Sets whose licences only require the names of authors, so that derived works may have another licence.
FREE_SETS = tuple(one for one in ALL_SETS if one.name != "openmoji")
