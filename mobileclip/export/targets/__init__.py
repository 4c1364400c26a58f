"""Export formats, a module each, registered by name."""

from mobileclip.export.targets.base import NotRunHereError, Run, Target, Written, targets
from mobileclip.export.targets.coreml import CoreMLTarget
from mobileclip.export.targets.executorch import ExecuTorchTarget
from mobileclip.export.targets.litert import LiteRTTarget
from mobileclip.export.targets.onnx import OnnxTarget
from mobileclip.export.targets.openvino import OpenVINOTarget
from mobileclip.export.targets.torch import TorchTarget

targets.add("coreml", CoreMLTarget())
targets.add("executorch", ExecuTorchTarget())
targets.add("litert", LiteRTTarget())
targets.add("onnx", OnnxTarget())
targets.add("openvino", OpenVINOTarget())
targets.add("torch", TorchTarget())


__all__ = [
    "CoreMLTarget",
    "ExecuTorchTarget",
    "LiteRTTarget",
    "NotRunHereError",
    "OnnxTarget",
    "OpenVINOTarget",
    "Run",
    "Target",
    "TorchTarget",
    "Written",
    "targets",
]
