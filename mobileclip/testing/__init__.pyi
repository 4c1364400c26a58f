from .blocks import check_block as check_block
from .encoder import check_encoder as check_encoder
from .losses import check_loss as check_loss
from .specs import check_spec as check_spec
