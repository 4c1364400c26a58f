"""The same weights in timm's FastViT blocks: a small MCi of each generation, compared block by block."""

from types import SimpleNamespace

import pytest
import torch

from mobileclip import reparameterize
from tests.blocks.filling import noise
from tests.encoders.timm_pairs import DEPTHS, DIMS, mci_pair
from tests.golden.checkpoints import relative_error
from tests.lazily import lazily

timm = lazily("timm")


@pytest.fixture(params=[1, 2], ids=["mobileclip", "mobileclip2"])
def pair(request):
    """Our encoder and timm's with its weights, in evaluation mode."""
    return SimpleNamespace(**dict(zip(("ours", "theirs"), mci_pair(request.param), strict=True)))


def parts(pair):
    """Each block of both models, and the shape of what goes into it."""
    yield "stem", pair.ours.stem, pair.theirs.stem, (2, 3, 64, 64)
    side, in_dim = 16, DIMS[0]
    for index, (stage, other) in enumerate(zip(pair.ours.stages, pair.theirs.stages, strict=True)):
        dim = DIMS[index]
        if index:
            yield f"downsample {index}", stage.downsample, other.downsample, (2, in_dim, side, side)
            side, in_dim = side // 2, dim
        if index == 2:
            yield "position", stage.position, other.pos_emb, (2, dim, side, side)
        for number, (block, other_block) in enumerate(zip(stage.blocks, other.blocks, strict=True)):
            yield f"block {index}.{number}", block, other_block, (2, dim, side, side)
    head = torch.nn.Sequential(pair.theirs.final_conv, pair.theirs.head)
    yield "head", pair.ours.head, head, (2, DIMS[-1], side, side)


@torch.inference_mode()
def test_every_block_computes_what_timms_does(pair):
    names = []
    for name, block, other, shape in parts(pair):
        x = noise(*shape, seed=len(names))
        assert relative_error(block(x), other(x)) < 1e-6, name
        names.append(name)
    assert len(names) == 1 + 2 + 1 + sum(DEPTHS) + 1


@torch.inference_mode()
def test_the_encoders_agree_unfolded_and_folded(pair):
    images = noise(2, 3, 64, 64)
    folded, expected = reparameterize(pair.ours)(images), pair.theirs(images)
    for one, other in ((pair.ours(images), expected), (folded, expected)):
        assert relative_error(one, other) < 1e-6
    assert relative_error(folded, timm.utils.reparameterize_model(pair.theirs)(images)) < 1e-6


def test_gradients_agree_in_training_mode(pair):
    """Batch statistics too: the models would train alike."""
    images = noise(4, 3, 64, 64)
    weight = noise(4, 24, seed=1)
    gradients = []
    for model in (pair.ours.double(), pair.theirs.double()):
        model.train()
        inputs = images.double().requires_grad_()
        (model(inputs) * weight.double()).sum().backward()
        gradients.append(inputs.grad)
    assert relative_error(gradients[0], gradients[1]) < 1e-8
