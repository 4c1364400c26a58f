"""Small towers, one of each form, and what goes into them."""

import torch

from mobileclip.encoders import (
    AttentionSpec,
    ImageEncoderSpec,
    MCiSpec,
    MCtSpec,
    RepMixerSpec,
    StageSpec,
    TextTransformerSpec,
    ViTSpec,
)
from mobileclip.inputs import ImageInput, TextInput
from tests.blocks.filling import noise

TEXT = TextInput(context_length=12, vocab_size=50)
SMALL = {
    "mci": MCiSpec(
        stages=(StageSpec(dim=8, depth=1), StageSpec(dim=16, depth=2, mixer=AttentionSpec(head_dim=8))),
        embedding_dim=12,
        input=ImageInput(size=64),
    ),
    "mci_layer_norm": MCiSpec(
        stages=(
            StageSpec(dim=8, depth=1, mixer=RepMixerSpec(kernel_size=5)),
            StageSpec(dim=8, depth=1, mixer=AttentionSpec(head_dim=4, norm="layer"), squeeze_excite=True),
        ),
        ffn_ratio=1.5,
        stem_scale_branch=False,
        downsample_activation=False,
        embedding_dim=12,
        projection_bias=True,
        input=ImageInput(size=64),
    ),
    "vit": ViTSpec(width=16, depth=2, num_heads=2, embedding_dim=12, input=ImageInput(size=64)),
    "vit_patch": ViTSpec(
        width=16,
        depth=1,
        num_heads=4,
        patch_size=32,
        stem="patch",
        class_position=True,
        norm_before=True,
        embedding_dim=12,
        input=ImageInput(size=64),
    ),
    "text": TextTransformerSpec(width=16, num_heads=2, depth=2, embedding_dim=12, input=TEXT),
    "text_causal": TextTransformerSpec(width=16, num_heads=2, depth=2, embedding_dim=12, causal=True, input=TEXT),
    "mct": MCtSpec(width=16, num_heads=2, depth=1, kernel_size=5, embedding_dim=12, input=TEXT),
}


def texts(batch=3, *, seed=0):
    """Token ids of texts of different lengths: start, words, end, padding."""
    ids = torch.zeros(batch, TEXT.context_length, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for row in range(batch):
        length = 3 + row
        ids[row, 0], ids[row, length] = TEXT.start_id, TEXT.end_id
        ids[row, 1:length] = torch.randint(1, 48, (length - 1,), generator=generator)
    return ids


def inputs(spec, *, seed=0, dtype=torch.float32):
    return noise(3, 3, 64, 64, seed=seed, dtype=dtype) if isinstance(spec, ImageEncoderSpec) else texts(seed=seed)
