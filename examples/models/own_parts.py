"""A token mixer and an image encoder of one's own: from a checkpoint to another runtime, as the library's own parts.

    python examples/models/own_parts.py out/

The decorators register both where this module is imported. An installed package is found without that, by entry points:

    [project.entry-points."mobileclip.token_mixer"]
    pooling = "own_parts:PoolingSpec"
    [project.entry-points."mobileclip.image_encoder_family"]
    conv_mixer = "own_parts:ConvMixerSpec"
"""

import sys
from pathlib import Path

import attrs
import torch
from torch import nn

import mobileclip
from mobileclip import encoders
from mobileclip.blocks import ConvPoolHead, RepMixerBlock
from mobileclip.encoders import DualEncoderSpec, MCiSpec, MCtSpec, StageSpec
from mobileclip.export import ExportSpec, export_model
from mobileclip.inputs import ImageInput


@encoders.token_mixers.register("pooling")
@attrs.frozen(kw_only=True)
class PoolingSpec(encoders.TokenMixerSpec):
    """Mixes every position with the mean of its neighbours, as PoolFormer does."""

    kernel_size: int = 3

    def build_block(self, dim: int, *, hidden_dim: int, layer_scale: float, drop_path: float) -> nn.Module:
        """Return one block of a stage, feature map in and out."""
        mixer = nn.AvgPool2d(self.kernel_size, stride=1, padding=self.kernel_size // 2, count_include_pad=False)
        return RepMixerBlock(dim, mixer=mixer, hidden_dim=hidden_dim, layer_scale=layer_scale, drop_path=drop_path)


@encoders.image_encoder_families.register("conv_mixer")
@attrs.frozen(kw_only=True)
class ConvMixerSpec(encoders.ImageEncoderSpec):
    """Patches, then blocks at one resolution, as ConvMixer has them."""

    width: int = 64
    depth: int = 4
    patch_size: int = 8

    def build(self) -> nn.Module:
        """Return a new encoder."""
        patches = nn.Conv2d(3, self.width, self.patch_size, stride=self.patch_size)
        blocks = [RepMixerBlock(self.width, kernel_size=5) for _ in range(self.depth)]
        encoder = nn.Sequential(patches, *blocks, ConvPoolHead(self.width, embedding_dim=self.embedding_dim))
        encoder.spec = self  # says what the encoder expects, and how to build it again
        return encoder


def main(out: Path) -> None:
    """Build a model of each, save it, load it folded, make it fast, and export it."""
    pixels, text = ImageInput(size=64), MCtSpec(width=32, num_heads=2, depth=1, embedding_dim=32)
    stages = (StageSpec(dim=16, depth=1, mixer=PoolingSpec()), StageSpec(dim=32, depth=2))
    for image in (
        MCiSpec(stages=stages, embedding_dim=32, input=pixels),
        ConvMixerSpec(embedding_dim=32, input=pixels),
    ):
        name = type(image).__name__
        model = DualEncoderSpec(image=image, text=text).build().eval()
        encoders.save_model(model, out / f"{name}.safetensors")  # the spec is inside, as JSON
        folded = encoders.load_model(out / f"{name}.safetensors")
        fast = mobileclip.optimize(model, compiled=False, show_progress=False)
        with torch.inference_mode():
            images = torch.rand(4, 3, 64, 64)
            plain, *others = (each.encode_image(images, normalize=True) for each in (model, folded, fast))
        print(f"{name}: error folded and optimised {max(float((each - plain).abs().max()) for each in others):.0e}")
        export_model(model, ExportSpec(out=out / name, target="torch", tower="image"), show_progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
