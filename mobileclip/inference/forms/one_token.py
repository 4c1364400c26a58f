"""The last layers of a tower that is read at one token, for that token and those that it depends on alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention, EndTokenPool, TextRepMixerBlock, TransformerLayer
from mobileclip.blocks.mixing import as_map, as_sequence
from mobileclip.encoders import TextEncoder, ViT
from mobileclip.reparam import in_class, is_hooked, some_outputs, with_children

# From queries, keys, values, all `(batch, heads, tokens, head_dim)`, and what is added to `query key^T`, to values.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# The usual mask holds -inf or -3.4e38, which float16 cannot, and which some runtimes turn into NaN. This is within
# float16, and `exp` of it is zero in float32 already.
_MASKED = -1e4


def with_one_token(tower: nn.Module) -> nn.Module:
    """Return a tower whose last layer computes the token that is read alone; any other tower as it is.

    A transformer layer in front of a last Text-RepMixer block computes the tokens that this one reads: of MCt, 21. Its
    queries and feed-forward network see these alone; its keys and values, all.

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
    changed = {str(len(layers)): reads_one}
    if isinstance(reads_one, OneTokenRepMixerBlock) and layers:
        in_front = _reading_one(layers[-1])
        if isinstance(in_front, OneTokenTransformerLayer) and 0 < 2 * reads_one.reach < len(tower.position) - 1:
            changed[str(len(layers) - 1)] = in_front
            of_one_token = EndWindowTextEncoder
    return in_class(with_children(tower, {"layers": with_children(tower.layers, changed)}), of_one_token)


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


class EndWindowTextEncoder(TextEncoder):
    """A text encoder whose last layer computes the end token alone, and the one in front what that depends on."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings, not normalised, of tokenised texts."""
        *layers, in_front, last = self.layers
        features = self.embed(tokens)
        for layer in layers:
            features = layer(features)
        reach, length = cast("OneTokenRepMixerBlock", last).reach, tokens.shape[1]
        window = self.pool.position(tokens)[:, None] + torch.arange(-reach, reach + 1, device=tokens.device)
        seen = window.clamp(0, length - 1)
        inside = (seen == window).to(features.dtype)
        features = in_front(features, seen)
        y: Tensor = self.project(self.norm(last(features, reach, inside)))
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
    """One token, or a few, of what a transformer layer gives; of the others, what these attend to.

    Shape:
        as `pick`'s.

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
        """Return the transformed tokens of each sequence."""
        picked = pick(x, index) + self.attention(self.attention_norm(x), index)
        y: Tensor = picked + self.ffn(self.ffn_norm(picked))
        return y


class OneTokenRepMixerBlock(nn.Module):
    """One token of what a Text-RepMixer block gives; the wide layers see it alone.

    Shape:
        `(batch, tokens, dim)` and the token's position, `(batch,)` or one for all, to `(batch, dim)`; where the tokens
        are a window of a sequence, which of them are inside of it, `(batch, tokens)`, 1 or 0.

    Args:
        block: its weights are shared.
    """

    def __init__(self, block: TextRepMixerBlock) -> None:
        super().__init__()
        self.token_mixer, self.ffn, self.layer_scale = block.token_mixer, block.ffn, block.layer_scale
        reaches = [_reach(part) for part in (block.token_mixer, block.ffn.conv)]
        self.reach = sum(reaches) if all(reaches) else 0
        """How many tokens on either side it depends on; 0 where that is not known."""
        self.training = False

    def forward(self, x: Tensor, index: Tensor | int, inside: Tensor | None = None) -> Tensor:
        """Return the transformed token of each sequence."""
        seen = as_map(x)
        # Behind the ends of a sequence, both convolutions see zeros.
        mask = 1 if inside is None else inside[:, None, None]
        mixed = self.token_mixer(seen * mask) * mask
        picked, seen = (pick(as_sequence(y), index)[..., None, None] for y in (mixed, self.ffn.conv(mixed)))
        y: Tensor = picked + self.layer_scale(self.ffn.fc2(self.ffn.activation(self.ffn.fc1(seen))))
        return y.flatten(1)


def _reach(conv: nn.Module) -> int:
    """Return how many tokens a folded convolution of a Text-RepMixer block sees on either side; 0: nobody knows."""
    if type(conv) is not nn.Conv2d or is_hooked(conv) or conv.stride != (1, 1) or conv.padding_mode != "zeros":
        return 0
    reach = conv.dilation[1] * (conv.kernel_size[1] - 1) // 2
    return reach if conv.padding == (0, reach) else 0


class SingleQueryAttention(nn.Module):
    """One token, or a few, of what an attention gives, with a layer for the queries and one for keys and values.

    Quantisers look for layers. With so few queries, no backend of attention has anything to gain here.

    Shape:
        as `pick`'s.

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
        """Return the attended tokens of each sequence."""
        picked = pick(x, index)
        query = rearrange(self.query(picked), "b ... (h d) -> b h (...) d", h=self.num_heads)
        key_value = rearrange(self.key_value(x), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        # One of the two layers may be kept in float32.
        wide = torch.promote_types(query.dtype, key_value.dtype)
        query, key_value = query.to(wide), key_value.to(wide)
        mask = None
        if self.causal:
            mask = causal_mask(x.shape[1], query)[torch.as_tensor(index)]
            mask = mask.reshape(-1, 1, query.shape[2], x.shape[1])
        attended = self.attend(query, key_value[0], key_value[1], mask)
        attended = rearrange(attended, "b h n d -> b n (h d)")
        y: Tensor = self.project(attended if picked.ndim == 3 else attended[:, 0])
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
    """Return the tokens at `index` of each sequence: `y[i] = x[i, index[i]]`, or the same one of all.

    Shape:
        `(batch, tokens, dim)` and `(batch,)`, or one number for all, to `(batch, dim)`; with `(batch, picked)`, to
        `(batch, picked, dim)`.
    """
    if isinstance(index, int):
        return x[:, index]
    several = index if index.ndim == 2 else index[:, None]
    found = torch.gather(x, 1, several[..., None].expand(-1, -1, x.shape[-1]))
    return found if index.ndim == 2 else found[:, 0]
