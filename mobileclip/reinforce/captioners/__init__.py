"""Captioners: models that write captions of images, and the family they belong to.

A new captioner enters here, registered by name. What is done with captions belongs in `reinforce`.
"""

from mobileclip.reinforce.captioners.checkpoint import CheckpointCaptioner, with_weights
from mobileclip.reinforce.captioners.coca import CocaCaptioner, Vocabulary
from mobileclip.reinforce.captioners.decoder import CocaDecoder
from mobileclip.reinforce.captioners.ensemble import CaptionerEnsemble, CaptionSet, SeveralCaptioners, caption_sets
from mobileclip.reinforce.captioners.image_text_to_text import ImageTextToTextCaptioner
from mobileclip.reinforce.captioners.nucleus import NucleusSpec
from mobileclip.reinforce.captioners.protocol import Captioner
from mobileclip.reinforce.captioners.sampling import (
    caption_seed as caption_seed,
    caption_streams,
    nucleus_ids,
)
from mobileclip.reinforce.captioners.spec import CaptionerSpec, captioners

__all__ = [
    "CaptionSet",
    "Captioner",
    "CaptionerEnsemble",
    "CaptionerSpec",
    "CheckpointCaptioner",
    "CocaCaptioner",
    "CocaDecoder",
    "ImageTextToTextCaptioner",
    "NucleusSpec",
    "SeveralCaptioners",
    "Vocabulary",
    "caption_sets",
    "caption_streams",
    "captioners",
    "nucleus_ids",
    "with_weights",
]
