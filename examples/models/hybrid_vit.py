"""A vision transformer with a convolutional stem of MobileOne and RepMixer blocks, and its folded form.

python examples/models/hybrid_vit.py
"""

import time

import torch
from einops.layers.torch import Rearrange
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import ConvStem, Downsample, RepMixerBlock, TransformerLayer
from mobileclip.encoders import ViT


def hybrid_vit(*, width: int = 192, depth: int = 6, size: int = 224, num_classes: int = 1000) -> ViT:
    """Return a classifier: convolutions reduce the sides of images by 16, then `depth` transformer layers follow."""
    stem = nn.Sequential(
        ConvStem(width // 4),  # three MobileOne blocks, to a quarter of the side
        RepMixerBlock(width // 4),
        Downsample(width // 4, out_dim=width // 2),
        RepMixerBlock(width // 2),
        Downsample(width // 2, out_dim=width),
        Rearrange("b c h w -> b (h w) c"),
    )
    return ViT(
        stem,
        [TransformerLayer(width, num_heads=width // 32) for _ in range(depth)],
        nn.Linear(width, num_classes),
        width=width,
        patch_size=16,
        num_patches=(size // 16) ** 2,
        class_position=True,
        norm_before=nn.Identity(),
        norm=nn.LayerNorm(width),
    )


def main(*, size: int = 224, rounds: int = 5) -> tuple[ViT, nn.Module]:
    """Train for one step, fold, and compare outputs, sizes and times."""
    model, images = hybrid_vit(size=size), torch.rand(4, 3, size, size)
    loss = nn.functional.cross_entropy(model(images), torch.arange(4))
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    folded = reparameterize(model.eval())
    with torch.inference_mode():
        for name, each in (("as trained", model), ("folded", folded)):
            start = time.perf_counter()
            for _ in range(rounds):
                logits = each(images)
            taken = (time.perf_counter() - start) / rounds
            count = sum(tensor.numel() for tensor in each.parameters())
            print(
                f"{name}: {count / 1e6:.2f}M parameters, {1000 * taken:.0f} ms, first logit {float(logits[0, 0]):.6f}"
            )
    (last,) = folded.features(torch.rand(1, 3, size, 2 * size), stages=[5])  # positions are interpolated
    print(f"feature map of an image twice as wide: {tuple(last.shape)}")
    return model, folded


if __name__ == "__main__":
    main()
