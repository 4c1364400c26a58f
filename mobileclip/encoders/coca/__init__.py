"""CoCa captioners, and the generation of captions.

What reads and writes their files is in `encoders.checkpoints`; what captions are for, in `reinforce`.
"""

from mobileclip.encoders.coca.generation import Beams, GenerationSpec, generate
from mobileclip.encoders.coca.model import CaptionState, CoCa, CoCaOutput, CoCaSpec

__all__ = ["Beams", "CaptionState", "CoCa", "CoCaOutput", "CoCaSpec", "GenerationSpec", "generate"]
