"""Tokenizers: CLIP's byte pairs, and any that a `tokenizer.json` describes.

What turns texts into ids belongs here; what embeds them, in `encoders`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
