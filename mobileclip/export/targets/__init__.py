"""The formats that models are exported to, a file each."""

from mobileclip.export.targets.base import Target, targets
from mobileclip.export.targets.onnx import OnnxTarget
from mobileclip.export.targets.torch import TorchTarget

targets.add("onnx", OnnxTarget())
targets.add("torch", TorchTarget())

__all__ = ["OnnxTarget", "Target", "TorchTarget", "targets"]
