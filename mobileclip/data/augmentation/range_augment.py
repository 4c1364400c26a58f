"""RangeAugment: brightness, contrast and noise with learnt strengths that aim at a target image distortion."""

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
# The loss is linear if the mean squared error differs from the target by more than the square of one level of 255.
_KNEE = 1 / 255**2


def _psnrs(values: Iterable[float]) -> tuple[float, float]:
    first, last = values
    return float(first), float(last)


def _positive(_: object, attribute: attrs.Attribute[tuple[float, float]], value: tuple[float, float]) -> None:
    if not min(value) > 0:
        raise ValueError(f"{attribute.name} must be two positive numbers of decibels (first, last), not {value}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class RangeAugmentSpec:
    """Settings of RangeAugment.

    Args:
        target_psnr: peak signal-to-noise ratio of the augmented images relative to the originals, in decibels, at the
            start and at the end of training.
        weight: weight of the loss term.
        fraction: fraction of the images that each operation changes, in (0, 1].

    Raises:
        ValueError: if `target_psnr` or `weight` is not positive, or `fraction` is out of range.

    Source: Mehta et al. 2022, "RangeAugment"; the default of 40 to 20 dB is the student-only setting in Table 12
        of the MobileCLIP paper.

    Examples:
        >>> augment = RangeAugmentSpec(target_psnr=(40, 20)).build()
        >>> round(augment.target_error(0.0), 6), round(augment.target_error(1.0), 6)
        (0.0001, 0.01)
    """

    target_psnr: tuple[float, float] = attrs.field(default=(40.0, 20.0), converter=_psnrs, validator=_positive)
    weight: float = attrs.field(default=100.0, validator=validators.gt(0))
    fraction: float = attrs.field(default=0.5, validator=[validators.gt(0), validators.le(1)])

    def build(self) -> RangeAugment:
        """Return the augmentation module; train its parameters together with the model's."""
        return RangeAugment(self)


class LearntRange(nn.Module):
    """A uniform distribution with learnt ends; each end stays within its own bounds.

    `end = least + sigmoid(parameter) (most - least)`

    Args:
        low: minimum, maximum and initial value of the lower end.
        high: minimum, maximum and initial value of the upper end.
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
        """Return the lower and the upper end."""
        ends: Tensor = self.least + self.ends.sigmoid() * (self.most - self.least)
        return ends

    def forward(self, chance: Tensor) -> Tensor:
        """Map numbers from [0, 1) linearly to the range."""
        ends = self.range().to(chance.dtype)
        return torch.lerp(ends[0], ends[1], chance)


@attrs.frozen(kw_only=True, eq=False)
class RangeNumbers:
    """The random numbers with which RangeAugment changes a batch, one row per image.

    A row changes an image in the same way regardless of the other images in the call.

    Shape:
        chosen and chance: (B, 3), with the operations in alphabetical order; seed: (B,).

    Args:
        order: order in which the operations are applied, the same for all images.
        target_error: desired mean squared error, for pixels in [0, 1].
        chosen: for each image and operation, whether the operation changes the image.
        chance: relative position of the strength within the operation's range, in [0, 1).
        seed: seed of each image's noise, int64, on the CPU.
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
        """Split the rows into chunks of `size`, like `Tensor.split`; the last chunk may be shorter."""
        pieces = zip(*(torch.split(rows, size) for rows in (self.chosen, self.chance, self.seed)), strict=True)
        return tuple(attrs.evolve(self, chosen=chosen, chance=chance, seed=seed) for chosen, chance, seed in pieces)

    def flip(self, dim: Literal[0]) -> RangeNumbers:
        """Reverse the order of the rows, like `Tensor.flip`."""
        return attrs.evolve(self, chosen=self.chosen.flip(dim), chance=self.chance.flip(dim), seed=self.seed.flip(dim))


class RangeAugment(nn.Module):
    """Change images by operations whose strengths are learnt to meet a target distortion.

    The operations are brightness `m x`, contrast `m x + (1 - m) mean(x)` per channel and noise `x + s n`, in random
    order. Every image has its own `m` and `s` for each operation. The result is clipped to [0, 1]. The loss term
    `weight mean_i smooth_l1(mse_i, 10^(-psnr / 10))` pulls the mean squared error of every image towards the target
    error. The target error follows a half cosine from its first to its last value. Add the term to the task's loss, and
    train the module's parameters with the model's (without weight decay). In evaluation mode, images do not change and
    the term is zero.

    The gradients of the loss term and of the task's loss reach the ranges, but not the images.

    Shape: (B, C, H, W) -> (B, C, H, W), and a scalar of at least float32.

    Source: Mehta et al. 2022.
    Differs: the public code starts from wider ranges than it states, because the code passes the ends to the sigmoid
        as inputs. Here, training starts from the stated ends: brightness and contrast in [0.5, 1.5], noise below 0.1.
        Each operation runs on all images, with a neutral strength for images that are not chosen.

    The published loss term is smallest when the median image has the target error. Some images are not
    changed by any operation, so the PSNR of batches ends up 2 to 3 dB above the target. The narrowest ranges of
    brightness and contrast, [0.9, 1.1], give 30 to 35 dB, so training does not reach higher targets.
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
        """Return the augmented images, normalised like the input, and the loss term.

        Args:
            image: pixels in [0, 1], or pixels that were normalised by `mean` and `std`.
            progress: completed fraction of the training run, from 0 to 1.
            mean: mean per channel that was subtracted from the pixels.
            std: standard deviation per channel by which the pixels were divided.
            generator: source of randomness; None uses torch's default CPU generator.

        Raises:
            ValueError: if `image` is not a float batch (B, C, H, W), or `progress` is not in [0, 1].
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
        """Draw the random numbers that determine the changes of a batch.

        Args:
            num_images: number of images of the whole batch.
            progress: completed fraction of the training run, from 0 to 1.
            device: device of the images.
            generator: source of randomness; None uses torch's default CPU generator.

        Raises:
            ValueError: if `progress` is not in [0, 1].
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
        """Return the changed images, normalised like the input, and the loss term of each image.

        Shape: (B, C, H, W) -> (B, C, H, W), and (B,) of at least float32.

        Args:
            image: all or some images of a batch, in the form that `forward` expects.
            numbers: the rows of the batch's random numbers that belong to these images.
            mean: mean per channel that was subtracted from the pixels.
            std: standard deviation per channel by which the pixels were divided.

        Raises:
            ValueError: if `image` is not a float batch (B, C, H, W).
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
        """Return the target mean squared error, for pixels in [0, 1], at a training progress from 0 to 1."""
        first, last = (10 ** (-psnr / 10) for psnr in self.spec.target_psnr)
        return last + 0.5 * (first - last) * (1 + math.cos(math.pi * progress))

    def extra_repr(self) -> str:
        """Return the settings for the module's `repr`."""
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
    """Return standard normal noise in the shape of the images, drawn for each image from its own seed."""
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
        raise ValueError(f"progress must be a fraction of the training run, from 0 to 1, not {progress}")
