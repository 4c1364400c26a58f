"""Reads safetensors and PyTorch weight files with size limits, without running code from the files.

This package reads file formats; `mobileclip.encoders.checkpoints` finds the model for the tensors.
"""

from mobileclip.tensor_files.errors import CheckpointCode, CheckpointError
from mobileclip.tensor_files.reading import check_sha256, file_sha256, read_tensors
from mobileclip.tensor_files.torch_file import weights_of as weights_of
from mobileclip.tensor_files.weights import weights_sha256 as weights_sha256

__all__ = ["CheckpointCode", "CheckpointError", "check_sha256", "file_sha256", "read_tensors"]
