"""Where in a picture a score comes from: maps that sum to it, and towers that cannot say."""

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

import mobileclip
from mobileclip.blocks import ConvPoolHead
from mobileclip.encoders import MCi, save_model
from mobileclip.inference import attribution
from mobileclip.reparam import is_folded
from tests.encoders.small import IMAGE, SMALL_VIT, randomised
from tests.errors import fails
from tests.golden.checkpoints import relative_error

TEXTS = ["a cat", "a red bicycle", "two dogs in snow"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def clip(small_file):
    return mobileclip.load(small_file)


def test_a_map_sums_to_the_score_of_each_text(clip):
    maps = clip.explain(PICTURE, TEXTS)
    side = clip.model.spec.image.input.size // clip.model.image_encoder.strides[-1]
    assert maps.shape == (len(TEXTS), side, side)
    scores = clip.encode_image(PICTURE) @ clip.encode_text(TEXTS).T
    assert relative_error(maps.sum((1, 2)), scores[0]) < 1e-5
    assert torch.allclose(clip.explain(PICTURE, TEXTS[1])[0], maps[1], atol=1e-6)


def test_local_embeddings_are_the_formula_and_attribute_to_any_direction(clip):
    pixels = torch.from_numpy(np.stack([clip.transform.pixels(PICTURE), clip.transform.pixels(PICTURE)[::-1].copy()]))
    maps = clip.local_embeddings(pixels)
    assert relative_error(maps.mean((2, 3)), clip.encode_pixels(pixels)) < 1e-5
    directions = torch.nn.functional.normalize(torch.randn(4, maps.shape[1]), dim=-1)
    shares = attribution(maps, directions)
    places = maps.shape[2] * maps.shape[3]
    assert torch.allclose(shares[1, 2, 0, 1], maps[1, :, 0, 1] @ directions[2] / places, atol=1e-6)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("changes", [{}, {"projection_bias": True}, {"projection": False, "embedding_dim": 128}])
@torch.inference_mode()
def test_the_mean_over_places_is_the_embedding(fold, changes):
    encoder = randomised(attrs.evolve(IMAGE, **changes))
    encoder = mobileclip.reparameterize(encoder) if fold else encoder
    assert is_folded(encoder) == fold
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    maps = encoder.local_embeddings(images)
    assert maps.shape[2:] == (96 // encoder.strides[-1], 64 // encoder.strides[-1])
    assert relative_error(maps.mean((2, 3)), encoder(images)) < 1e-5


def test_towers_that_cannot_are_refused_by_name(tmp_path):
    save_model(randomised(SMALL_VIT), tmp_path / "vit.safetensors")
    vit = mobileclip.load(tmp_path / "vit.safetensors")
    with fails(ValueError, "ViT"):
        vit.explain(PICTURE, TEXTS)
    stem = torch.nn.Conv2d(3, 8, 4, stride=4)
    pooled = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with fails(ValueError, "Sequential"):
        MCi(stem, [torch.nn.Identity()], pooled, dims=(8,), strides=(4,)).local_embeddings(torch.rand(1, 3, 32, 32))
    whole = MCi(stem, [torch.nn.Identity()], ConvPoolHead(8, embedding_dim=4), dims=(8,), strides=(4,)).eval()
    assert whole.local_embeddings(torch.rand(1, 3, 32, 32)).shape == (1, 4, 8, 8)
