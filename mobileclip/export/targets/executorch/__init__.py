"""ExecuTorch: programs for phones and small devices, with XNNPACK's kernels.

What lowers, writes and checks a program belongs here. What several formats need lies beside this package.
"""

from mobileclip.export.targets.executorch.target import ExecuTorchTarget

__all__ = ["ExecuTorchTarget"]
