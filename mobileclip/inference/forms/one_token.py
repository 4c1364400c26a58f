"""The last layer of a tower that is read at one token, for that token alone: nothing depends on the others any more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention, EndTokenPool, TextRepMixerBlock, TransformerLayer
from mobileclip.blocks.repmixer import as_map, as_sequence
from mobileclip.encoders import TextEncoder, ViT
from mobileclip.reparam import is_hooked, some_outputs, with_children

# From queries, keys, values, all `(batch, heads, tokens, head_dim)`, and what is added to `query key^T`, to values.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# The usual mask holds -inf or -3.4e38, which float16 cannot, and which some runtimes turn into NaN. This is within
# float16, and `exp` of it is zero in float32 already.
_MASKED = -1e4


def with_one_token(tower: nn.Module) -> nn.Module:
    """Return a tower whose last layer computes the token that is read alone; any other tower as it is.

    Args:
        tower: in evaluation mode; the other one shares its weights.
    """
    of_one_token = {TextEncoder: OneTokenTextEncoder, ViT: OneTokenViT}.get(type(tower))
    if of_one_token is None:
        return tower
    assert isinstance(tower, TextEncoder | ViT)
    if isinstance(tower, TextEncoder) and not (isinstance(tower.pool, EndTokenPool) and len(tower.layers)):
        return tower
    layers = list(tower.layers)[:-1]
    reads_one = _reading_one(tower.layers[-1])
    if reads_one is None:
        return tower
    form = with_children(tower, {"layers": with_children(tower.layers, {str(len(layers)): reads_one})})
    form.__class__ = of_one_token
    return form


def _reading_one(layer: nn.Module) -> nn.Module | None:
    """Return what a layer computes for one token, or None where nobody knows."""
    if type(layer) is TransformerLayer and type(layer.attention) is Attention and is_plain(layer.attention.qkv):
        return OneTokenTransformerLayer(layer)
    return OneTokenRepMixerBlock(layer) if type(layer) is TextRepMixerBlock else None


def is_plain(linear: nn.Module) -> bool:
    """Whether a layer's weight is all that it computes with: no adapter or quantised layer stands there."""
    return type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and not is_hooked(linear)


class OneTokenTextEncoder(TextEncoder):
    """A text encoder whose last layer computes the end token alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings, not normalised, of tokenised texts."""
        *layers, last = self.layers
        features = self.embed(tokens)
        for layer in layers:
            features = layer(features)
        y: Tensor = self.project(self.norm(last(features, self.pool.position(tokens))))
        return y


class OneTokenViT(ViT):
    """A vision transformer whose last layer computes the class token alone."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, not normalised, of preprocessed images."""
        *layers, last = self.layers
        features = self.tokens(images)
        for layer in layers:
            features = layer(features)
        y: Tensor = self.project(self.norm(last(features, 0)))
        return y


class OneTokenTransformerLayer(nn.Module):
    """One token of what a transformer layer gives; of the others, what it attends to.

    Shape:
        `(batch, tokens, dim)` and the token's position, `(batch,)` or one for all, to `(batch, dim)`.

    Args:
        layer: its weights are shared.
    """

    def __init__(self, layer: TransformerLayer) -> None:
        super().__init__()
        assert isinstance(layer.attention, Attention)
        self.attention_norm = layer.attention_norm
        self.attention = SingleQueryAttention(layer.attention)
        self.ffn_norm = layer.ffn_norm
        self.ffn = layer.ffn
        self.training = False

    def forward(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Return the transformed token of each sequence."""
        picked = pick(x, index) + self.attention(self.attention_norm(x), index)
        y: Tensor = picked + self.ffn(self.ffn_norm(picked))
        return y


class OneTokenRepMixerBlock(nn.Module):
    """One token of what a Text-RepMixer block gives; the wide layers see it alone.

    Shape:
        `(batch, tokens, dim)` and the token's position, `(batch,)` or one for all, to `(batch, dim)`.

    Args:
        block: its weights are shared.
    """

    def __init__(self, block: TextRepMixerBlock) -> None:
        super().__init__()
        self.token_mixer, self.ffn, self.layer_scale = block.token_mixer, block.ffn, block.layer_scale
        self.training = False

    def forward(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Return the transformed token of each sequence."""
        mixed = self.token_mixer(as_map(x))
        picked, seen = (pick(as_sequence(y), index)[..., None, None] for y in (mixed, self.ffn.conv(mixed)))
        y: Tensor = picked + self.layer_scale(self.ffn.fc2(self.ffn.activation(self.ffn.fc1(seen))))
        return y.flatten(1)


class SingleQueryAttention(nn.Module):
    """One token of what an attention gives, with a layer for the query and one for keys and values.

    Quantisers look for layers. A single query a head: no backend of attention has anything to gain here.

    Shape:
        `(batch, tokens, dim)` and the token's position, `(batch,)` or one for all, to `(batch, dim)`.

    Args:
        attention: its weights are shared.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        dim = attention.project.in_features
        self.num_heads, self.causal = attention.num_heads, attention.causal
        self.attend: Attend = fused_attention
        self.query = some_outputs(attention.qkv, slice(0, dim))
        self.key_value = some_outputs(attention.qkv, slice(dim, 3 * dim))
        self.query.out_features, self.key_value.out_features = dim, 2 * dim
        self.project = attention.project
        self.training = False

    def forward(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Return the attended token of each sequence."""
        query = rearrange(self.query(pick(x, index)), "b (h d) -> b h 1 d", h=self.num_heads)
        key_value = rearrange(self.key_value(x), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        # One of the two layers may be kept in float32.
        wide = torch.promote_types(query.dtype, key_value.dtype)
        query, key_value = query.to(wide), key_value.to(wide)
        mask = None
        if self.causal:
            mask = causal_mask(x.shape[1], query)[torch.as_tensor(index).reshape(-1)][:, None, None]
        attended = self.attend(query, key_value[0], key_value[1], mask)
        y: Tensor = self.project(rearrange(attended, "b h 1 d -> b (h d)"))
        return y


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return `softmax(query key^T / sqrt(head_dim) + mask) value` by the one operation that runtimes know.

    Shape:
        all `(batch, heads, tokens, head_dim)`; the mask, `(..., queries, tokens)`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def causal_mask(tokens: int, like: Tensor) -> Tensor:
    """Return what keeps each token from seeing later ones, of the type of `like`.

    Shape:
        `(tokens, tokens)`.
    """
    return torch.full((tokens, tokens), _MASKED, dtype=like.dtype, device=like.device).triu(1)


def pick(x: Tensor, index: Tensor | int) -> Tensor:
    """Return the token at `index` of each sequence: `y[i] = x[i, index[i]]`, or the same one of all.

    Shape:
        `(batch, tokens, dim)` and `(batch,)` to `(batch, dim)`.
    """
    if isinstance(index, int):
        return x[:, index]
    return torch.gather(x, 1, index[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
