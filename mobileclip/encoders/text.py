"""Text encoders: the base transformer and MCt, whose first and last layers are Text-RepMixers."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.blocks import BlockSequence, EndTokenPool, TextRepMixerBlock, TransformerLayer
from mobileclip.encoders.checks import DEPTH, WIDTH, check_heads, check_tokens, odd
from mobileclip.encoders.families import TextEncoderSpec, text_encoder_families
from mobileclip.strict import strict


@text_encoder_families.register("transformer")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TextTransformerSpec(TextEncoderSpec):
    """The base text encoder: pre-norm transformer layers.

    Args:
        width: width of the tokens.
        num_heads: attention heads per layer; divides `width`.
        depth: number of layers.
        causal: whether a token sees earlier ones only (MobileCLIP-B); otherwise padding is attended to as well.

    Source: MobileCLIP section 3.1, "Base".
    """

    width: int = attrs.field(default=512, validator=WIDTH)
    num_heads: int = attrs.field(default=8, validator=WIDTH)
    depth: int = attrs.field(default=12, validator=DEPTH)
    causal: bool = False

    def __attrs_post_init__(self) -> None:
        """Check that the heads share the width."""
        check_heads(self.width, self.num_heads)

    @property
    def num_blocks(self) -> int:
        """How many layers it has."""
        return self.depth

    def build(self) -> TextEncoder:
        """Return a new encoder."""
        return TextEncoder(self, _transformer_layers(self, self.depth))


@text_encoder_families.register("mct")
@attrs.frozen(kw_only=True, field_transformer=strict)
class MCtSpec(TextEncoderSpec):
    """MCt: transformer layers between a first and a last Text-RepMixer block.

    Args:
        width: width of the tokens.
        num_heads: attention heads per layer; divides `width`.
        depth: number of transformer layers between the two RepMixer blocks.
        kernel_size: number of tokens that a RepMixer sees, odd.
        layer_scale: initial value of the RepMixers' layer scales.

    Source: MobileCLIP section 3.1 and Figure 3, "MCt".
    """

    width: int = attrs.field(default=512, validator=WIDTH)
    num_heads: int = attrs.field(default=8, validator=WIDTH)
    depth: int = attrs.field(default=4, validator=[validators.ge(0), validators.le(1 << 12)])
    kernel_size: int = attrs.field(default=11, validator=odd)
    layer_scale: float = 1e-5
    causal = False

    def __attrs_post_init__(self) -> None:
        """Check that the heads share the width."""
        check_heads(self.width, self.num_heads)

    @property
    def num_blocks(self) -> int:
        """How many layers it has, the two RepMixers counted."""
        return self.depth + 2

    def build(self) -> TextEncoder:
        """Return a new encoder."""
        first, last = (
            TextRepMixerBlock(self.width, kernel_size=self.kernel_size, layer_scale=self.layer_scale) for _ in range(2)
        )
        return TextEncoder(self, [first, *_transformer_layers(self, self.depth), last])


def _transformer_layers(spec: TextTransformerSpec | MCtSpec, depth: int) -> list[nn.Module]:
    return [TransformerLayer(spec.width, num_heads=spec.num_heads, causal=spec.causal) for _ in range(depth)]


class TextEncoder(nn.Module):
    """Token and position embeddings, layers, the end token's features, their norm, a projection.

    Shape:
        ids `(batch, context_length)` to embeddings `(batch, embedding_dim)`.

    Args:
        spec: the encoder; kept as `.spec`.
        layers: what transforms the tokens, `(batch, context_length, width)` in and out.

    Source: MobileCLIP section 3.1; Radford et al., "Learning Transferable Visual Models", section 2.4.
    """

    def __init__(self, spec: TextTransformerSpec | MCtSpec, layers: list[nn.Module]) -> None:
        super().__init__()
        self.spec = spec
        self.token_embedding = nn.Embedding(spec.input.vocab_size, spec.width)
        self.position = nn.Parameter(torch.zeros(spec.input.context_length, spec.width))
        self.layers = BlockSequence(*layers)
        self.norm = nn.LayerNorm(spec.width)
        self.pool = EndTokenPool(end_id=spec.input.pooled_id)
        self.project = nn.Linear(spec.width, spec.embedding_dim, bias=False)
        self._initialize()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings, not normalised, of tokenised texts.

        Raises:
            ValueError: if the context is not as long as the spec's.
        """
        check_tokens(tokens, self.spec.input)
        return self.encode(tokens)

    def encode(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of texts that end within the tokens, of which there may be fewer than the context has.

        Shape:
            `(batch, tokens)` to `(batch, embedding_dim)`.
        """
        features = self.token_embedding(tokens) + self.position[: tokens.shape[1]]
        y: Tensor = self.project(self.norm(self.layers.at(features, self.pool.position(tokens))))
        return y

    def _initialize(self) -> None:
        width = self.spec.width
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        nn.init.normal_(self.project.weight, std=width**-0.5)
        for layer in self.layers:
            if isinstance(layer, TransformerLayer):
                nn.init.normal_(layer.attention.qkv.weight, std=width**-0.5)
                nn.init.zeros_(layer.attention.qkv.bias)
                nn.init.normal_(layer.attention.project.weight, std=(2 * width * len(self.layers)) ** -0.5)
                nn.init.zeros_(layer.attention.project.bias)
                nn.init.normal_(layer.ffn.fc1.weight, std=(2 * width) ** -0.5)
                nn.init.normal_(layer.ffn.fc2.weight, std=(2 * width * len(self.layers)) ** -0.5)
