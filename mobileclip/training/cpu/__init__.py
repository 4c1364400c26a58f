"""Faster training on a CPU: the blocks' formulas, computed by what oneDNN is fast at.

Values and gradients stay those of `blocks`; what is faster without gradients belongs in `inference.forms`.
"""

from mobileclip.training.cpu.quick import quicken

__all__ = ["quicken"]
