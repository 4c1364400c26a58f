"""Functions from module to module that give the same embeddings in less time.

A form that gives other embeddings does not belong here.
"""

from mobileclip.inference.forms.depthwise import DepthwiseConvs, with_depthwise_convs
from mobileclip.inference.forms.end_token import by_length, causal_pool, cut_behind_the_end, reads_text
from mobileclip.inference.forms.one_token import (
    OneTokenRepMixerBlock,
    OneTokenTransformerLayer,
    SingleQueryAttention,
    fused_attention,
    pick,
    with_one_token,
)
from mobileclip.inference.forms.prepared import (
    MOST_IMAGES_ON_CPU,
    PreparedTower,
    ReadyDualEncoder,
    ToTheEnd,
    prepared,
    prepared_tower,
    with_fast_layout,
)

__all__ = [
    "MOST_IMAGES_ON_CPU",
    "DepthwiseConvs",
    "OneTokenRepMixerBlock",
    "OneTokenTransformerLayer",
    "PreparedTower",
    "ReadyDualEncoder",
    "SingleQueryAttention",
    "ToTheEnd",
    "by_length",
    "causal_pool",
    "cut_behind_the_end",
    "fused_attention",
    "pick",
    "prepared",
    "prepared_tower",
    "reads_text",
    "with_depthwise_convs",
    "with_fast_layout",
    "with_one_token",
]
