"""The two metaformer blocks that stages are made of: a token mixer, then a ConvFFN."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from mobileclip.blocks.attention import Attention2d
from mobileclip.blocks.channel_norm import ChannelLayerNorm
from mobileclip.blocks.conv_ffn import ConvFFN
from mobileclip.blocks.picking import pick
from mobileclip.blocks.repmixer import RepMixer
from mobileclip.reparam import LayerScale, Reparameterizable, norm_affine, with_children


class RepMixerBlock(Reparameterizable):
    """A RepMixer, then a ConvFFN with a scaled residual: `x = token_mixer(x)`, `y = x + gamma * ffn(x)`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        kernel_size: height and width of the mixer's kernel.
        ffn_kernel_size: height and width of the kernel in the feed-forward network.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        layer_scale: initial value of both layer scales.

    Fusing: the layer scale goes into the network's last projection; mixer and network fold on their own.
    Source: Vasu et al., "FastViT"; MobileCLIP section 3.1.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: tuple[int, int] = (3, 3),
        ffn_kernel_size: tuple[int, int] = (7, 7),
        hidden_dim: int | None = None,
        layer_scale: float = 1e-5,
    ) -> None:
        super().__init__()
        self.token_mixer = RepMixer(dim, kernel_size=kernel_size, layer_scale=layer_scale)
        self.ffn = ConvFFN(dim, hidden_dim=hidden_dim, kernel_size=ffn_kernel_size)
        self.layer_scale: nn.Module = LayerScale(dim, initial=layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed feature map."""
        x = self.token_mixer(x)
        y: Tensor = x + self.ffn.times(self.layer_scale, x)
        return y

    @property
    def foldable(self) -> bool:
        """Whether the layer scale is still there."""
        return isinstance(self.layer_scale, LayerScale)

    def fold(self) -> RepMixerBlock:
        """Return the block with its layer scale inside the feed-forward network."""
        if not isinstance(self.layer_scale, LayerScale):
            return self
        return with_children(
            self, {"ffn": self.ffn.scaled(self.layer_scale.gamma), "layer_scale": nn.Identity().eval()}
        )


class TextRepMixerBlock(RepMixerBlock):
    """A RepMixer block over a sequence.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        kernel_size: number of neighbouring tokens that the mixer and the feed-forward network see.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        layer_scale: initial value of both layer scales.

    Source: MobileCLIP Figure 3 (Text-RepMixer).
    """

    def __init__(
        self, dim: int, *, kernel_size: int = 11, hidden_dim: int | None = None, layer_scale: float = 1e-5
    ) -> None:
        kernel = (1, kernel_size)
        super().__init__(
            dim, kernel_size=kernel, ffn_kernel_size=kernel, hidden_dim=hidden_dim, layer_scale=layer_scale
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        y = super().forward(rearrange(x, "b n c -> b c 1 n"))
        return rearrange(y, "b c 1 n -> b n c")

    def at(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Return one transformed token of each sequence, `pick(self(x), index)`; the wide layers see it alone.

        Shape:
            `(batch, tokens, dim)` and `(batch,)` to `(batch, dim)`.
        """
        mixed = self.token_mixer(rearrange(x, "b n c -> b c 1 n"))
        picked, seen = (
            rearrange(pick(rearrange(y, "b c 1 n -> b n c"), index), "b c -> b c 1 1")
            for y in (mixed, self.ffn.conv(mixed))
        )
        y: Tensor = picked + self.layer_scale(self.ffn.fc2(self.ffn.activation(self.ffn.fc1(seen))))
        return rearrange(y, "b c 1 1 -> b c")


class AttentionBlock(Reparameterizable):
    """Self-attention, then a ConvFFN, both with a scaled residual.

    `x = x + gamma_1 * attention(norm(x))`, `y = x + gamma_2 * ffn(x)`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        head_dim: channels per attention head; divides `dim`.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        norm: `batch` (MCi0-2), which folds away, or `layer` over channels (MCi3-4), which stays.
        layer_scale: initial value of both layer scales.

    Raises:
        ValueError: if `head_dim` does not divide `dim`, or the norm is unknown.

    Fusing: the batch norm goes into the attention's first projection, each layer scale into the last one in front
        of it.
    Source: MobileCLIP section 3.1 and Table 9.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int = 32,
        hidden_dim: int | None = None,
        norm: Literal["batch", "layer"] = "batch",
        layer_scale: float = 1e-5,
    ) -> None:
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"dim={dim} is not a multiple of head_dim={head_dim}")
        if norm not in ("batch", "layer"):
            raise ValueError(f"the norm in front of the attention is 'batch' or 'layer', not {norm!r}")
        self.norm: nn.Module = nn.BatchNorm2d(dim) if norm == "batch" else ChannelLayerNorm(dim)
        self.attention = Attention2d(dim, num_heads=dim // head_dim, qkv_bias=False)
        self.attention_scale: nn.Module = LayerScale(dim, initial=layer_scale)
        self.ffn = ConvFFN(dim, hidden_dim=hidden_dim)
        self.ffn_scale: nn.Module = LayerScale(dim, initial=layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed feature map."""
        x = x + self.attention_scale(self.attention(self.norm(x)))
        y: Tensor = x + self.ffn.times(self.ffn_scale, x)
        return y

    @property
    def foldable(self) -> bool:
        """Whether a batch norm or a layer scale is still there."""
        parts = (self.norm, self.attention_scale, self.ffn_scale)
        return any(isinstance(part, (nn.BatchNorm2d, LayerScale)) for part in parts)

    def fold(self) -> AttentionBlock:
        """Return the block with its batch norm and layer scales inside the projections."""
        block = self
        if isinstance(block.norm, nn.BatchNorm2d):
            shifted = block.attention.shifted(*norm_affine(block.norm))
            block = with_children(block, {"attention": shifted, "norm": nn.Identity().eval()})
        if isinstance(block.attention_scale, LayerScale):
            scaled = block.attention.scaled(block.attention_scale.gamma)
            block = with_children(block, {"attention": scaled, "attention_scale": nn.Identity().eval()})
        if isinstance(block.ffn_scale, LayerScale):
            network = block.ffn.scaled(block.ffn_scale.gamma)
            block = with_children(block, {"ffn": network, "ffn_scale": nn.Identity().eval()})
        return block
