"""Core AI: Apple's runtime behind Core ML, for systems from version 27 on, and for Linux.

What converts, checks and runs a model of it belongs here. What several formats need lies beside this package.
"""

from mobileclip.export.targets.coreai.target import CoreAITarget

__all__ = ["CoreAITarget"]
