"""Text encoders: the base transformer and MCt, whose first and last layers are Text-RepMixers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.blocks import Attention, BlockSequence, EndTokenPool, MeanTokenPool, TextRepMixerBlock, TransformerLayer
from mobileclip.blocks.sequence import ActivationCheckpointing
from mobileclip.blocks.stages import TextPool
from mobileclip.encoders.families import TextEncoderSpec, text_encoder_families
from mobileclip.encoders.towers import WIDTH, check_heads, odd
from mobileclip.strict import strict

# A tower without layers is a bag of tokens.
_DEPTH = [validators.ge(0), validators.le(1 << 12)]

PoolName = Literal["end", "mean"]
POOL_NAMES: tuple[PoolName, ...] = get_args(PoolName)


@attrs.frozen(kw_only=True, field_transformer=strict)
class _LayersSpec(TextEncoderSpec):
    """Shared fields of this library's text encoders."""

    width: int = attrs.field(default=512, validator=WIDTH)
    num_heads: int = attrs.field(default=8, validator=WIDTH)
    pool: PoolName = attrs.field(default="end", validator=validators.in_(POOL_NAMES))

    def __attrs_post_init__(self) -> None:
        """Check that the number of heads divides the width."""
        check_heads(self.width, self.num_heads)

    def weights_for_context(self, weights: Mapping[str, Tensor], context_length: int) -> dict[str, Tensor]:
        """Return the weights with only the first `context_length` position embeddings."""
        position = weights["position"]
        if context_length > len(position):
            raise ValueError(
                f"context_length is at most {len(position)}, not {context_length}: the model has no position "
                "embeddings for more tokens; train a model with a longer context"
            )
        return {**weights, "position": position[:context_length].clone()}


@text_encoder_families.register("transformer")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TextTransformerSpec(_LayersSpec):
    """The base text encoder: pre-norm transformer layers.

    Args:
        width: width of the tokens.
        num_heads: attention heads per layer; divides `width`.
        depth: number of layers; 0 with `pool="mean"` makes a bag of tokens.
        pool: `end` selects the features of the end token, `mean` averages the features of the text's tokens.
        causal: whether attention is causal (MobileCLIP-B); otherwise tokens also attend to padding.

    Source: MobileCLIP section 3.1, "Base".

    Examples:
        >>> spec = TextTransformerSpec(width=16, depth=2, num_heads=2, embedding_dim=8, causal=True)
        >>> spec.build()(torch.zeros(3, 77, dtype=torch.int64)).shape
        torch.Size([3, 8])
    """

    depth: int = attrs.field(default=12, validator=_DEPTH)
    causal: bool = False

    @property
    def num_blocks(self) -> int:
        """Number of layers."""
        return self.depth

    def build(self) -> TextEncoder:
        """Return a new encoder."""
        return _encoder(self, _transformer_layers(self, self.depth))


@text_encoder_families.register("mct")
@attrs.frozen(kw_only=True, field_transformer=strict)
class MCtSpec(_LayersSpec):
    """MCt: transformer layers between a first and a last Text-RepMixer block.

    Args:
        width: width of the tokens.
        num_heads: attention heads per layer; divides `width`.
        depth: number of transformer layers between the two RepMixer blocks.
        pool: see `TextTransformerSpec`.
        kernel_size: size of the RepMixers' kernels in tokens, an odd number.
        layer_scale: initial value of the RepMixers' layer scales.

    Source: MobileCLIP section 3.1 and Figure 3, "MCt".

    Examples:
        >>> encoder = MCtSpec(width=16, depth=1, num_heads=2).build()
        >>> [type(layer).__name__ for layer in encoder.layers]
        ['TextRepMixerBlock', 'TransformerLayer', 'TextRepMixerBlock']
    """

    depth: int = attrs.field(default=4, validator=_DEPTH)
    kernel_size: int = attrs.field(default=11, validator=odd)
    layer_scale: float = 1e-5
    causal = False

    @property
    def num_blocks(self) -> int:
        """Number of layers, including the two Text-RepMixer blocks."""
        return self.depth + 2

    def build(self) -> TextEncoder:
        """Return a new encoder."""
        first, last = (
            TextRepMixerBlock(self.width, kernel_size=self.kernel_size, layer_scale=self.layer_scale) for _ in range(2)
        )
        return _encoder(self, [first, *_transformer_layers(self, self.depth), last])


_POOLS: dict[PoolName, type[TextPool]] = {"end": EndTokenPool, "mean": MeanTokenPool}


def _transformer_layers(spec: TextTransformerSpec | MCtSpec, depth: int) -> list[nn.Module]:
    return [TransformerLayer(spec.width, num_heads=spec.num_heads, causal=spec.causal) for _ in range(depth)]


def _encoder(spec: TextTransformerSpec | MCtSpec, layers: list[nn.Module]) -> TextEncoder:
    """Return a new text encoder, with OpenAI CLIP's weight initialisation."""
    width = spec.width
    encoder = TextEncoder(
        nn.Embedding(spec.input.vocab_size, width),
        layers,
        nn.Linear(width, spec.embedding_dim, bias=False),
        context_length=spec.input.context_length,
        pool=_POOLS[spec.pool](end_id=spec.input.pooled_id),
        spec=spec,
    )
    nn.init.normal_(encoder.token_embedding.weight, std=0.02)
    nn.init.normal_(encoder.position, std=0.01)
    nn.init.normal_(encoder.project.weight, std=width**-0.5)
    for layer in layers:
        if isinstance(layer, TransformerLayer) and isinstance(layer.attention, Attention):
            attention = layer.attention
            nn.init.normal_(attention.qkv.weight, std=width**-0.5)
            nn.init.zeros_(attention.qkv.bias)
            nn.init.normal_(attention.project.weight, std=(2 * width * len(layers)) ** -0.5)
            nn.init.zeros_(attention.project.bias)
            nn.init.normal_(layer.ffn.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(layer.ffn.fc2.weight, std=(2 * width * len(layers)) ** -0.5)
    return encoder


class TextEncoder(ActivationCheckpointing, nn.Module):
    """A text encoder: `y = project(norm(pool(layers(embed(tokens)), tokens)))`.

    Shape:
        ids `(batch, tokens)` to embeddings `(batch, embedding_dim)`, with `tokens <= context_length`.

    Args:
        token_embedding: maps ids to vectors of the layers' width.
        layers: modules that map `(batch, tokens, width)` to the same shape.
        project: maps pooled features to embeddings.
        context_length: maximum number of tokens per text.
        pool: maps the features of all tokens to one vector per text.
        spec: spec of the encoder, for checkpoints; None for an encoder that no spec describes.

    Source: MobileCLIP section 3.1; Radford et al., "Learning Transferable Visual Models", section 2.4.

    Examples:
        >>> layers, pool = [mobileclip.blocks.TextRepMixerBlock(16)], mobileclip.blocks.EndTokenPool()
        >>> encoder = TextEncoder(nn.Embedding(100, 16), layers, nn.Linear(16, 8), context_length=20, pool=pool)
        >>> encoder(torch.randint(100, (3, 20))).shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        token_embedding: nn.Embedding,
        layers: Iterable[nn.Module],
        project: nn.Linear,
        *,
        context_length: int,
        pool: TextPool,
        spec: TextTransformerSpec | MCtSpec | None = None,
    ) -> None:
        super().__init__()
        width = token_embedding.embedding_dim
        self.spec = spec
        self.token_embedding = token_embedding
        self.position = nn.Parameter(torch.zeros(context_length, width))
        self.layers = BlockSequence(*layers)
        self.norm = nn.LayerNorm(width)
        self.pool = pool
        self.project = project

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the unnormalised embeddings of tokenised texts."""
        y: Tensor = self.project(self.norm(self.pool(self.layers(self.embed(tokens)), tokens)))
        return y

    def token_features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of every token, and a mask of each text's tokens, up to and including the end token.

        With `pool="end"`, `project` maps the end token's features to the embedding. With `pool="mean"`, the encoder
        normalises after averaging, so `project` of the averaged features only approximates the embedding.

        Shape:
            ids `(batch, tokens)` to features `(batch, tokens, width)`, and a mask `(batch, tokens)` of booleans.

        Examples:
            >>> features, mask = mobileclip.build_model("text_mct").token_features(torch.tensor([[5, 9, 0]]))
            >>> features.shape, mask
            (torch.Size([1, 3, 512]), tensor([[ True,  True, False]]))
        """
        features: Tensor = self.norm(self.layers(self.embed(tokens)))
        return features, self.pool.inside(tokens)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input of the first layer: token embeddings plus position embeddings.

        Shape:
            `(batch, tokens)` to `(batch, tokens, width)`.
        """
        y: Tensor = self.token_embedding(tokens) + self.position[: tokens.shape[1]]
        return y
