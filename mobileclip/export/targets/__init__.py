"""Export formats, one module each, registered by name."""

from mobileclip.export.targets.base import NotRunHereError, Run, Target, WrittenFile, targets
from mobileclip.export.targets.coreml import CoreMLTarget
from mobileclip.export.targets.executorch import ExecuTorchTarget
from mobileclip.export.targets.litert import LiteRTTarget
from mobileclip.export.targets.onnx import OnnxTarget
from mobileclip.export.targets.openvino import OpenVINOTarget
from mobileclip.export.targets.torch import TorchTarget

for _name, _target in {
    "coreml": CoreMLTarget(),
    "executorch": ExecuTorchTarget(),
    "litert": LiteRTTarget(),
    "onnx": OnnxTarget(),
    "openvino": OpenVINOTarget(),
    "torch": TorchTarget(),
}.items():
    targets.add(_name, _target)

__all__ = ["NotRunHereError", "Run", "Target", "TorchTarget", "WrittenFile", "targets"]
