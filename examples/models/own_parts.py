"""Your own token mixer and image encoder, saved, loaded and exported like the library's own parts.

    python examples/models/own_parts.py              # writes to outputs/own_parts, or to the given folder

The decorators register both parts when a program imports this module. Entry points of an installed package register
them without an import:

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
    """Mixes every position with the mean of its neighbours, like PoolFormer."""

    def build_block(self, dim: int, *, hidden_dim: int, layer_scale: float, drop_path: float) -> nn.Module:
        """Return one block of a stage, from feature map to feature map."""
        mean = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        return RepMixerBlock(dim, mixer=mean, hidden_dim=hidden_dim, layer_scale=layer_scale, drop_path=drop_path)


@encoders.image_encoder_families.register("conv_mixer")
@attrs.frozen(kw_only=True)
class ConvMixerSpec(encoders.ImageEncoderSpec):
    """Patches of 8 x 8 pixels, then blocks at one resolution, like ConvMixer."""

    width: int = 64
    depth: int = 4

    def build(self) -> nn.Module:
        """Return a new encoder with this spec, which defines the input and rebuilds the encoder."""
        blocks = [RepMixerBlock(self.width, kernel_size=5) for _ in range(self.depth)]
        head = ConvPoolHead(self.width, embedding_dim=self.embedding_dim)
        encoder = nn.Sequential(nn.Conv2d(3, self.width, 8, stride=8), *blocks, head)
        encoder.spec = self
        return encoder


def main(out: Path) -> None:
    """Build a model of each part, save, load and fold the model, optimise it, and export it."""
    pixels, text = ImageInput(size=64), MCtSpec(width=32, num_heads=2, depth=1, embedding_dim=32)
    stages = (StageSpec(dim=16, depth=1, mixer=PoolingSpec()), StageSpec(dim=32, depth=2))
    mixed, own = MCiSpec(stages=stages, embedding_dim=32, input=pixels), ConvMixerSpec(embedding_dim=32, input=pixels)
    for name, image in {"pooling": mixed, "conv_mixer": own}.items():
        model = DualEncoderSpec(image=image, text=text).build().eval()
        encoders.save_model(model, out / f"{name}.safetensors")  # the spec is inside, as JSON
        folded = encoders.load_model(out / f"{name}.safetensors")
        fast = mobileclip.optimize(model, compiled=False, show_progress=False)
        images = torch.rand(4, 3, 64, 64)
        with torch.inference_mode():
            errors = [(each.encode_image(images) - model.encode_image(images)).abs().max() for each in (folded, fast)]
        print(f"{out / name}: error folded and optimised {float(max(errors)):.0e}")
        export_model(model, ExportSpec(output=out / name, target="torch", tower="image"), show_progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path("outputs/own_parts"))
