"""Models that open_clip and timm build: the smallest of the published image towers, and a tower smaller than any."""

from pathlib import Path

import attrs

from mobileclip import specs
from mobileclip.encoders import AttentionSpec, DualEncoderSpec, MCiSpec, MCtSpec, StageSpec, TextTransformerSpec
from mobileclip.inputs import ImageInput

DUAL = DualEncoderSpec(image=specs.mci0(), text=TextTransformerSpec(width=64, num_heads=2, depth=2, causal=True))
TOWER = MCiSpec(
    stages=(
        StageSpec(dim=16, depth=1),
        StageSpec(dim=32, depth=2, squeeze_excite=True),
        StageSpec(dim=32, depth=1),
        StageSpec(dim=64, depth=1, mixer=AttentionSpec()),
    ),
    ffn_ratio=2.0,
    stem_scale_branch=False,
    embedding_dim=24,
    input=ImageInput(size=64, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
)
WITH_TEXTS = DualEncoderSpec(
    image=attrs.evolve(TOWER, embedding_dim=32), text=MCtSpec(width=32, num_heads=2, depth=1, embedding_dim=32)
)
PHOTO = Path("tests/golden/augment/images/chelsea.png")
