"""A real image-text set of emoji drawings, and real teachers for it."""

from examples.quickstart.emoji.dataset import EmojiDataset, EmojiDataSpec, EmojiSplit, build_dataset
from examples.quickstart.emoji.teachers import EmojiTeacher, EmojiTeacherSpec, build_teachers, emoji_augmentation

__all__ = [
    "EmojiDataSpec",
    "EmojiDataset",
    "EmojiSplit",
    "EmojiTeacher",
    "EmojiTeacherSpec",
    "build_dataset",
    "build_teachers",
    "emoji_augmentation",
]
