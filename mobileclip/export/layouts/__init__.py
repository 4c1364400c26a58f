"""Layouts of an export's folder: names of files, inputs and outputs that a host expects.

A place with names of its own enters here, registered by name. What files of a tower hold is the targets'.
"""

from mobileclip.export.layouts.apple import AppleLayout
from mobileclip.export.layouts.base import Layout, TowerNames, fitted, layouts
from mobileclip.export.layouts.immich import ImmichLayout
from mobileclip.export.layouts.plain import PlainLayout
from mobileclip.export.layouts.transformers_js import TransformersJsLayout

layouts.add("plain", PlainLayout())
layouts.add("apple", AppleLayout())
layouts.add("immich", ImmichLayout())
layouts.add("transformers.js", TransformersJsLayout())

__all__ = [
    "AppleLayout",
    "ImmichLayout",
    "Layout",
    "PlainLayout",
    "TowerNames",
    "TransformersJsLayout",
    "fitted",
    "layouts",
]
