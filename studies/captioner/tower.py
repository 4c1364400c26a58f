"""The captioner's image tower: EfficientNet-Lite0 with ImageNet's weights, which knows no icon and no name of one."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from examples.quickstart.emoji.efficientnet import HEAD_CHANNELS, EfficientNetLite0, folded_state
from examples.quickstart.emoji.trunks import image_weights
from mobileclip.encoders import CoCaSpec, ImageEncoderSpec
from mobileclip.encoders.checkpoints import save_coca
from mobileclip.encoders.families import image_encoder_families
from mobileclip.training import AdamWSpec
from mobileclip.training.optimizer import optimizers

_NUM_FROZEN = 3


@image_encoder_families.register("efficientnet_lite0_map")
@attrs.frozen(kw_only=True)
class LiteMapSpec(ImageEncoderSpec):
    """EfficientNet-Lite0 for a captioner, which pools its last map."""

    def build(self) -> nn.Module:
        """Return the tower; it has no projection, and gives maps alone."""
        return LiteMap()


class LiteMap(EfficientNetLite0):
    """The last feature map, (batch, 1280, height / 32, width / 32); what sees edges and colours stays as it is."""

    dims = (HEAD_CHANNELS,)

    def __init__(self) -> None:
        super().__init__()
        for part in (self.stem, *self.blocks[:_NUM_FROZEN]):
            part.requires_grad_(requires_grad=False)

    def backbone(self) -> LiteMap:
        """Return the tower itself."""
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return the map."""
        return self.features(image.contiguous(memory_format=torch.channels_last))


@optimizers.register("pretrained_tower_adamw")
@attrs.frozen(kw_only=True)
class PretrainedTowerAdamWSpec(AdamWSpec):
    """AdamW whose image tower, which is pretrained, has a part of the learning rate.

    Args:
        part: of the schedule's rate.
    """

    part: float = attrs.field(default=0.15, validator=validators.gt(0))

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Return the optimiser of a captioner, or of what trains one."""
        optimizer = super().build(model)
        tower = {one for name, one in model.named_parameters() if "image_encoder." in name}
        for group in [*optimizer.param_groups]:
            own = [one for one in group["params"] if one in tower]
            group["params"] = [one for one in group["params"] if one not in tower]
            if own:
                optimizer.add_param_group({**group, "params": own, "rate_scale": self.part})
        return optimizer


def write_start(spec: CoCaSpec, path: Path, *, seed: int) -> None:
    """Write a captioner whose image tower has ImageNet's weights, and nothing else is trained.

    Args:
        spec: with a `LiteMapSpec`.
        path: of the file.
        seed: of what is drawn.
    """
    torch.manual_seed(seed)
    model = spec.build()
    model.image_encoder.load_state_dict(folded_state(image_weights()))
    save_coca(model, path)
