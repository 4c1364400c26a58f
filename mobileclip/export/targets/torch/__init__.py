"""`torch.export`: programs that PyTorch runs without this library.

What writes, quantises and checks a program belongs here. What several formats need lies beside this package.
"""

from mobileclip.export.targets.torch.target import TorchTarget

__all__ = ["TorchTarget"]
