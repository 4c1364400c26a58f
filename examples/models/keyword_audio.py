"""RepMixer over audio frames: a classifier of short sounds, trained on synthesised tones, then folded.

python examples/models/keyword_audio.py
"""

import math

import torch
from torch import Tensor, nn

from mobileclip import reparameterize
from mobileclip.blocks import TextRepMixerBlock

KEYWORDS = ("rising", "falling", "steady", "trill")
RATE, LENGTH, WINDOW = 8000, 4000, 256


class AudioClassifier(nn.Module):
    """A log spectrogram, RepMixer blocks over its frames, and the mean over frames: `(batch, samples)` to logits."""

    def __init__(self, *, dim: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW))
        self.embed = nn.Sequential(nn.Linear(WINDOW // 2 + 1, dim), nn.LayerNorm(dim))
        self.blocks = nn.Sequential(*(TextRepMixerBlock(dim, kernel_size=11, layer_scale=1.0) for _ in range(depth)))
        self.head = nn.Linear(dim, len(KEYWORDS))

    def forward(self, sound: Tensor) -> Tensor:
        """Return the logits of the keywords."""
        spectrum = torch.stft(sound, WINDOW, hop_length=WINDOW // 2, window=self.window, return_complex=True)
        frames = spectrum.abs().add(1e-3).log().transpose(1, 2)
        return self.head(self.blocks(self.embed(frames)).mean(1))


def tones(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sounds of random pitch in noise, `(count, samples)`, and the keyword of each sound."""
    labels = torch.randint(len(KEYWORDS), (count,), generator=generator)
    pitch = 500 + 1500 * torch.rand(count, 1, generator=generator)
    at = torch.linspace(0, 1, LENGTH).expand(count, -1)
    paths = torch.stack([at, 1 - at, torch.full_like(at, 0.5), (12 * math.pi * at).sin() / 2 + 0.5])
    frequency = pitch * (1 + paths[labels, torch.arange(count)])
    sound = (2 * math.pi * frequency.cumsum(1) / RATE).sin()
    return sound + 0.3 * torch.randn(count, LENGTH, generator=generator), labels


def main(*, steps: int = 80) -> tuple[AudioClassifier, nn.Module, float]:
    """Train, fold, and return the model, its folded form and its accuracy on new sounds."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = AudioClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        sounds, labels = tones(32, generator)
        loss = nn.functional.cross_entropy(model(sounds), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folded = reparameterize(model.eval())  # each mixer becomes one depthwise convolution over time
    sounds, labels = tones(256, generator)
    with torch.inference_mode():
        right = float((folded(sounds).argmax(1) == labels).float().mean())
        error = float((folded(sounds) - model(sounds)).abs().max())
    print(f"right: {right:.1%} of 256 new sounds; folding error {error:.0e}; {folded.blocks[0].token_mixer}")
    return model, folded, right


if __name__ == "__main__":
    main()
