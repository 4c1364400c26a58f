"""CoCa's text modules: a causal tower with a class token after the text, and a decoder that attends to the image.

The tower and the decoder process a whole text, or one id at a time with a key-value cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention, BlockSequence, CrossAttentionLayer, TransformerLayer
from mobileclip.blocks.stages import TextPool
from mobileclip.encoders.text import TextEncoder, TextTransformerSpec


@attrs.define(kw_only=True, eq=False)
class KVCache:
    """The key-value cache of one attention: keys and values of all ids so far.

    Args:
        keys: keys, (rows, heads, max_length, head_dim), filled up to `length`.
        values: values, with the same shape as `keys`.
        visible: mask of visible ids, (rows, max_length + 1).
        length: number of ids so far.
    """

    keys: Tensor
    values: Tensor
    visible: Tensor
    length: int = 0

    def extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append the keys and values of one id, and return all keys and values with the mask."""
        end = self.length + 1
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = key, value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end], self.visible[:, None, None, :end]

    def reorder(self, rows: Tensor) -> None:
        """Replace each row `i` of the cache by row `rows[i]`."""
        self.keys, self.values, self.visible = self.keys[rows], self.values[rows], self.visible[rows]


class CaptionAttention(Attention):
    """Causal attention with masked tokens or a key-value cache; same shapes and arguments as `Attention`."""

    def forward(self, x: Tensor, visible: Tensor | None = None, kv_cache: KVCache | None = None) -> Tensor:
        """Return the attention's output for each token.

        Args:
            x: features of the tokens; with `kv_cache`, one token per row.
            visible: mask of the tokens to attend to, (batch, tokens); None for all.
            kv_cache: key-value cache, extended in place by the keys and values of `x`; None for no cache.
        """
        qkv = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        query, key, value = qkv[0], qkv[1], qkv[2]
        if kv_cache is not None:
            keys, values, seen = kv_cache.extended(key, value)
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
        elif visible is None:
            attended = self.backend(query, key, value, causal=True)
        else:
            earlier = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=earlier & visible[:, None, None])
        y: Tensor = self.project(rearrange(attended, "b h n d -> b n (h d)"))
        return y


class CaptionLayer(TransformerLayer):
    """A `TransformerLayer` with `CaptionAttention`.

    Args:
        dim: width of the tokens.
        num_heads: number of heads; divides `dim`.
    """

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__(dim, mixer=CaptionAttention(dim, num_heads=num_heads, causal=True))

    def forward(self, x: Tensor, visible: Tensor | None = None, kv_cache: KVCache | None = None) -> Tensor:
        """Return the transformed tokens; see `CaptionAttention.forward`."""
        x = x + self.attention(self.attention_norm(x), visible, kv_cache)
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y

    def new_kv_cache(self, rows: int, max_length: int) -> KVCache:
        """Return an empty key-value cache for the layer's attention."""
        attention = cast("CaptionAttention", self.attention)
        weight = attention.qkv.weight
        shape = (rows, attention.num_heads, max_length, weight.shape[1] // attention.num_heads)
        visible = torch.ones(rows, max_length + 1, dtype=torch.bool, device=weight.device)
        return KVCache(keys=weight.new_zeros(shape), values=weight.new_zeros(shape), visible=visible)


class LastTokenPool(TextPool):
    """The features of the last token: CoCa's class token, after the text."""

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:  # noqa: ARG002 - as other pools
        """Return the features of the last token."""
        return features[:, -1]


class CaptionTextEncoder(TextEncoder):
    """CoCa's text tower: `y = project(norm(layers(cat(embed(ids), class_token))[-1]))`, and the features of the ids.

    Shape:
        ids `(batch, ids)` to embeddings `(batch, embedding_dim)` and features `(batch, ids, width)`.

    Args:
        spec: spec of the tower; the class token has an additional position.
        class_mask: see `CoCaSpec`.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2.
    """

    def __init__(self, spec: TextTransformerSpec, *, class_mask: str) -> None:
        width = spec.width
        layers = [CaptionLayer(width, num_heads=spec.num_heads) for _ in range(spec.depth)]
        super().__init__(
            nn.Embedding(spec.input.vocab_size, width),
            layers,
            nn.Linear(width, spec.embedding_dim, bias=False),
            context_length=spec.input.context_length + 1,
            pool=LastTokenPool(),
        )
        self.class_token = nn.Parameter(torch.zeros(width))
        self.pad_id, self.class_mask = spec.input.pad_id, class_mask

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return unnormalised text embeddings, and the features of the ids."""
        class_token = self.class_token.expand(len(ids), 1, -1)
        x = torch.cat([self.token_embedding(ids), class_token], dim=1) + self.position[: ids.shape[1] + 1]
        visible, always = ids != self.pad_id, ids.new_ones(len(ids), 1, dtype=torch.bool)
        visible = torch.cat([visible, always] if self.class_mask == "aligned" else [always, visible], dim=1)
        x = self.layers(x, visible)
        return self.project(self.norm(self.pool(x, ids))), x[:, :-1]

    def step(self, ids: Tensor, kv_caches: Sequence[KVCache]) -> Tensor:
        """Return the features `(rows, 1, width)` of one more id per row, and append the ids to the caches."""
        place = kv_caches[0].length
        x: Tensor = self.token_embedding(ids)[:, None] + self.position[place]
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            kv_cache.visible[:, place + (self.class_mask == "shifted")] = ids != self.pad_id
            x = layer(x, None, kv_cache)
        return x


class CaptionDecoder(nn.Module):
    """CoCa's multimodal decoder: layers over the text, each followed by a layer that attends to the image.

    Shape:
        features `(batch, ids, width)` and image tokens `(batch, image_tokens, width)` to logits `(batch, ids,
        vocab_size)`.

    Args:
        vocab_size: number of ids.
        width: width of the features and of the image tokens.
        depth: number of self-attention layers, and also of cross-attention layers.
        num_heads: number of heads of every attention; divides `width`.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2.
    """

    def __init__(self, vocab_size: int, *, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.layers = BlockSequence(*(CaptionLayer(width, num_heads=num_heads) for _ in range(depth)))
        self.cross_layers = BlockSequence(*(CrossAttentionLayer(width, num_heads=num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, vocab_size, bias=False)

    def forward(self, features: Tensor, image_tokens: Tensor) -> Tensor:
        """Return the logits of the next id at every position."""
        for layer, cross_layer in zip(self.layers.functions(), self.cross_layers.functions(), strict=True):
            features = cross_layer(layer(features), image_tokens)
        logits: Tensor = self.project(self.norm(features))
        return logits

    def step(self, x: Tensor, kv_caches: Sequence[KVCache], contexts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the logits `(rows, vocab_size)` of the next id of every row.

        Args:
            x: features of the last id, `(rows, 1, width)`; rows of one image are consecutive.
            kv_caches: key-value caches, one per layer.
            contexts: keys and values of the images, one pair per layer.
        """
        rows, images = len(x), len(contexts[0][0])
        for layer, cross_layer, cache, context in zip(self.layers, self.cross_layers, kv_caches, contexts, strict=True):
            x = layer(x, None, cache)
            # The attention to an image treats the image's rows like the tokens of a text.
            x = cast("CrossAttentionLayer", cross_layer).attend(x.reshape(images, -1, x.shape[-1]), *context)
            x = x.reshape(rows, 1, -1)
        # In float32, because sampling needs more than the two or three digits of bfloat16.
        return F.linear(self.norm(x[:, 0]).float(), self.project.weight.float())
