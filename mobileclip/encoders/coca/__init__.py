"""CoCa captioners and caption generation.

`encoders.checkpoints` reads and writes captioner files; `reinforce` uses the captions.
"""

from mobileclip.encoders.coca.generation import Beams, GenerationSpec, generate
from mobileclip.encoders.coca.model import CaptionState, CoCa, CoCaOutput, CoCaSpec

__all__ = ["Beams", "CaptionState", "CoCa", "CoCaOutput", "CoCaSpec", "GenerationSpec", "generate"]
