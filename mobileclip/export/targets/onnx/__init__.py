"""ONNX: models for ONNX Runtime and all that read its format.

What writes, quantises and checks a model belongs here. What several formats need lies beside this package.
"""

from mobileclip.export.targets.onnx.target import OnnxTarget

__all__ = ["OnnxTarget"]
