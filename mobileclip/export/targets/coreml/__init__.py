"""Core ML: packages for Apple's devices.

What writes and checks a package, and what runs one where there is no Mac, belongs here. What several formats need
lies beside this package.
"""

from mobileclip.export.targets.coreml.target import CoreMLTarget

__all__ = ["CoreMLTarget"]
