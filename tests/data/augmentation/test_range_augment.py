"""RangeAugment: its strength follows the target, its ranges stay in their bounds, and nothing else is trained."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.data import RangeAugmentSpec
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD
from tests.errors import fails

PICTURES = Path(__file__).parents[2] / "golden" / "augment" / "images"
BOUNDS = {
    "brightness": ((0.1, 0.9), (1.1, 10.0)),
    "contrast": ((0.1, 0.9), (1.1, 10.0)),
    "noise": ((0.0, 5e-5), (1e-4, 1.0)),
}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    many = []
    for path in sorted(PICTURES.glob("*.png")):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((48, 48))
        many += [torch.from_numpy(np.array(small.rotate(90 * turn))) for turn in range(4)]
    return torch.stack(many).permute(0, 3, 1, 2) / 255


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ranges(module) -> dict[str, list[float]]:
    return {name: getattr(module, name).range().tolist() for name in BOUNDS}


def learned(images, target, *, rate, steps):
    """A module that has learned a target, and its own strength; its ranges have stayed in their bounds."""
    module = RangeAugmentSpec(target_psnr=(target, target)).build()
    optimizer, generator = torch.optim.Adam(module.parameters(), rate), seeded(0)
    for _ in range(steps):
        optimizer.zero_grad()
        module(images, progress=0.0, generator=generator)[1].backward()
        optimizer.step()
        for name, found in ranges(module).items():
            for value, (least, most) in zip(found, BOUNDS[name], strict=True):
                assert least - 1e-6 <= value <= most + 1e-6
    with torch.no_grad():
        errors = [(module(images, progress=0.0, generator=generator)[0] - images).square().mean() for _ in range(20)]
    return module, -10 * math.log10(torch.stack(errors).mean())


@pytest.mark.parametrize("target", [30.0, 22.0, 15.0])
def test_the_ranges_learn_the_target(images, target):
    _, psnr = learned(images, target, rate=0.1, steps=50)
    assert abs(psnr - target) < 3.5


def test_an_unreachable_target_ends_at_the_least_ranges(images):
    found = ranges(learned(images, 60.0, rate=0.3, steps=100)[0])
    np.testing.assert_allclose(found["brightness"], (0.9, 1.1), atol=0.02)
    np.testing.assert_allclose(found["noise"][1], 0.0, atol=0.01)


def test_ranges_at_the_start():
    module = RangeAugmentSpec().build()
    for name, expected in (("brightness", (0.5, 1.5)), ("contrast", (0.5, 1.5)), ("noise", (2.5e-5, 0.1))):
        np.testing.assert_allclose(ranges(module)[name], expected, rtol=1e-4)
    assert list(module.state_dict()) == ["brightness.ends", "contrast.ends", "noise.ends"]


def test_the_target_follows_a_half_cosine_from_the_first_to_the_last():
    module = RangeAugmentSpec(target_psnr=[40, 20]).build()
    assert "target_psnr=(40.0, 20.0)" in repr(module)
    steps = [module.target_error(place / 20) for place in range(21)]
    assert [steps[0], steps[10], steps[20]] == pytest.approx([1e-4, (1e-4 + 1e-2) / 2, 1e-2])
    assert steps == sorted(steps)


def test_the_loss_is_the_distance_of_every_images_error(images):
    module = RangeAugmentSpec(weight=7.0).build()
    augmented, loss = module(images, progress=0.25, generator=seeded(3))
    errors = (255 * (augmented - images)).square().mean(dim=(1, 2, 3))
    target = 255**2 * module.target_error(0.25)
    expected = 7 / 255**2 * torch.nn.functional.smooth_l1_loss(errors, torch.full_like(errors, target))
    torch.testing.assert_close(loss, expected)
    one, other = (module(images, progress=0.0, generator=seeded(seed))[0] for seed in (1, 2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_an_image_changes_alike_whichever_others_change_with_it(images, size):
    module = RangeAugmentSpec().build()
    numbers = module.draw(len(images), progress=0.5, device=images.device)
    assert len(numbers) == len(images)
    whole = module.change(images, numbers)
    pieces = [module.change(*piece) for piece in zip(images.split(size), numbers.split(size), strict=True)]
    for together, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), together)
    backwards = module.change(images.flip(0), numbers.flip(0))
    torch.testing.assert_close(tuple(one.flip(0) for one in backwards), whole)
    assert len({image.sum().item() for image in whole[0] - images}) > len(images) // 2


def test_normalised_images_come_back_normalised(images):
    module = RangeAugmentSpec().build()
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_MEAN, OPENAI_STD))
    plain, expected = module(images, progress=0.5, generator=seeded(1))
    statistics = {"mean": OPENAI_MEAN, "std": OPENAI_STD}
    normalised, loss = module((images - mean) / std, progress=0.5, generator=seeded(1), **statistics)
    torch.testing.assert_close(normalised * std + mean, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    assert 0 <= plain.min() < plain.max() <= 1


@pytest.mark.parametrize(("fraction", "batch", "least", "most"), [(0.5, 12, 6, 12), (1.0, 12, 12, 12), (0.1, 3, 1, 3)])
def test_each_operation_changes_a_fraction_of_the_images(images, fraction, batch, least, most):
    module, generator = RangeAugmentSpec(fraction=fraction).build(), seeded(0)
    for _ in range(10):
        augmented, _ = module(images[:batch], progress=0.0, generator=generator)
        assert least <= (augmented != images[:batch]).flatten(1).any(dim=1).sum() <= most


def test_evaluation_changes_nothing_and_other_precisions_are_kept(images):
    augmented, loss = RangeAugmentSpec().build().eval()(images, progress=0.5)
    assert augmented is images
    assert loss.item() == 0
    for dtype in (torch.bfloat16, torch.float64):
        augmented, loss = RangeAugmentSpec().build()(images.to(dtype), progress=0.0)
        assert (augmented.dtype, loss.dtype) == (dtype, torch.promote_types(dtype, torch.float32))


def test_bad_input(images):
    module = RangeAugmentSpec().build()
    for wrong, progress in (((255 * images).to(torch.uint8), 0.0), (images[0], 0.0), (images, 1.5)):
        with fails(ValueError, "1.5" if progress else ""):
            module(wrong, progress=progress)
    for name, value in (("target_psnr", (0, 20)), ("weight", 0), ("fraction", 0), ("fraction", 1.5)):
        with fails(ValueError, name):
            RangeAugmentSpec(**{name: value})
