"""To and from the Hugging Face hub, as folders that open_clip and timm load too.

What other libraries ask for under their own names belongs here; how they lay out weights, in `encoders.checkpoints`.
"""

from mobileclip.interop.folder import save_pretrained
from mobileclip.interop.hub import HubError, Pushed, from_pretrained, push_to_hub

__all__ = ["HubError", "Pushed", "from_pretrained", "push_to_hub", "save_pretrained"]
