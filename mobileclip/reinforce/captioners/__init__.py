"""Captioners: models that write captions of images, and the family they belong to.

A new captioner enters here, registered by name. What is done with captions belongs in `reinforce`.
"""

from mobileclip.reinforce.captioners.base import (
    Captioner,
    CaptionerEnsemble,
    CaptionerSpec,
    CaptionSet,
    SeveralCaptioners,
    caption_sets,
    captioners,
)
from mobileclip.reinforce.captioners.coca import (
    CheckpointCaptioner,
    CocaCaptioner,
    CocaDecoder,
    Vocabulary,
    with_weights,
)
from mobileclip.reinforce.captioners.image_text_to_text import ImageTextToTextCaptioner
from mobileclip.reinforce.captioners.nucleus import (
    NucleusSpec,
    caption_seed as caption_seed,
    caption_streams,
    nucleus_ids,
)

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
