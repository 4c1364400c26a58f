"""CoCa's decoder, one id at a time: what earlier ids and the image contribute to attention is computed once."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor, nn
from torch.nn import functional as F


@attrs.define(kw_only=True, eq=False)
class DecoderState:
    """Key and value caches of the captions that are being decoded.

    Args:
        position: ids that every caption has.
        keys: of every self-attention, (rows, heads, max_length, head_dim), filled up to `position`.
        values: likewise.
        image_keys: of every cross-attention, (images, heads, image tokens, head_dim).
        image_values: likewise.
    """

    position: int
    keys: list[Tensor]
    values: list[Tensor]
    image_keys: list[Tensor]
    image_values: list[Tensor]


class CocaDecoder:
    """The text half of open_clip's CoCa, for decoding with a memory.

    `logits = CoCa(image, ids).logits[:, -1]` for ids without padding, at the cost of one position instead of all.

    Raises:
        ValueError: if its text half is of another kind, which this decoder would compute wrongly.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2.
    Differs: open_clip computes all positions again for every id, and in bfloat16 rounds logits to bfloat16; here the
        last projection is in float32.
    """

    def __init__(self, model: Any) -> None:
        text, decoder = model.text, model.text_decoder
        embeds_class_token = getattr(text, "cls_emb", None) is not None
        if not (embeds_class_token and getattr(text, "attn_mask", None) is not None and not text.use_pad_mask):
            raise ValueError("this CoCa's text tower is not open_clip's causal transformer with a class token")
        self._text, self._decoder = text, decoder
        self._self_blocks = [*text.transformer.resblocks, *decoder.resblocks]
        self._num_text_blocks = len(text.transformer.resblocks)
        for block in (*self._self_blocks, *decoder.cross_attn):
            if not isinstance(block.attn, nn.MultiheadAttention) or block.attn.in_proj_weight is None:
                raise ValueError(
                    f"this CoCa attends by {type(block.attn).__name__}, which cannot be decoded step by step"
                )
        self._projection = decoder.text_projection.detach().float()

    def start(self, image_tokens: Tensor, *, num_captions: int, max_length: int) -> DecoderState:
        """Return the state of captions without ids.

        Shape:
            (images, image tokens, width).

        Args:
            image_tokens: what CoCa's image tower gives beside the embedding.
            num_captions: captions per image.
            max_length: ids per caption, at most; the memory is made for as many.
        """
        rows = len(image_tokens) * num_captions

        def empty(block: Any) -> Tensor:
            heads, head_dim = block.attn.num_heads, block.attn.head_dim
            return image_tokens.new_zeros(rows, heads, max_length, head_dim)

        image_keys, image_values = [], []
        for block in self._decoder.cross_attn:
            normed = block.ln_1_kv(image_tokens)
            image_keys.append(_heads(_projected(block.attn, normed, 1), block.attn.num_heads))
            image_values.append(_heads(_projected(block.attn, normed, 2), block.attn.num_heads))
        return DecoderState(
            position=0,
            keys=[empty(block) for block in self._self_blocks],
            values=[empty(block) for block in self._self_blocks],
            image_keys=image_keys,
            image_values=image_values,
        )

    def step(self, state: DecoderState, ids: Tensor) -> Tensor:
        """Return the logits of the next id, and append `ids` to the state.

        Shape:
            (rows,) int64 -> (rows, vocab) float32; the captions of an image are beside each other.
        """
        text = self._text
        hidden = text.token_embedding(ids) + text.positional_embedding[state.position]
        for index, block in enumerate(self._self_blocks):
            hidden = self._attend_back(block, hidden, state, index)
            if index >= self._num_text_blocks:
                hidden = self._attend_image(hidden, state, index - self._num_text_blocks)
        state.position += 1
        logits: Tensor = self._decoder.ln_final(hidden).float() @ self._projection
        return logits

    def _attend_back(self, block: Any, hidden: Tensor, state: DecoderState, index: int) -> Tensor:
        attention, end = block.attn, state.position + 1
        packed = F.linear(block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = packed.view(len(hidden), 3, attention.num_heads, 1, attention.head_dim).unbind(1)
        state.keys[index][:, :, end - 1 : end] = key
        state.values[index][:, :, end - 1 : end] = value
        attended = F.scaled_dot_product_attention(query, state.keys[index][:, :, :end], state.values[index][:, :, :end])
        return _finished(block, hidden, attended.flatten(1))

    def _attend_image(self, hidden: Tensor, state: DecoderState, index: int) -> Tensor:
        block = self._decoder.cross_attn[index]
        keys, values = state.image_keys[index], state.image_values[index]
        query = _projected(block.attn, block.ln_1(hidden), 0).view(len(keys), -1, hidden.shape[-1])
        attended = F.scaled_dot_product_attention(_heads(query, block.attn.num_heads), keys, values)
        return _finished(block, hidden, attended.transpose(1, 2).reshape(hidden.shape))


def _projected(attention: nn.MultiheadAttention, hidden: Tensor, part: int) -> Tensor:
    """Return queries (part 0), keys (1) or values (2)."""
    bias = attention.in_proj_bias
    weight = attention.in_proj_weight.chunk(3)[part]
    return F.linear(hidden, weight, None if bias is None else bias.chunk(3)[part])


def _heads(hidden: Tensor, num_heads: int) -> Tensor:
    """(batch, length, width) to (batch, heads, length, head_dim)."""
    return hidden.view(*hidden.shape[:-1], num_heads, -1).transpose(1, 2)


def _finished(block: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """Return the block's output, given what its attention gathered."""
    hidden = hidden + block.ls_1(block.attn.out_proj(attended))
    finished: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return finished
