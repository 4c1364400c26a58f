"""mobileclip: fast image-text models from composable blocks, and the reinforced training that makes them."""

from mobileclip.blocks import build_model
from mobileclip.encoders import specs

__all__ = ["build_model", "specs"]
__version__ = "0.1.0"
