"""Blocks that stages and towers repeat, and the heads that follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.blocks.attention import Attention2d
from mobileclip.blocks.conv import KernelSize, MakeNorm, MobileOneBlock
from mobileclip.blocks.mixing import ConvFFN, DropPath, RepMixer, as_map, as_sequence
from mobileclip.reparam import BATCH_NORMS, LayerScale, Reparameterizable, norm_affine, with_children


class RepMixerBlock(Reparameterizable):
    """A token mixer, then a ConvFFN with a scaled residual: `x = mixer(x)`, `y = x + drop_path(gamma * ffn(x))`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        mixer: token mixer from feature map to feature map, including a skip connection; a RepMixer by default.
        kernel_size: height and width of the default mixer's kernel, both odd, or one number for both.
        ffn_kernel_size: height and width of the kernel in the feed-forward network, both odd, or one number for both.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        layer_scale: initial value of the layer scales.
        drop_path: probability of dropping the feed-forward branch per sample in training.

    Folding: the last projection of the feed-forward network absorbs the layer scale; the mixer and the network fold
        themselves.
    Source: Vasu et al., "FastViT"; MobileCLIP section 3.1.

    Examples:
        >>> block = RepMixerBlock(8).eval()
        >>> mobileclip.reparameterize(block).token_mixer
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8)
        >>> RepMixerBlock(8, mixer=nn.AvgPool2d(3, stride=1, padding=1))(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        dim: int,
        *,
        mixer: nn.Module | None = None,
        kernel_size: KernelSize = 3,
        ffn_kernel_size: KernelSize = 7,
        hidden_dim: int | None = None,
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if mixer is None:
            mixer = RepMixer(dim, kernel_size=kernel_size, layer_scale=layer_scale)
        self.token_mixer = mixer
        self.ffn = ConvFFN(dim, hidden_dim=hidden_dim, kernel_size=ffn_kernel_size)
        self.layer_scale: nn.Module = LayerScale(dim, initial=layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed feature map."""
        x = self.token_mixer(x)
        y: Tensor = x + self.drop_path(self.layer_scale(self.ffn(x)))
        return y

    @property
    def foldable(self) -> bool:
        """Whether the block still has a layer scale."""
        return isinstance(self.layer_scale, LayerScale)

    def fold(self) -> RepMixerBlock:
        """Return the block with its layer scale folded into the feed-forward network."""
        if not isinstance(self.layer_scale, LayerScale):
            return self
        return with_children(
            self, {"ffn": self.ffn.scaled(self.layer_scale.gamma), "layer_scale": nn.Identity().eval()}
        )


class TextRepMixerBlock(RepMixerBlock):
    """A RepMixer block over a sequence, such as words or audio frames.

    Shape:
        `(batch, length, dim)` in and out, as in `torch.nn.Transformer` with `batch_first`.

    Args:
        dim: width of the tokens.
        mixer: token mixer with input and output `(batch, dim, 1, length)`; a RepMixer by default.
        kernel_size: odd number of tokens in the kernels of the default mixer and the feed-forward network.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        layer_scale: initial value of the layer scales.
        drop_path: probability of dropping the feed-forward branch per sample in training.

    Source: MobileCLIP Figure 3 (Text-RepMixer).

    Examples:
        >>> frames = torch.rand(2, 100, 16)
        >>> TextRepMixerBlock(16, kernel_size=5)(frames).shape
        torch.Size([2, 100, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        mixer: nn.Module | None = None,
        kernel_size: int = 11,
        hidden_dim: int | None = None,
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            mixer=mixer,
            kernel_size=(1, kernel_size),
            ffn_kernel_size=(1, kernel_size),
            hidden_dim=hidden_dim,
            layer_scale=layer_scale,
            drop_path=drop_path,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        return as_sequence(super().forward(as_map(x)))

    fold = RepMixerBlock.fold  # holds for this forward too


class AttentionBlock(Reparameterizable):
    """Self-attention, then a ConvFFN, each with a scaled residual.

    `x = x + drop_path(gamma_1 * attention(norm(x)))`, `y = x + drop_path(gamma_2 * ffn(x))`.

    Shape:
        `(batch, dim, height, width)` in and out.

    Args:
        dim: number of channels.
        mixer: token mixer from feature map to feature map; an `Attention2d` by default.
        head_dim: channels per head of the default mixer; divides `dim`.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        norm: class or factory of the norm before attention: `nn.BatchNorm2d` (MCi0-2, foldable), or
            `ChannelLayerNorm` (MCi3-4, not foldable).
        layer_scale: initial value of the layer scales of attention and ConvFFN.
        drop_path: probability of dropping each branch per sample in training.

    Raises:
        ValueError: if `head_dim` does not divide `dim`.

    Folding: the attention's first projection absorbs the batch norm, and the last projection of each branch absorbs its
        layer scale. A mixer other than `Attention2d` keeps its norm and layer scale.
    Source: MobileCLIP section 3.1 and Table 9.

    Examples:
        >>> block = AttentionBlock(32, head_dim=16).eval()
        >>> folded = mobileclip.reparameterize(block)
        >>> folded.norm, folded.attention_scale, folded.ffn_scale
        (Identity(), Identity(), Identity())
    """

    def __init__(
        self,
        dim: int,
        *,
        mixer: nn.Module | None = None,
        head_dim: int = 32,
        hidden_dim: int | None = None,
        norm: MakeNorm = nn.BatchNorm2d,
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if mixer is None and dim % head_dim:
            raise ValueError(f"dim={dim} is not a multiple of head_dim={head_dim}")
        self.norm = norm(dim)
        if mixer is None:
            mixer = Attention2d(dim, num_heads=dim // head_dim, qkv_bias=False)
        self.attention = mixer
        self.attention_scale: nn.Module = LayerScale(dim, initial=layer_scale)
        self.attention_drop_path = DropPath(drop_path)
        self.ffn = ConvFFN(dim, hidden_dim=hidden_dim)
        self.ffn_scale: nn.Module = LayerScale(dim, initial=layer_scale)
        self.ffn_drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed feature map."""
        x = x + self.attention_drop_path(self.attention_scale(self.attention(self.norm(x))))
        y: Tensor = x + self.ffn_drop_path(self.ffn_scale(self.ffn(x)))
        return y

    @property
    def foldable(self) -> bool:
        """Whether the block has a batch norm or a layer scale to fold."""
        attention = (self.norm, self.attention_scale) if isinstance(self.attention, Attention2d) else ()
        return any(isinstance(part, (*BATCH_NORMS, LayerScale)) for part in (*attention, self.ffn_scale))

    def fold(self) -> AttentionBlock:
        """Return the block with its batch norm and layer scales folded into the projections."""
        folded: dict[str, nn.Module] = {}
        if isinstance(self.attention, Attention2d):
            attention = self.attention
            if isinstance(self.norm, BATCH_NORMS):
                attention = attention.shifted(*norm_affine(self.norm))
                folded["norm"] = nn.Identity()
            if isinstance(self.attention_scale, LayerScale):
                attention = attention.scaled(self.attention_scale.gamma)
                folded["attention_scale"] = nn.Identity()
            folded["attention"] = attention
        if isinstance(self.ffn_scale, LayerScale):
            folded |= {"ffn": self.ffn.scaled(self.ffn_scale.gamma), "ffn_scale": nn.Identity()}
        return with_children(self, {name: part.eval() for name, part in folded.items()})


class ConvPoolHead(nn.Module):
    """Widen with a gated depthwise convolution, average over space, project: `y = project(mean(conv(x)))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, embedding_dim)`.

    Args:
        dim: number of input channels.
        embedding_dim: width of the embedding; None to omit the projection and return the mean, of width
            `expansion * dim`.
        expansion: factor by which the convolution widens the features.
        bias: whether the projection has a bias. The papers' models have no bias; open_clip's layout allows one.

    Source: MobileCLIP Table 9.

    Examples:
        >>> ConvPoolHead(16, embedding_dim=32)(torch.rand(2, 16, 8, 8)).shape  # any height and width
        torch.Size([2, 32])
    """

    def __init__(self, dim: int, *, embedding_dim: int | None, expansion: int = 2, bias: bool = False) -> None:
        super().__init__()
        pooled_dim = expansion * dim
        self.conv = MobileOneBlock(dim, out_dim=pooled_dim, groups=dim, squeeze_excite=True)
        self.project: nn.Module = (
            nn.Identity() if embedding_dim is None else nn.Linear(pooled_dim, embedding_dim, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding of the feature map `x`."""
        y: Tensor = self.project(self.conv(x).mean(dim=(2, 3)))
        return y

    def local(self, x: Tensor) -> Tensor:
        """Return one embedding per position, `project(conv(x))`; the mean over positions is the embedding of `x`.

        Shape:
            `(batch, dim, height, width)` to `(batch, embedding_dim, height', width')`.
        """
        y: Tensor = self.project(self.conv(x).movedim(1, -1))
        return y.movedim(-1, 1)


class TextPool(nn.Module):
    """Locates each text's end token for pooling; padding follows the end token.

    Args:
        end_id: id of the end token, which every text contains; None for the highest id of each text, as in CLIP.
    """

    def __init__(self, *, end_id: int | None = None) -> None:
        super().__init__()
        self.end_id = end_id

    def position(self, ids: Tensor) -> Tensor:
        """Return the position of each text's first end token.

        Shape:
            `(batch, tokens)` to `(batch,)`.
        """
        return (ids if self.end_id is None else (ids == self.end_id).int()).argmax(dim=-1)

    def inside(self, ids: Tensor) -> Tensor:
        """Return the mask of each text's tokens, including its end token.

        Shape:
            `(batch, tokens)` to booleans `(batch, tokens)`.
        """
        return torch.arange(ids.shape[1], device=ids.device) <= self.position(ids)[:, None]


class EndTokenPool(TextPool):
    """Pick the features at each text's first end-of-text token.

    `y[i] = features[i, argmax(ids[i])]`.

    Shape:
        features `(batch, tokens, dim)` and ids `(batch, tokens)` to `(batch, dim)`.

    Args:
        end_id: id of the end token; None for the highest id of each text. See `TextPool`.

    Examples:
        >>> ids = torch.tensor([[7, 3, 9, 0], [7, 9, 0, 0]])
        >>> EndTokenPool().position(ids)
        tensor([2, 1])
        >>> EndTokenPool()(torch.rand(2, 4, 16), ids).shape
        torch.Size([2, 16])
    """

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        """Return each text's features at its end token."""
        end = self.position(ids)[:, None, None].expand(-1, 1, features.shape[-1])
        return torch.gather(features, 1, end)[:, 0]


class MeanTokenPool(TextPool):
    """Average the features of a text's tokens, up to and including the end token.

    `y[i] = mean(features[i, : end[i] + 1])`.

    Shape:
        features `(batch, tokens, dim)` and ids `(batch, tokens)` to `(batch, dim)`.

    Args:
        end_id: id of the end token; None for the highest id of each text. See `TextPool`.

    Examples:
        >>> features = torch.tensor([[[2.0], [4.0], [9.0]]])
        >>> MeanTokenPool()(features, torch.tensor([[5, 9, 0]]))
        tensor([[3.]])
    """

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        """Return the mean of each text's features, up to and including the end token."""
        inside = self.inside(ids).to(features.dtype)[..., None]
        return (features * inside).sum(dim=1) / inside.sum(dim=1)
