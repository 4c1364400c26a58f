"""Compares published weights with the outputs that others have published of them.

Further numbers that somebody has published belong here; where weights come from, in `encoders.checkpoints`.
"""

from mobileclip.inference.known.checking import Finding, WeightsRecord, check_weights
from mobileclip.inference.known.outputs import KnownOutput, KnownOutputs, Picture, known_outputs

__all__ = ["Finding", "KnownOutput", "KnownOutputs", "Picture", "WeightsRecord", "check_weights", "known_outputs"]
