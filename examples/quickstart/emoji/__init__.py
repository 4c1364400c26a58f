"""A real image-text set of emoji drawings, and real teachers for it."""

from examples.quickstart.emoji.dataset import EmojiDataSpec, build_dataset
from examples.quickstart.emoji.on_disk import DataSplit, DrawnDataset
from examples.quickstart.emoji.teachers import (
    EmojiTeacherSpec,
    build_teachers,
    drawing_input,
    emoji_augmentation,
)

__all__ = [
    "DataSplit",
    "DrawnDataset",
    "EmojiDataSpec",
    "EmojiTeacherSpec",
    "build_dataset",
    "build_teachers",
    "drawing_input",
    "emoji_augmentation",
]
