"""The study of captioners: one that is trained here, its captions, and what students gain from them."""

from examples.captioner.spec import CaptionerStudySpec

__all__ = ["CaptionerStudySpec"]
