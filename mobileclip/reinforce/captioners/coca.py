"""CoCa as a captioner: open_clip's, decoded one id at a time, and ours from a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.data import Tokenizer
from mobileclip.data.samples.sample import SYN_TEXT
from mobileclip.encoders import CoCa
from mobileclip.encoders.checkpoints import load_model
from mobileclip.hardware.precision import dtype_of
from mobileclip.inputs import TextInput
from mobileclip.interop.open_clip_models import (
    OpenClipModel,
    OpenClipSource,
    image_input,
    load_open_clip,
    open_clip_package,
)
from mobileclip.reinforce.captioners.base import CaptionerSpec, CaptionSet, SeveralCaptioners, captioners
from mobileclip.reinforce.captioners.nucleus import NucleusCaptioner, NucleusSpec
from mobileclip.strict import strict
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.weights import weights_sha256


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


@captioners.register("coca")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CocaCaptioner(NucleusSpec):
    """CoCa's captions by nucleus sampling, cut in front of the first full stop.

    Args:
        model: as `OpenClipTeacher` takes it.
        pretrained: as `OpenClipTeacher` takes it.

    Raises:
        ValueError: if the weights are not said, or are said twice.

    Source: section 4 of the paper, and the release's generator, whose length limits these are.
    Differs: draws depend on the image's seed alone, not on the batch; neither a full stop nor the end comes before the
        fifth id, so that no caption is empty; padding, which the release may draw and then spells out as exclamation
        marks, is never drawn.
    """

    model: str = attrs.field(default="coca_ViT-L-14", validator=validators.min_len(1))
    pretrained: str | None = "mscoco_finetuned_laion2B-s13B-b90k"

    def __attrs_post_init__(self) -> None:
        self._source()

    def build(self, device: str = "cpu") -> CocaModel:
        """Return the captioner, its weights loaded.

        Raises:
            ValueError: if open_clip is missing, it does not know the model or the tag, the weights do not fit, or the
                model is no CoCa that can be decoded here.
        """
        return CocaModel(self, load_open_clip(self._source(), device=device, precision=self.precision))

    def _source(self) -> OpenClipSource:
        return OpenClipSource(model=self.model, pretrained=self.pretrained)


class CocaModel(NucleusCaptioner):
    """A loaded CoCa of open_clip's.

    Args:
        spec: the choices.
        loaded: the model.

    Raises:
        ValueError: if it is no CoCa, its image transform is not resize and centre crop, or its context is too short.
    """

    def __init__(self, spec: CocaCaptioner, loaded: OpenClipModel) -> None:
        if not isinstance(loaded.model, open_clip_package().CoCa):
            raise ValueError(f"{loaded.name} is no CoCa, so it writes no captions")
        if loaded.preprocess["resize_mode"] != "shortest":
            raise ValueError(
                f"{loaded.name} makes images square by {loaded.preprocess['resize_mode']!r}; only 'shortest', resize "
                "and centre crop, is supported"
            )
        super().__init__(
            spec,
            name=loaded.name,
            weights_sha256=loaded.weights_sha256,
            image=image_input(loaded.preprocess, loaded.name),
            place=next(loaded.model.parameters()),
            encode=lambda images: loaded.model.visual(images)[1],
            decoder=CocaDecoder(loaded.model),
            vocabulary=Vocabulary(loaded.tokenizer),
            context_length=loaded.model.context_length,
        )


class Vocabulary:
    """The vocabulary of CoCa's captions: ids to text.

    Args:
        tokenizer: open_clip's, of CLIP's byte pairs.

    Raises:
        ValueError: if it is another one.
    """

    def __init__(self, tokenizer: Callable[[Sequence[str]], Tensor]) -> None:
        package: Any = open_clip_package()
        if not isinstance(tokenizer, package.tokenizer.SimpleTokenizer):
            raise ValueError(f"captions in the ids of {type(tokenizer).__name__} cannot be read; CLIP's are expected")
        self._tokenizer: Any = tokenizer
        tokens = self._tokenizer.decoder
        self.start_id: int = self._tokenizer.sot_token_id
        self.end_id: int = self._tokenizer.eot_token_id
        self.stops = torch.tensor([index == self.end_id or "." in tokens[index] for index in range(len(tokens))])

    def text(self, ids: Sequence[int]) -> str:
        """Return the caption: up to the first full stop or the end, without it."""
        before_end = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        decoded: str = self._tokenizer.decode(before_end)
        return decoded.split(".", maxsplit=1)[0].strip()


@captioners.register("checkpoint")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CheckpointCaptioner(NucleusSpec):
    """Captions of a `CoCa` in a file, by nucleus sampling, as `CocaCaptioner` writes them; open_clip is not needed.

    Args:
        checkpoint: a file of ours or of open_clip's, see `load_model`, a checkpoint of a run, or `hf-hub:OWNER/NAME`.
    """

    checkpoint: str = attrs.field(converter=os.fspath)

    def build(self, device: str = "cpu") -> NucleusCaptioner:
        """Return the captioner, its weights loaded.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if it holds no captioner.
            ValueError: if its context is shorter than `max_length`, or its texts have no start token.
        """
        model = load_model(self.checkpoint, fold=False).requires_grad_(requires_grad=False)
        if not isinstance(model, CoCa):
            raise CheckpointError(f"{self.checkpoint} holds no captioner, but a {type(model).__name__}")
        sha256, text = weights_sha256(model.state_dict()), model.spec.text.input
        name = f"{Path(self.checkpoint).stem}-{sha256[:8]}"
        model.to(device=device, dtype=dtype_of(self.precision))
        return NucleusCaptioner(
            self,
            name=name if self.precision == "float32" else f"{name}/{self.precision}",
            weights_sha256=sha256,
            image=model.spec.image.input,
            place=model.logit_scale,
            encode=lambda images: model.image_tokens(images)[1],
            decoder=model,
            vocabulary=_Vocabulary(text),
            context_length=text.context_length,
        )


def with_weights(captioner: NucleusSpec, weights: Sequence[str]) -> CaptionerSpec:
    """Return a captioner with the weights and the architecture of each file, in sets of their own for several files.

    Args:
        captioner: whose other choices are kept.
        weights: as `CheckpointCaptioner` takes a checkpoint; the set of NAME.pt and of hf-hub:OWNER/NAME is
            `syn_text_NAME`.

    Raises:
        ValueError: if two files have one name.
    """
    kept = {name: getattr(captioner, name) for name in attrs.fields_dict(NucleusSpec)}  # type: ignore[type-abstract]
    own = [CheckpointCaptioner(checkpoint=one, **kept) for one in weights]
    if len(own) == 1:
        return own[0]
    names = [Path(re.sub(r"^(hf-hub:[^@#]*).*", r"\1", one)).stem for one in weights]
    return SeveralCaptioners(
        sets=tuple(
            CaptionSet(name=f"{SYN_TEXT}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}", captioner=one)
            for name, one in zip(names, own, strict=True)
        )
    )


class _Vocabulary:
    """The vocabulary of a captioner's texts.

    Args:
        text: their contract.

    Raises:
        ValueError: if captions cannot begin.
    """

    def __init__(self, text: TextInput) -> None:
        if text.start_id is None:
            raise ValueError("captions begin with a start token, and this model's tokenizer has none")
        self.start_id, self.end_id, self._tokenizer = text.start_id, text.end_id, Tokenizer(text)
        special = {text.start_id, text.end_id, text.pad_id}
        words = ["" if index in special else self._tokenizer.decode([index]) for index in range(text.vocab_size)]
        self.stops = torch.tensor([index == text.end_id or "." in word for index, word in enumerate(words)])

    def text(self, ids: Sequence[int]) -> str:
        """Return the caption: up to the first full stop or the end, without it."""
        return self._tokenizer.decode(ids).split(".", maxsplit=1)[0].strip()
