"""A detector with a MobileCLIP image encoder as backbone, and torchvision's feature pyramid and RetinaNet.

python examples/models/detector.py mobileclip_s2.pt      # without a file, MCi2 with random weights
"""

import sys

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

from mobileclip import reparameterize
from mobileclip.blocks import build_model
from mobileclip.encoders import load_model


class PyramidBackbone(nn.Module):
    """Feature maps of an encoder's stages, projected to one width and merged from coarse to fine."""

    def __init__(self, encoder: nn.Module, *, stages: tuple[int, ...] = (1, 2, 3), out_channels: int = 128) -> None:
        super().__init__()
        self.encoder, self.stages, self.out_channels = encoder, stages, out_channels
        self.pyramid = FeaturePyramidNetwork([encoder.dims[stage] for stage in stages], out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return one map per stage, by name."""
        maps = self.encoder.features(images, self.stages)
        return self.pyramid({f"stage_{stage}": each for stage, each in zip(self.stages, maps, strict=True)})


def detector(
    encoder: nn.Module, *, num_classes: int, stages: tuple[int, ...] = (1, 2, 3), size: int = 256
) -> RetinaNet:
    """Return a RetinaNet with anchors that are four positions wide at each stage, for the encoder's input images."""
    sides = tuple((4 * encoder.strides[stage],) for stage in stages)
    anchors = AnchorGenerator(sides, aspect_ratios=((0.5, 1.0, 2.0),) * len(stages))
    pixels = {"image_mean": encoder.spec.input.mean, "image_std": encoder.spec.input.std}
    backbone = PyramidBackbone(encoder, stages=stages)
    return RetinaNet(backbone, num_classes, anchor_generator=anchors, min_size=size, max_size=2 * size, **pixels)


def main(encoder: nn.Module, *, size: int = 128, steps: int = 30, lr: float = 2e-4) -> tuple[RetinaNet, nn.Module]:
    """Train a detector on a white square, fold the detector, and detect the square."""
    stages = tuple(range(len(encoder.dims)))[-3:]
    model = detector(encoder, num_classes=2, stages=stages, size=size).train()
    encoder.eval()  # two images are too few for batch statistics
    image, box = torch.zeros(3, size, size), [size // 4, size // 4, size // 2, size // 2]
    image[:, box[1] : box[3], box[0] : box[2]] = 1.0
    target = {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([1])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.9))  # gradients grow fast at first
    for step in range(steps):
        losses = model([image, image], [target, target])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(f"step {step}:", {name: round(float(loss.detach()), 3) for name, loss in losses.items()})
    folded = reparameterize(model.eval())  # the encoder's branches, norms and scales; torchvision's parts stay
    with torch.inference_mode():
        (found,) = folded([image])
    best = [round(side) for side in found["boxes"][:1].flatten().tolist()]
    print(f"{len(found['boxes'])} boxes found; the best, {best}, should be {box}")
    return model, folded


if __name__ == "__main__":
    main(load_model(sys.argv[1], tower="image", fold=False) if sys.argv[1:] else build_model("mci2"))
