"""The pre-norm transformer layer."""

from __future__ import annotations

from torch import Tensor, nn

from mobileclip.blocks.arguments import MakeActivation, MakeNorm
from mobileclip.blocks.attention import Attention
from mobileclip.blocks.drop_path import DropPath


class FeedForward(nn.Module):
    """Two linear layers with an activation between: `y = fc2(activation(fc1(x)))`.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        hidden_dim: width between the layers; four times `dim` by default.
        activation: what makes the activation.

    Examples:
        >>> network = FeedForward(8, activation=nn.SiLU)
        >>> network.fc1, network.activation
        (Linear(in_features=8, out_features=32, bias=True), SiLU())
    """

    def __init__(self, dim: int, *, hidden_dim: int | None = None, activation: MakeActivation = nn.GELU) -> None:
        super().__init__()
        hidden_dim = hidden_dim or 4 * dim
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation = activation()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed `x`."""
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class TransformerLayer(nn.Module):
    """Attention, then feed-forward, each on normalised input with a residual.

    `x = x + drop_path(attention(attention_norm(x)))`, `y = x + drop_path(ffn(ffn_norm(x)))`.

    Shape:
        `(batch, tokens, dim)` in and out.

    Args:
        dim: width of the tokens.
        mixer: what stands in place of the attention, tokens in and out; by default an `Attention`.
        num_heads: number of heads of the default mixer; divides `dim`.
        hidden_dim: width of the feed-forward network; four times `dim` by default.
        causal: whether the default mixer lets a token see itself and earlier tokens only.
        norm: what makes each of the two norms.
        activation: what makes the feed-forward network's activation.
        drop_path: probability that a branch is left out for a sample in training.

    Source: MobileCLIP section 3.1; Radford et al., "Learning Transferable Visual Models", section 2.4.

    Examples:
        >>> TransformerLayer(32, num_heads=4)(torch.rand(2, 10, 32)).shape
        torch.Size([2, 10, 32])
        >>> TransformerLayer(32, mixer=TextRepMixer(32)).attention.mixer.dim
        32
    """

    def __init__(
        self,
        dim: int,
        *,
        mixer: nn.Module | None = None,
        num_heads: int = 8,
        hidden_dim: int | None = None,
        causal: bool = False,
        norm: MakeNorm = nn.LayerNorm,
        activation: MakeActivation = nn.GELU,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(dim)
        self.attention = Attention(dim, num_heads=num_heads, causal=causal) if mixer is None else mixer
        self.ffn_norm = norm(dim)
        self.ffn = FeedForward(dim, hidden_dim=hidden_dim, activation=activation)
        self.attention_drop_path, self.ffn_drop_path = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        x = x + self.attention_drop_path(self.attention(self.attention_norm(x)))
        y: Tensor = x + self.ffn_drop_path(self.ffn(self.ffn_norm(x)))
        return y
