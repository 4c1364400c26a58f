"""To and from the Hugging Face hub, as folders that open_clip and timm load too.

What other libraries ask for under their own names belongs here; how they lay out weights, in `encoders.checkpoints`.
"""

from mobileclip.interop.folder import save_pretrained
from mobileclip.interop.hub import HubError, Pushed, from_pretrained, push_to_hub
from mobileclip.interop.open_clip import open_clip_config
from mobileclip.interop.timm import timm_config

__all__ = [
    "HubError",
    "Pushed",
    "from_pretrained",
    "open_clip_config",
    "push_to_hub",
    "save_pretrained",
    "timm_config",
]
