"""Training on a CPU: the blocks' formulas, computed by way of what oneDNN is fast at."""

from mobileclip.training.cpu.quick import quicken

__all__ = ["quicken"]
