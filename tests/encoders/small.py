"""A dual encoder of every kind of part, small enough to build in a test."""

import torch

from mobileclip.encoders import (
    AttentionSpec,
    CoCaSpec,
    DualEncoderSpec,
    MCiSpec,
    MCtSpec,
    StageSpec,
    TextTransformerSpec,
    ViTSpec,
)
from mobileclip.inputs import ImageInput, TextInput

TEXT_INPUT = TextInput(context_length=12, vocab_size=600)
STAGES = (
    StageSpec(dim=16, depth=1),
    StageSpec(dim=32, depth=2, squeeze_excite=True),
    StageSpec(dim=64, depth=1, mixer=AttentionSpec()),
)
IMAGE = MCiSpec(stages=STAGES, embedding_dim=24, input=ImageInput(size=64))
VIT = ViTSpec(width=32, depth=2, num_heads=2, embedding_dim=24, input=ImageInput(size=64))
TEXT = TextTransformerSpec(width=32, num_heads=2, depth=2, embedding_dim=24, input=TEXT_INPUT)
MCT = MCtSpec(width=32, num_heads=2, depth=1, embedding_dim=24, input=TEXT_INPUT)

SMALL = DualEncoderSpec(image=IMAGE, text=TEXT)
SMALL_MCT = DualEncoderSpec(image=IMAGE, text=MCT)
SMALL_VIT = DualEncoderSpec(image=VIT, text=TEXT)

# Captioners, whose text tower is as wide as their embeddings.
_CAPTIONED = TextTransformerSpec(width=24, num_heads=2, depth=2, embedding_dim=24, causal=True, input=TEXT_INPUT)
COCA = CoCaSpec(image=IMAGE, text=_CAPTIONED, decoder_depth=2, num_queries=5)
COCA_VIT = CoCaSpec(image=VIT, text=_CAPTIONED, decoder_depth=2, num_queries=5)


def randomised(spec, seed=0):
    """The model of `spec` with weights and statistics of order one, so that no part is almost an identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = spec.build().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "gamma")):
                tensor.uniform_(0.2, 1.2, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim < 2:
                tensor.normal_(0.0, 0.3, generator=generator)
    return model


def inputs(spec, batch=2):
    generator = torch.Generator().manual_seed(7)
    size = spec.image.input.size
    images = torch.rand(batch, 3, size, size, generator=generator)
    tokens = torch.randint(1, spec.text.input.vocab_size, (batch, spec.text.input.context_length), generator=generator)
    return images, tokens


@torch.inference_mode()
def embeddings(model):
    images, tokens = inputs(model.spec)
    return torch.cat([model.encode_image(images), model.encode_text(tokens)])
