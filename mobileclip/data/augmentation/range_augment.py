"""RangeAugment: brightness, contrast and noise whose strength is learnt, so that images change as much as asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.strict import strict

_OPERATIONS = ("brightness", "contrast", "noise")
# The loss is linear in the squared error beyond one level of 255, squared.
_KNEE = 1 / 255**2


def _psnrs(values: Iterable[float]) -> tuple[float, float]:
    first, last = values
    return float(first), float(last)


def _positive(_: object, attribute: attrs.Attribute[tuple[float, float]], value: tuple[float, float]) -> None:
    if not min(value) > 0:
        raise ValueError(f"{attribute.name} must be two positive numbers of decibels, the first and the last: {value}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class RangeAugmentSpec:
    """The choices of RangeAugment.

    Args:
        target_psnr: peak signal-to-noise ratio of the augmented images against what they were, in decibels, at the
            start and at the end of training.
        weight: of the loss term.
        fraction: of the images that each of the operations changes.

    Raises:
        ValueError: if a number is out of its range.

    Source: Mehta et al. 2022, "RangeAugment"; 40 to 20 dB for the student alone in Table 12 of the MobileCLIP paper.

    Examples:
        >>> augment = RangeAugmentSpec(target_psnr=(40, 20)).build()
        >>> round(augment.target_error(0.0), 6), round(augment.target_error(1.0), 6)
        (0.0001, 0.01)
    """

    target_psnr: tuple[float, float] = attrs.field(default=(40.0, 20.0), converter=_psnrs, validator=_positive)
    weight: float = attrs.field(default=100.0, validator=validators.gt(0))
    fraction: float = attrs.field(default=0.5, validator=[validators.gt(0), validators.le(1)])

    def build(self) -> RangeAugment:
        """Return the augmentation, whose ranges are to be trained with the model."""
        return RangeAugment(self)


class LearntRange(nn.Module):
    """A uniform distribution, both of whose ends are learnt between bounds of their own.

    `end = least + sigmoid(parameter) (most - least)`

    Args:
        low: where the lower end may lie, and where it starts.
        high: where the upper end may lie, and where it starts.
    """

    def __init__(self, *, low: tuple[float, float, float], high: tuple[float, float, float]) -> None:
        super().__init__()
        least, most, start = torch.tensor((low, high)).T
        self.register_buffer("least", least, persistent=False)
        self.register_buffer("most", most, persistent=False)
        self.ends = nn.Parameter(torch.logit((start - least) / (most - least)))

    least: Tensor
    most: Tensor

    def range(self) -> Tensor:
        """Return the two ends."""
        ends: Tensor = self.least + self.ends.sigmoid() * (self.most - self.least)
        return ends

    def forward(self, chance: Tensor) -> Tensor:
        """Return a number of the range for every one of [0, 1)."""
        ends = self.range().to(chance.dtype)
        return torch.lerp(ends[0], ends[1], chance)


class RangeAugment(nn.Module):
    """Change images as strongly as a target says, by operations whose strengths are learnt.

    Brightness `m x`, contrast `m x + (1 - m) mean(x)` per channel and noise `x + s n`, in random order, each with
    numbers `m`, `s` of its own for every image, and the result cut to [0, 1]. The loss term draws the squared error of
    every image to that of the target, which follows a half cosine from the first to the last:
    `weight mean_i smooth_l1(mse_i, 10^(-psnr / 10))`. Add it to the task's loss, and train the parameters with the
    model's (without weight decay). In evaluation mode nothing changes and the term is zero.

    Gradients, of this term and of the task's loss, reach the ranges alone, not the images.

    Shape: (B, C, H, W) -> (B, C, H, W), and a scalar, float32.

    Args:
        spec: the choices.

    Source: Mehta et al. 2022.
    Differs: the public code starts from wider ranges than it names, as it takes their ends for what is in front of the
        sigmoid; here training starts from the ends named, brightness and contrast in [0.5, 1.5], noise below 0.1. An
        operation is applied to all images with a strength that changes nothing on those not chosen, to the same end.

    The term, as published, is least where the error of the median image is the target's, and some images are left
    alone by all operations: batches end 2 to 3 dB above the target. The least ranges of brightness and contrast,
    [0.9, 1.1], leave 30 to 35 dB: targets above are approached, not met.
    """

    def __init__(self, spec: RangeAugmentSpec) -> None:
        super().__init__()
        self.spec = spec
        factor = {"low": (0.1, 0.9, 0.5), "high": (1.1, 10.0, 1.5)}
        self.brightness = LearntRange(**factor)
        self.contrast = LearntRange(**factor)
        self.noise = LearntRange(low=(0.0, 5e-5, 2.5e-5), high=(1e-4, 1.0, 0.1))

    def forward(
        self,
        image: Tensor,
        *,
        progress: float,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the augmented images, normalised as they came, and the loss term.

        Args:
            image: pixels in [0, 1], or normalised ones with their `mean` and `std`.
            progress: fraction of the training that is done, from 0 to 1.
            mean: that was subtracted, per channel.
            std: that was divided by, per channel.
            generator: source of randomness, on the images' device; None for torch's own.

        Raises:
            ValueError: if the images are no float batch, or the progress is no fraction.
        """
        if image.ndim != 4 or not image.is_floating_point():
            raise ValueError(f"expected a batch of float images (B, C, H, W), got {image.dtype} {tuple(image.shape)}")
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is a fraction of the training, from 0 to 1, not {progress}")
        if not self.training:
            return image, image.new_zeros((), dtype=torch.float32)
        shift, scale = (image.new_tensor(values)[:, None, None] for values in (mean, std))
        original = image.detach() * scale + shift
        changed = original
        order = torch.randperm(len(_OPERATIONS), generator=generator, device=_device(generator))
        for place in order.tolist():
            changed = self._change(_OPERATIONS[place], changed, generator)
        changed = changed.clamp(0, 1)
        error = (changed - original).float().square().mean(dim=(1, 2, 3))
        target = error.new_tensor(self.target_error(progress)).expand_as(error)
        loss = self.spec.weight * F.smooth_l1_loss(error, target, beta=_KNEE)
        return (changed - shift) / scale, loss

    def target_error(self, progress: float) -> float:
        """Return the mean squared error of pixels in [0, 1] that is aimed at, after a fraction of the training."""
        first, last = (10 ** (-psnr / 10) for psnr in self.spec.target_psnr)
        return last + 0.5 * (first - last) * (1 + math.cos(math.pi * progress))

    def extra_repr(self) -> str:
        """Return the choices."""
        return str(self.spec)

    def _change(self, name: str, image: Tensor, generator: torch.Generator | None) -> Tensor:
        size = len(image)
        chosen = torch.randperm(size, generator=generator, device=image.device) < max(1, int(self.spec.fraction * size))
        chance = torch.rand(size, 1, 1, 1, generator=generator, device=image.device, dtype=image.dtype)
        chosen = chosen[:, None, None, None]
        if name == "noise":
            deviation = torch.where(chosen, self.noise(chance), torch.zeros_like(chance))
            noise = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
            return image + deviation * noise
        if name == "brightness":
            return image * torch.where(chosen, self.brightness(chance), torch.ones_like(chance))
        factor = torch.where(chosen, self.contrast(chance), torch.ones_like(chance))
        return factor * image + (1 - factor) * image.mean(dim=(-1, -2), keepdim=True)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
