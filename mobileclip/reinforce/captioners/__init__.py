"""Captioners: models that write captions of images, and the family they belong to.

A new captioner enters here, registered by name. What is done with captions belongs in `reinforce`.
"""

from mobileclip.reinforce.captioners.coca import CocaCaptioner
from mobileclip.reinforce.captioners.ensemble import CaptionerEnsemble, CaptionSet, SeveralCaptioners, caption_sets
from mobileclip.reinforce.captioners.image_text_to_text import ImageTextToTextCaptioner
from mobileclip.reinforce.captioners.protocol import Captioner
from mobileclip.reinforce.captioners.spec import CaptionerSpec, captioners

__all__ = [
    "CaptionSet",
    "Captioner",
    "CaptionerEnsemble",
    "CaptionerSpec",
    "CocaCaptioner",
    "ImageTextToTextCaptioner",
    "SeveralCaptioners",
    "caption_sets",
    "captioners",
]
