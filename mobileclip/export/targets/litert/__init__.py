"""LiteRT: Android's runtime for models, once called TensorFlow Lite, which runs on this machine too.

What converts, rounds, checks and runs a file of it belongs here. What several formats need lies beside this package.
"""

from mobileclip.export.targets.litert.target import LiteRTTarget

__all__ = ["LiteRTTarget"]
