"""OpenVINO: models for Intel's processors.

What writes, quantises and checks a model belongs here. What several formats need lies beside this package.
"""

from mobileclip.export.targets.openvino.target import OpenVINOTarget

__all__ = ["OpenVINOTarget"]
