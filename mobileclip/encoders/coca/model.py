"""CoCa: an image-text model that also generates captions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import attrs
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention, AttentionPooler, CrossAttention
from mobileclip.blocks.sequence import ActivationCheckpointing
from mobileclip.encoders.coca.text import CaptionDecoder, CaptionLayer, CaptionTextEncoder, KVCache
from mobileclip.encoders.dual import INITIAL_LOGIT_SCALE, MAX_LOGIT_SCALE
from mobileclip.encoders.families import ImageEncoderSpec
from mobileclip.encoders.text import TextTransformerSpec
from mobileclip.encoders.towers import DEPTH, WIDTH, check_heads, check_images
from mobileclip.encoders.vit import ViT
from mobileclip.strict import strict

if TYPE_CHECKING:
    from mobileclip.encoders.mci import MCi

ClassMask = Literal["shifted", "aligned"]

_POSITION = "text_encoder.position"


@attrs.frozen(kw_only=True, field_transformer=strict)
class CoCaSpec:
    """A captioner: an image tower, a text tower and a decoder that attends to the image.

    Args:
        image: spec of the image tower: an MCi, a ViT, or any tower with a `backbone()` of `dims[-1]` channels; learned
            queries replace the tower's head and pool the features.
        text: spec of the causal text tower, with a class token after the text. `input.context_length` does not count
            the class token: 76 for models with context 77, 127 for 128, 255 for 256. The embedding and the decoder have
            the text tower's width.
        decoder_depth: number of pairs of decoder layers; a pair has self-attention over the text, then cross-attention
            to the image.
        decoder_heads: number of attention heads per decoder layer; divides the width.
        num_queries: number of pooling queries; the first query yields the embedding, the other queries yield the
            decoder's context.
        pooler_heads: number of attention heads of the pooling; divides the width.
        class_mask: padding mask, `aligned` with the ids or `shifted` by one position; published weights need `shifted`.
        max_logit_scale: maximum logit scale; open_clip's model has no maximum.

    Raises:
        ValueError: if the widths differ, a number of heads does not divide the width, or the text tower is not causal
            or has `pool="mean"`.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models"; MobileCLIP2, section 3.

    Examples:
        >>> text = TextTransformerSpec(width=16, depth=1, num_heads=2, embedding_dim=16, causal=True)
        >>> image = ViTSpec(width=24, depth=1, num_heads=2, embedding_dim=16)
        >>> CoCaSpec(image=image, text=text, decoder_depth=1, num_queries=9).build().decoder.project.out_features
        49408
    """

    image: ImageEncoderSpec
    text: TextTransformerSpec
    decoder_depth: int = attrs.field(default=12, validator=DEPTH)
    decoder_heads: int = attrs.field(default=8, validator=WIDTH)
    num_queries: int = attrs.field(default=256, validator=[validators.ge(2), validators.le(1 << 12)])
    pooler_heads: int = attrs.field(default=8, validator=WIDTH)
    class_mask: ClassMask = attrs.field(default="shifted", validator=validators.in_(("shifted", "aligned")))
    max_logit_scale: float = attrs.field(default=MAX_LOGIT_SCALE, validator=validators.gt(0), eq=False)

    def __attrs_post_init__(self) -> None:
        """Check that the towers and the decoder have equal widths."""
        widths = {self.image.embedding_dim, self.text.embedding_dim, self.text.width}
        if len(widths) > 1:
            raise ValueError(
                "the image embeddings, text embeddings and text tower of a CoCa must have equal widths, not "
                f"{sorted(widths)}"
            )
        for heads in (self.decoder_heads, self.pooler_heads):
            check_heads(self.text.width, heads)
        if not self.text.causal or self.text.pool != "end":
            raise ValueError(
                'the text tower of a CoCa must be causal and pool its class token; pass causal=True and pool="end"'
            )

    @property
    def num_blocks(self) -> int:
        """Number of blocks of both towers and the decoder."""
        return self.image.num_blocks + self.text.num_blocks + 2 * self.decoder_depth

    def with_context(self, context_length: int) -> CoCaSpec:
        """Return the spec for a different context length."""
        text = attrs.evolve(self.text.input, context_length=context_length)
        return attrs.evolve(self, text=attrs.evolve(self.text, input=text))

    def weights_for_context(self, weights: Mapping[str, Tensor], context_length: int) -> dict[str, Tensor]:
        """Return weights with linearly interpolated position embeddings, as in open_clip."""
        position, count = weights[_POSITION], context_length + 1
        if len(position) != count:
            position = F.interpolate(position.float().T[None], size=count, mode="linear")[0].T.contiguous()
        return {**weights, _POSITION: position}

    def build(self) -> CoCa:
        """Return a new model.

        Raises:
            ValueError: if the image tower has no backbone.
        """
        return CoCa(self)


class CoCaOutput(NamedTuple):
    """The output of a CoCa on image-text pairs: embeddings, logit scale, caption logits and labels.

    Args:
        image: image embeddings of unit length, (batch, embedding_dim).
        text: text embeddings of unit length, (batch, embedding_dim).
        logit_scale: `exp` of the model's `logit_scale` parameter, not clamped.
        logits: logits of every id except the first, (batch, ids - 1, vocab_size).
        labels: the ids that the logits predict, (batch, ids - 1).
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logits: Tensor
    labels: Tensor


class CaptionState(NamedTuple):
    """The state of captions during generation.

    Args:
        text: key-value caches of the text tower's layers.
        decoder: key-value caches of the decoder's self-attention layers.
        contexts: keys and values of the images, for each cross-attention layer.
    """

    text: list[KVCache]
    decoder: list[KVCache]
    contexts: list[tuple[Tensor, Tensor]]

    def reorder(self, rows: Tensor) -> None:
        """Replace the state of each caption `i` by the state of `rows[i]`, a caption of the same image."""
        for kv_cache in (*self.text, *self.decoder):
            kv_cache.reorder(rows)


class CoCa(ActivationCheckpointing, nn.Module):
    """Two towers with one embedding space, and a caption decoder.

    `tokens = image_norm(pooler(image_encoder(images)))`; `image_project` maps the first token to the image embedding,
    and the decoder attends to the other tokens.

    Shape:
        images `(batch, channels, size, size)` and ids `(batch, ids)` to `CoCaOutput`.

    Args:
        spec: spec of both towers and the decoder.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models".
    Differs: as in open_clip, one pooling gives both the embedding and the decoder's tokens; the paper has two
        consecutive poolings.

    Examples:
        >>> text = TextTransformerSpec(width=16, depth=1, num_heads=2, embedding_dim=16, causal=True)
        >>> image = ViTSpec(width=24, depth=1, num_heads=2, embedding_dim=16)
        >>> model = CoCaSpec(image=image, text=text, decoder_depth=1, num_queries=9).build()
        >>> model(torch.rand(2, 3, 224, 224), torch.ones(2, 20, dtype=torch.int64)).logits.shape
        torch.Size([2, 19, 49408])
    """

    def __init__(self, spec: CoCaSpec) -> None:
        super().__init__()
        tower, text, width = cast("MCi | ViT", spec.image.build()), spec.text, spec.text.width
        if not hasattr(tower, "backbone"):
            raise ValueError(
                f"a CoCa pools the features of its image tower, but {type(tower).__name__} has no backbone()"
            )
        self.spec = spec
        self.image_encoder = tower.backbone()
        self.pooler = AttentionPooler(
            width, context_dim=tower.dims[-1], num_queries=spec.num_queries, num_heads=spec.pooler_heads
        )
        self.image_norm = nn.LayerNorm(width)
        self.image_project = nn.Linear(width, width, bias=False)
        self.text_encoder = CaptionTextEncoder(text, class_mask=spec.class_mask)
        self.decoder = CaptionDecoder(
            text.input.vocab_size, width=width, depth=spec.decoder_depth, num_heads=spec.decoder_heads
        )
        # One-dimensional, because `fully_shard` does not accept scalars.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(INITIAL_LOGIT_SCALE)]))
        self._initialize()

    @property
    def similarity_scale(self) -> Tensor:
        """The clamped logit scale, `min(exp(logit_scale), max_logit_scale)`."""
        return self.logit_scale.reshape(()).exp().clamp(max=self.max_logit_scale)

    @property
    def max_logit_scale(self) -> float:
        """Maximum logit scale, see `CoCaSpec`."""
        return self.spec.max_logit_scale

    def forward(self, image: Tensor, text: Tensor) -> CoCaOutput:
        """Return embeddings of unit length, and the logits of every id given the image and the ids before it.

        Args:
            image: preprocessed images.
            text: token ids, at most `context_length` per text.
        """
        images, image_tokens = self.image_tokens(image)
        texts, features = self.text_encoder(text)
        logits = self.decoder(features[:, :-1], image_tokens)
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        return CoCaOutput(images, texts, self.logit_scale.reshape(()).exp(), logits, text[:, 1:])

    def image_tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return unnormalised image embeddings, and the tokens that the decoder attends to.

        Shape:
            `(batch, embedding_dim)` and `(batch, num_queries - 1, width)`.

        Raises:
            ValueError: if the number of channels or the size of the images differs from the spec.
        """
        check_images(image, self.spec.image.input)
        tower = self.image_encoder
        if isinstance(tower, ViT):
            (features,) = tower.layer_tokens(image, [len(tower.layers) - 1])
        else:
            features = tower(image).flatten(2).transpose(1, 2)
        pooled = self.image_norm(self.pooler(features))
        return self.image_project(pooled[:, 0]), pooled[:, 1:]

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - as DualEncoder
        """Return the embeddings of preprocessed images, optionally of unit length."""
        embedding, _ = self.image_tokens(image)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - as DualEncoder
        """Return the embeddings of token ids, optionally of unit length."""
        embedding: Tensor = self.text_encoder(text)[0]
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def start(self, image_tokens: Tensor, *, num_captions: int, max_length: int) -> CaptionState:
        """Return the initial state of captions, before the first id.

        Args:
            image_tokens: image tokens for the decoder, from `CoCa.image_tokens`.
            num_captions: number of captions per image, in consecutive rows.
            max_length: maximum number of ids per caption.
        """
        rows = len(image_tokens) * num_captions

        def kv_caches(layers: nn.Sequential) -> list[KVCache]:
            return [cast("CaptionLayer", layer).new_kv_cache(rows, max_length) for layer in layers]

        contexts = [layer.keys_and_values(image_tokens) for layer in self.decoder.cross_layers]  # type: ignore[operator]
        return CaptionState(kv_caches(self.text_encoder.layers), kv_caches(self.decoder.layers), contexts)

    def step(self, state: CaptionState, ids: Tensor) -> Tensor:
        """Return the logits of the next id, `(rows, vocab_size)`, and append `ids`, one per row, to the state.

        The result equals the last logits of `forward` over all ids so far, at the cost of one id.
        """
        return self.decoder.step(self.text_encoder.step(ids, state.text), state.decoder, state.contexts)

    def _initialize(self) -> None:
        """Initialise the weights like open_clip's CoCa, and also the decoder's projection."""
        width, text = self.spec.text.width, self.text_encoder
        for tensor, std in (
            (text.token_embedding.weight, 0.02),
            (text.position, 0.01),
            (text.class_token, 0.01),
            (text.project.weight, width**-0.5),
            (self.decoder.project.weight, width**-0.5),
            (self.image_project.weight, self.pooler.attention.key.in_features**-0.5),
        ):
            nn.init.normal_(tensor, std=std)
        for layer in text.layers:
            _initialize_layer(cast("CaptionLayer", layer), width, len(text.layers))
        for attention in _pytorchs(self.pooler, self.decoder):
            for name, parameter in attention.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                elif "project" not in name:
                    nn.init.xavier_uniform_(parameter)


def _initialize_layer(layer: CaptionLayer, width: int, depth: int) -> None:
    attention = cast("Attention", layer.attention)
    for linear, std in (
        (attention.qkv, width**-0.5),
        (attention.project, (2 * width * depth) ** -0.5),
        (layer.ffn.fc1, (2 * width) ** -0.5),
        (layer.ffn.fc2, (2 * width * depth) ** -0.5),
    ):
        nn.init.normal_(linear.weight, std=std)
    for bias in (attention.qkv.bias, attention.project.bias):
        nn.init.zeros_(bias)


def _pytorchs(*parts: nn.Module) -> Iterator[nn.Module]:
    """Yield the attention modules to initialise like `nn.MultiheadAttention`."""
    for part in parts:
        yield from (module for module in part.modules() if isinstance(module, (Attention, CrossAttention)))
