"""Decodes single frames of videos, upright, by time.

Sound, subtitles and whatever else a file holds are never read.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
