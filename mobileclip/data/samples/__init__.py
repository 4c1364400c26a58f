"""One sample: its image, captions, augmentations and embeddings, in every layout that is read.

A new layout of a sample's members enters here. Files of many samples belong in `data.shards`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
