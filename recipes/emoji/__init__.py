"""A real image-text set of emoji drawings, and real teachers for it."""

from .dataset import EmojiDataset, EmojiDataSpec, EmojiSplit, build_dataset, captions_of

__all__ = ["EmojiDataSpec", "EmojiDataset", "EmojiSplit", "build_dataset", "captions_of"]
