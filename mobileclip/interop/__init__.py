"""Entry points of Apple's code, and model folders for the Hugging Face hub, open_clip, timm and transformers.

This subpackage contains interfaces for other libraries; `encoders.checkpoints` contains weight layouts.
"""

from mobileclip.interop.folder import save_pretrained
from mobileclip.interop.hub import HubError, PushResult, from_pretrained, push_to_hub
from mobileclip.interop.open_clip import open_clip_config
from mobileclip.interop.open_clip_models import OpenClipSource as OpenClipSource, load_open_clip as load_open_clip
from mobileclip.interop.timm import timm_config
from mobileclip.interop.transformers_models import transformers_package as transformers_package

__all__ = [
    "HubError",
    "PushResult",
    "from_pretrained",
    "open_clip_config",
    "push_to_hub",
    "save_pretrained",
    "timm_config",
]
