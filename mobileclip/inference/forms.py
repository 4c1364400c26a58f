"""Faster forms of a tower with equal outputs: depthwise convolutions, single tokens, truncated texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention, EndTokenPool, TextRepMixerBlock, TransformerLayer
from mobileclip.blocks.mixing import as_map, as_sequence
from mobileclip.blocks.stages import TextPool
from mobileclip.encoders import DualEncoder, ImageEncoderSpec, TextEncoder, TextEncoderSpec, ViT
from mobileclip.encoders.families import image_spec, text_spec
from mobileclip.inputs import TextInput
from mobileclip.reparam import children_by_name, in_class, is_hooked, some_outputs, with_children

Module = TypeVar("Module", bound=nn.Module)
Dual = TypeVar("Dual", bound=DualEncoder)


class DepthwiseConvs(nn.Module):
    """A convolution with `m` outputs per input channel, computed as `m` depthwise convolutions.

    Of all grouped convolutions, most runtimes are fast only for depthwise convolutions. As depthwise convolutions, the
    layers between MCi's stages and MCi's last layer take half as long in PyTorch, ONNX Runtime and OpenVINO on a CPU.

    Shape:
        input and output as for `conv`.

    Args:
        conv: a convolution with as many groups as input channels; the module shares the weights of `conv`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        several = conv.out_channels // conv.groups
        parts = [some_outputs(conv, slice(start, None, several)) for start in range(several)]
        for part in parts:
            part.out_channels = conv.groups
        self.convs = nn.ModuleList(parts)
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x`."""
        outputs = [conv(x) for conv in self.convs]
        # One of the layers may still be in float32.
        wide = reduce(torch.promote_types, (output.dtype for output in outputs))
        return interleave([output.to(wide) for output in outputs])


def interleave(outputs: Sequence[Tensor]) -> Tensor:
    """Interleave the channels of several maps: the first channel of each map, then the second channel, and so on.

    Shape: maps `(batch, dim, height, width)` to `(batch, len(outputs) * dim, height, width)`.
    """
    # Compiled and exported programs get the simpler form, and choose their own memory format.
    if not torch.compiler.is_compiling() and memory_format(outputs[0]) is torch.channels_last:
        return torch.stack([output.permute(0, 2, 3, 1) for output in outputs], dim=-1).flatten(3).permute(0, 3, 1, 2)
    return torch.stack(list(outputs), dim=2).flatten(1, 2)


def memory_format(x: Tensor) -> torch.memory_format:
    """Return a map's memory format: `channels_last`, or `contiguous_format`, which has priority if both apply."""
    innermost = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if innermost else torch.contiguous_format


def with_depthwise_convs(module: Module) -> Module:
    """Replace grouped convolutions with several outputs per input channel by depthwise convolutions.

    Args:
        module: a module in evaluation mode; the result shares the weights.
    """
    changed = {}
    for name, child in children_by_name(module).items():
        replaced = _replaced(child)
        if replaced is not child:
            changed[name] = replaced
    return with_children(module, changed) if changed else module


def _replaced(child: nn.Module) -> nn.Module:
    if isinstance(child, nn.Conv2d) and 1 < child.groups == child.in_channels < child.out_channels:
        return DepthwiseConvs(child)
    return with_depthwise_convs(child)


def truncate_to_longest(tokens: Tensor, pool: TextPool) -> Tensor:
    """Truncate a batch to the tokens that a causal tower's embeddings depend on.

    In a causal tower, ids after the end token cannot affect the embedding, so the function truncates a batch after the
    end token of the longest text. Other towers attend to padding.

    Shape:
        `(batch, context_length)` to `(batch, tokens)`.
    """
    return tokens[:, : int(pool.position(tokens).max()) + 1] if len(tokens) else tokens


def by_length(tokens: Tensor, contract: TextInput) -> Tensor:
    """Return the indices that sort texts by length, for batches of texts with similar lengths.

    Shape:
        `(texts, context_length)` to `(texts,)`.

    Args:
        tokens: token ids.
        contract: text input of the tower.
    """
    return EndTokenPool(end_id=contract.pooled_id).position(tokens).argsort(stable=True)


def reads_text(tower: nn.Module) -> bool:
    """Return whether a tower is a text tower, by its spec or class."""
    return isinstance(getattr(tower, "spec", None), TextEncoderSpec) or isinstance(tower, TextEncoder)


def causal_pool(tower: object) -> TextPool | None:
    """Return the pooling module of a text tower with a causal mask; None for all other towers."""
    if isinstance(tower, TextEncoder) and tower.spec is not None and (tower.spec.causal or not len(tower.layers)):
        return tower.pool
    return None


# Attention function: takes queries, keys and values, each `(batch, heads, tokens, head_dim)`, and a term to add to
# `query key^T` (None for no term); returns the attended values.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# The usual mask holds -inf or -3.4e38. float16 cannot represent -3.4e38, and some runtimes turn the mask into NaN. The
# value here fits into float16, and its `exp` is zero in float32.
_MASKED = -1e4


def with_one_token(tower: nn.Module) -> nn.Module:
    """Return a tower whose last layer computes only the pooled token; return towers without such a form unchanged.

    If the last layer is a Text-RepMixer block, the transformer layer before the block computes queries and feed-forward
    network only for the tokens that the block reads (21 in MCt), and keys and values for all tokens.

    Args:
        tower: a tower in evaluation mode; the result shares the weights.
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
    """Return the single-token version of a layer; None for a layer class that has no such version."""
    if type(layer) is TransformerLayer and type(layer.attention) is Attention and is_plain(layer.attention.qkv):
        return OneTokenTransformerLayer(layer)
    return OneTokenRepMixerBlock(layer) if type(layer) is TextRepMixerBlock else None


def is_plain(linear: nn.Module) -> bool:
    """Return whether a linear layer has a plain weight, without adapter, quantisation or hooks."""
    return type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and not is_hooked(linear)


class OneTokenTextEncoder(TextEncoder):
    """A text encoder whose last layer computes only the end token."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokenised texts, without normalisation."""
        *layers, last = self.layers
        features = self.embed(tokens)
        for layer in layers:
            features = layer(features)
        y: Tensor = self.project(self.norm(last(features, self.pool.position(tokens))))
        return y


class EndWindowTextEncoder(TextEncoder):
    """A text encoder whose last layer computes only the end token, and the layer before only a window around it."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokenised texts, without normalisation."""
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
    """A vision transformer whose last layer computes only the class token."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of preprocessed images, without normalisation."""
        *layers, last = self.layers
        features = self.tokens(images)
        for layer in layers:
            features = layer(features)
        y: Tensor = self.project(self.norm(last(features, 0)))
        return y


class OneTokenTransformerLayer(nn.Module):
    """A transformer layer that computes one or a few tokens of a sequence, with all tokens as keys and values.

    Shape:
        input, index and result as for `pick`.

    Args:
        layer: transformer layer; the module shares the weights of `layer`.
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
    """A Text-RepMixer block that computes one token per sequence, and runs the feed-forward layers only on this token.

    Shape: `(batch, tokens, dim)` and the token's position, `(batch,)` or one int for all, to `(batch, dim)`. For a
        window of a sequence, a mask `(batch, tokens)` of 1 and 0 marks the tokens inside the sequence.

    Args:
        block: Text-RepMixer block; the module shares the weights of `block`.
    """

    def __init__(self, block: TextRepMixerBlock) -> None:
        super().__init__()
        self.token_mixer, self.ffn, self.layer_scale = block.token_mixer, block.ffn, block.layer_scale
        reaches = [_reach(part) for part in (block.token_mixer, block.ffn.conv)]
        self.reach = sum(reaches) if all(reaches) else 0
        """Number of tokens on either side of a token that the convolutions read; 0 if unknown."""
        self.training = False

    def forward(self, x: Tensor, index: Tensor | int, inside: Tensor | None = None) -> Tensor:
        """Return the transformed token of each sequence."""
        seen = as_map(x)
        # Beyond the ends of a sequence, both convolutions read zeros.
        mask = 1 if inside is None else inside[:, None, None]
        mixed = self.token_mixer(seen * mask) * mask
        picked, seen = (pick(as_sequence(y), index)[..., None, None] for y in (mixed, self.ffn.conv(mixed)))
        y: Tensor = picked + self.layer_scale(self.ffn.fc2(self.ffn.activation(self.ffn.fc1(seen))))
        return y.flatten(1)


def _reach(conv: nn.Module) -> int:
    """Return the number of tokens that a block's folded convolution reads on either side; 0 if unknown."""
    if type(conv) is not nn.Conv2d or is_hooked(conv) or conv.stride != (1, 1) or conv.padding_mode != "zeros":
        return 0
    reach = conv.dilation[1] * (conv.kernel_size[1] - 1) // 2
    return reach if conv.padding == (0, reach) else 0


class SingleQueryAttention(nn.Module):
    """Attention for one or a few query tokens, with one layer for queries and another for keys and values.

    Quantisers need the separate layers. Attention backends are not faster for few queries.

    Shape:
        input, index and result as for `pick`.

    Args:
        attention: attention module; the new module shares the weights of `attention`.
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
        """Return the attention output at the picked tokens of each sequence."""
        picked = pick(x, index)
        query = rearrange(self.query(picked), "b ... (h d) -> b h (...) d", h=self.num_heads)
        key_value = rearrange(self.key_value(x), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        # One of the two layers may still be in float32.
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
    """Return `softmax(query key^T / sqrt(head_dim) + mask) value`, from `F.scaled_dot_product_attention`.

    Shape:
        query, key, value and result: `(batch, heads, tokens, head_dim)`; mask: `(..., queries, tokens)`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def causal_mask(tokens: int, like: Tensor) -> Tensor:
    """Return the causal mask, a term for the attention logits, with the dtype and device of `like`.

    Shape:
        `(tokens, tokens)`.
    """
    return torch.full((tokens, tokens), _MASKED, dtype=like.dtype, device=like.device).triu(1)


def pick(x: Tensor, index: Tensor | int) -> Tensor:
    """Return the tokens at `index` of each sequence: `y[i] = x[i, index[i]]`; an int applies to all sequences.

    Shape:
        x: `(batch, tokens, dim)`. An index `(batch,)` or int gives `(batch, dim)`; an index `(batch, picked)` gives
        `(batch, picked, dim)`.
    """
    if isinstance(index, int):
        return x[:, index]
    several = index if index.ndim == 2 else index[:, None]
    found = torch.gather(x, 1, several[..., None].expand(-1, -1, x.shape[-1]))
    return found if index.ndim == 2 else found[:, 0]


MOST_IMAGES_ON_CPU = 4
"""Maximum number of images per batch on a CPU: features of a few images stay in the CPU's cache. On two cores,
MobileCLIP-S0 takes little more than half the time per image with batches of four instead of 64."""


def prepared(model: DualEncoder, *, images: bool = True, texts: bool = True) -> DualEncoder:
    """Return a dual encoder with towers prepared for encoding; see `prepared_tower`.

    Args:
        model: a model in evaluation mode; the result shares the model's weights. Preparation takes about a millisecond,
            so callers prepare the model for every batch.
        images: whether to prepare the image tower; preparing an image tower takes longer than preparing a text tower.
        texts: whether to prepare the text tower.
    """
    return with_towers(
        model,
        image_encoder=prepared_tower(model.image_encoder) if images else None,
        text_encoder=prepared_tower(model.text_encoder) if texts else None,
    )


def with_towers(
    model: DualEncoder,
    *,
    image_encoder: nn.Module | None = None,
    text_encoder: nn.Module | None = None,
    kind: type[Dual] | None = None,
) -> Dual:
    """Return a copy of a dual encoder with other towers, in evaluation mode; the copy shares all other parameters.

    Args:
        model: the model, which stays unchanged.
        image_encoder: new image tower; None to keep the model's image tower.
        text_encoder: new text tower; None to keep the model's text tower.
        kind: class of the returned model; None for the class of `model`.

    Raises:
        ValueError: if the embedding dimensions of the two towers differ.
    """
    given = {"image_encoder": image_encoder, "text_encoder": text_encoder}
    other = with_children(model, {name: tower for name, tower in given.items() if tower is not None})
    other.training = False
    assert other.spec, "the towers embed into one space"
    return cast("Dual", other if kind is None else in_class(other, kind))


def prepared_tower(tower: nn.Module) -> nn.Module:
    """Return a faster form of a tower with equal embeddings.

    The last transformer layer computes only the pooled token, and causal text towers truncate batches to the longest
    text. On a CPU, convolutions with several outputs per channel become depthwise convolutions, and images are
    channels-last.

    Args:
        tower: a tower in evaluation mode; the result shares the weights.
    """
    if isinstance(tower, PreparedTower):
        return tower
    if reads_text(tower):
        return TruncatedTextTower(tower)
    weight = next(tower.parameters(), None)
    if weight is None or weight.device.type != "cpu":
        return with_one_token(tower)
    return ChannelsLastTower(with_depthwise_convs(with_one_token(tower)))


def with_fast_layout(model: DualEncoder) -> DualEncoder:
    """Convert the weights of a model's image tower to channels last, the fastest memory format on a CPU."""
    if model.logit_scale.device.type == "cpu":
        model.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class ReadyDualEncoder(DualEncoder):
    """A dual encoder whose towers are `PreparedTower` modules with their own backend and batch size."""


class PreparedTower(nn.Module):
    """Base class of towers in a form for fast encoding."""

    @property
    @abstractmethod
    def spec(self) -> ImageEncoderSpec | TextEncoderSpec:
        """The spec of the tower."""

    @property
    def takes_pixels(self) -> bool:
        """Whether the tower also accepts uint8 pixels, and scales and normalises the pixels."""
        return False


class TruncatedTextTower(PreparedTower):
    """A text tower that truncates a batch to the longest text, if the tower is causal.

    Shape:
        ids `(batch, context_length)` to `(batch, embedding_dim)`.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = with_one_token(tower)
        self.pool = causal_pool(tower)
        self.training = False

    @property
    def spec(self) -> TextEncoderSpec:
        """The spec of the tower."""
        return text_spec(self.tower)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings, without normalisation."""
        y: Tensor = self.tower(tokens if self.pool is None else truncate_to_longest(tokens, self.pool))
        return y


class ChannelsLastTower(PreparedTower):
    """An image tower that converts inputs to channels-last memory format.

    Shape:
        `(batch, 3, height, width)` to `(batch, embedding_dim)`.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.training = False

    @property
    def spec(self) -> ImageEncoderSpec:
        """The spec of the tower."""
        return image_spec(self.tower)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, without normalisation."""
        y: Tensor = self.tower(images.contiguous(memory_format=torch.channels_last))
        return y
