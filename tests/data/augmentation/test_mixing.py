"""Mixup and CutMix: what becomes of pixels, and that targets say what images hold."""

import numpy as np
import torch
from hypothesis import given, settings, strategies as st

from mobileclip.data import MixingSpec, RandomErasingSpec, augmentation_rng
from tests.errors import fails

# Image i is i everywhere, and of class i.
IMAGES = torch.arange(6).float()[:, None, None, None].expand(6, 3, 12, 10)
TARGETS = torch.eye(6)


def mixed(seed=0, **choices):
    torch.manual_seed(seed)
    return MixingSpec(**choices).mix(IMAGES, TARGETS)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(0.2, 0.0), (0.0, 1.0), (0.2, 1.0), (5.0, 5.0)]))
def test_targets_are_the_shares_of_the_pixels(seed, alphas):
    before = IMAGES.clone()
    images, shares = mixed(seed, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    assert torch.equal(IMAGES, before)
    # The mean of an image is that of its classes' numbers, weighted by the shares.
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), shares @ torch.arange(6.0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(6))
    partners = shares.clone().fill_diagonal_(0).nonzero()
    assert (partners.sum(dim=1) == 5).all()
    again, _ = mixed(seed, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    assert torch.equal(images, again)


def test_mixup_blends_and_cutmix_cuts():
    blended, _ = mixed(mixup_alpha=1.0, cutmix_alpha=0.0)
    assert all(len(image.unique()) == 1 for image in blended)
    cut, _ = mixed(mixup_alpha=0.0)
    assert set(cut.unique().tolist()) <= set(range(6))
    rows, columns = (cut[0, 0] == 5).nonzero(as_tuple=True)
    assert (cut[0, :, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 5).all()
    with fails(ValueError):
        MixingSpec(mixup_alpha=0.0, cutmix_alpha=0.0)


def test_which_and_how_often():
    kinds = []
    for seed in range(400):
        images, shares = mixed(seed, mixup_alpha=1.0, probability=0.5)
        kinds.append(
            "none" if torch.equal(shares, TARGETS) else "cutmix" if images[0].unique().numel() > 1 else "mixup"
        )
    # A rectangle of no pixel is none.
    assert 180 < kinds.count("none") < 250
    assert 60 < kinds.count("cutmix") < 130
    assert 70 < kinds.count("mixup") < 130


def test_what_is_erased_has_the_mean_and_the_deviation_of_imagenet():
    """Of each channel, to within a level; cut to 0 to 255, as the docstring says."""
    spec = RandomErasingSpec(probability=1.0, area=(0.5, 0.5), ratio=(1.0, 1.0))
    images = [spec.apply(np.zeros((64, 64, 3), np.uint8), augmentation_rng(0, f"{one}", 0)) for one in range(40)]
    noise = np.concatenate([one[one.any(axis=2)] for one in images]).astype(float)
    assert len(noise) > 70_000
    drawn = np.random.default_rng(0).standard_normal((100_000, 1))
    mean, deviation = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    expected = (255 * (mean + deviation * drawn)).round().clip(0, 255)
    np.testing.assert_allclose(noise.mean(axis=0), expected.mean(axis=0), atol=1)
    np.testing.assert_allclose(noise.std(axis=0), expected.std(axis=0), atol=1)
