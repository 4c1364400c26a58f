"""RangeAugment: brightness, contrast and noise whose strength is learnt, so that images change as much as asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

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
        weight: weight of the loss term.
        fraction: fraction of the images that each of the operations changes.

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


@attrs.frozen(kw_only=True, eq=False)
class RangeNumbers:
    """The random numbers by which RangeAugment changes the images of a batch, a row for each.

    An image is changed in the same way by the same row, whichever others are changed along with it.

    Shape:
        chosen and chance: (B, 3), the operations in the order of their names; seed: (B,).

    Args:
        order: in which the operations are applied, to all images.
        target_error: mean squared error of pixels in [0, 1] that is aimed at.
        chosen: whether an operation changes an image.
        chance: of [0, 1), where in its range an operation's strength lies.
        seed: seed of an image's noise; on the CPU, int64.
    """

    order: tuple[int, ...]
    target_error: float
    chosen: Tensor
    chance: Tensor
    seed: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.seed)

    def split(self, size: int) -> tuple[RangeNumbers, ...]:
        """Return the rows in pieces of `size`, as a tensor's are split; the last one may be shorter."""
        pieces = zip(*(torch.split(rows, size) for rows in (self.chosen, self.chance, self.seed)), strict=True)
        return tuple(attrs.evolve(self, chosen=chosen, chance=chance, seed=seed) for chosen, chance, seed in pieces)

    def flip(self, dim: Literal[0]) -> RangeNumbers:
        """Return the rows the other way round, as a tensor's are flipped."""
        return attrs.evolve(self, chosen=self.chosen.flip(dim), chance=self.chance.flip(dim), seed=self.seed.flip(dim))


class RangeAugment(nn.Module):
    """Change images as strongly as a target says, by operations whose strengths are learnt.

    Brightness `m x`, contrast `m x + (1 - m) mean(x)` per channel and noise `x + s n`, in random order, each with
    numbers `m`, `s` of its own for every image, and the result cut to [0, 1]. The loss term draws the squared error of
    every image to that of the target, which follows a half cosine from the first to the last:
    `weight mean_i smooth_l1(mse_i, 10^(-psnr / 10))`. Add it to the task's loss, and train the parameters with the
    model's (without weight decay). In evaluation mode nothing changes and the term is zero.

    Gradients, of this term and of the task's loss, reach the ranges alone, not the images.

    Shape: (B, C, H, W) -> (B, C, H, W), and a scalar, float32 at least.

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
            generator: source of randomness; None for torch's own on the CPU.

        Raises:
            ValueError: if the images are no float batch, or the progress is no fraction.
        """
        _check_progress(progress)
        if not self.training:
            _check_images(image)
            return image, image.new_zeros((), dtype=torch.float32)
        numbers = self.draw(len(image), progress=progress, device=image.device, generator=generator)
        changed, terms = self.change(image, numbers, mean=mean, std=std)
        return changed, terms.mean()

    def draw(
        self, num_images: int, *, progress: float, device: torch.device, generator: torch.Generator | None = None
    ) -> RangeNumbers:
        """Return the random numbers that a batch is changed by.

        Args:
            num_images: number of images of the whole batch.
            progress: fraction of the training that is done, from 0 to 1.
            device: where the images are.
            generator: source of randomness; None for torch's own on the CPU.

        Raises:
            ValueError: if the progress is no fraction.
        """
        _check_progress(progress)
        source = torch.device("cpu") if generator is None else generator.device
        shape = (num_images, len(_OPERATIONS))
        order = torch.randperm(len(_OPERATIONS), generator=generator, device=source)
        places = [torch.randperm(num_images, generator=generator, device=source) for _ in _OPERATIONS]
        chance = torch.rand(shape, generator=generator, device=source)
        seed = torch.randint(2**63 - 1, (num_images,), generator=generator, device=source)
        num_chosen = max(1, int(self.spec.fraction * num_images))
        return RangeNumbers(
            order=tuple(order.tolist()),
            target_error=self.target_error(progress),
            chosen=(torch.stack(places, dim=1) < num_chosen).to(device),
            chance=chance.to(device),
            seed=seed.cpu(),
        )

    def change(
        self,
        image: Tensor,
        numbers: RangeNumbers,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> tuple[Tensor, Tensor]:
        """Return images changed by their numbers, normalised as they came, and the loss term of each of them.

        Shape: (B, C, H, W) -> (B, C, H, W), and (B,), float32 at least.

        Args:
            image: all images of a batch or some of them, as `forward` takes them.
            numbers: the rows of these images.
            mean: that was subtracted, per channel.
            std: that was divided by, per channel.

        Raises:
            ValueError: if the images are no float batch.
        """
        _check_images(image)
        shift, scale = (image.new_tensor(values)[:, None, None] for values in (mean, std))
        original = image.detach() * scale + shift
        changed = original
        for place in numbers.order:
            changed = self._operation(_OPERATIONS[place], changed, numbers)
        changed = changed.clamp(0, 1)
        difference = (changed - original).to(torch.promote_types(image.dtype, torch.float32))
        error = difference.square().mean(dim=(1, 2, 3))
        target = error.new_tensor(numbers.target_error).expand_as(error)
        terms = self.spec.weight * F.smooth_l1_loss(error, target, beta=_KNEE, reduction="none")
        return (changed - shift) / scale, terms

    def target_error(self, progress: float) -> float:
        """Return the mean squared error of pixels in [0, 1] that is aimed at, after a fraction of the training."""
        first, last = (10 ** (-psnr / 10) for psnr in self.spec.target_psnr)
        return last + 0.5 * (first - last) * (1 + math.cos(math.pi * progress))

    def extra_repr(self) -> str:
        """Return the choices."""
        return str(self.spec)

    def _operation(self, name: str, image: Tensor, numbers: RangeNumbers) -> Tensor:
        column = _OPERATIONS.index(name)
        chosen, chance = (
            rows[:, column, None, None, None] for rows in (numbers.chosen, numbers.chance.to(image.dtype))
        )
        if name == "noise":
            deviation = torch.where(chosen, self.noise(chance), torch.zeros_like(chance))
            return image + deviation * _noise(image, numbers.seed)
        if name == "brightness":
            return image * torch.where(chosen, self.brightness(chance), torch.ones_like(chance))
        factor = torch.where(chosen, self.contrast(chance), torch.ones_like(chance))
        return factor * image + (1 - factor) * image.mean(dim=(-1, -2), keepdim=True)


def _noise(image: Tensor, seed: Tensor) -> Tensor:
    """Return standard normal numbers of the images' shape, those of an image from its own seed."""
    noise = torch.empty(image.shape, dtype=image.dtype, device=image.device)
    generator = torch.Generator(image.device)
    for one, value in zip(noise, seed.tolist(), strict=True):
        one.normal_(generator=generator.manual_seed(value))
    return noise


def _check_images(image: Tensor) -> None:
    if image.ndim != 4 or not image.is_floating_point():
        raise ValueError(f"expected a batch of float images (B, C, H, W), got {image.dtype} {tuple(image.shape)}")


def _check_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is a fraction of the training, from 0 to 1, not {progress}")
