"""Estimates the GPU hours of a run, from the published hours of another and the FLOPs of both.

Source: MobileCLIP (arXiv 2311.17049), table 4d.
"""

from __future__ import annotations

from functools import lru_cache

from mobileclip import specs
from mobileclip.encoders import ImageEncoderSpec, TextEncoderSpec
from mobileclip.inference.catalogue import num_macs
from mobileclip.recipes.published import plain_vit_b16

PASSES = 3
"""A step is a pass forward and about two backward."""
# Plain CLIP with ViT-B/16: 12.8 million pairs in 1.3 hours of 8 A100.
_PAIRS_PER_SECOND = 12.8e6 / (1.3 * 3600 * 8)


@lru_cache(maxsize=1)
def a100_macs_per_second() -> float:
    """Return the multiply-accumulates that an A100 does while it trains ViT-B/16; small models reach less of it."""
    return _PAIRS_PER_SECOND * PASSES * (macs(plain_vit_b16()) + macs(specs.text_base()))


def macs(tower: ImageEncoderSpec | TextEncoderSpec) -> int:
    """Return the multiply-accumulates of one of the library's towers for one image or text."""
    found = num_macs(tower)
    assert found is not None, "the library's towers compute with shapes alone"
    return found
