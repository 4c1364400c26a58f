"""The same weights in timm's FastViT blocks: a small MCi of each generation, compared block by block."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.utils import reparameterize_model

from mobileclip.encoders import AttentionSpec, MCiSpec, RepMixerSpec, StageSpec
from mobileclip.encoders.checkpoints import layouts
from mobileclip.inputs import ImageInput
from mobileclip.reparam import reparameterize
from tests.blocks.filling import filled, noise
from tests.golden.checkpoints import relative_error

DIMS = (16, 32, 64)
DEPTHS = (2, 1, 2)


def ours(generation):
    first = generation == 1
    mixers = (RepMixerSpec(), RepMixerSpec(), AttentionSpec(norm="batch" if first else "layer"))
    return MCiSpec(
        stages=tuple(
            StageSpec(dim=dim, depth=depth, mixer=mixer, squeeze_excite=first and index == 2)
            for index, (dim, depth, mixer) in enumerate(zip(DIMS, DEPTHS, mixers, strict=True))
        ),
        ffn_ratio=3.0 if first else 4.0,
        stem_scale_branch=first,
        embedding_dim=24,
        input=ImageInput(size=64),
    )


def theirs(generation):
    first = generation == 1
    return FastVit(
        layers=DEPTHS,
        embed_dims=DIMS,
        mlp_ratios=(3.0 if first else 4.0,) * 3,
        downsamples=(False, True, True),
        se_downsamples=(False, False, first),
        token_mixers=("repmixer", "repmixer", "attention"),
        pos_embs=(None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7))),
        lkc_use_act=True,
        stem_use_scale_branch=first,
        norm_layer=torch.nn.BatchNorm2d if first else partial(LayerNorm2d, eps=1e-5),
        num_classes=24,
    )


@pytest.fixture(params=[1, 2], ids=["mobileclip", "mobileclip2"])
def pair(request):
    """Our encoder and timm's with its weights, in evaluation mode."""
    spec, model = ours(request.param), theirs(request.param)
    encoder, layout = filled(spec.build()), layouts["open_clip"]
    state = layout.constants(spec)
    for name, entry in layout.entries(spec, "training").items():
        tensor = encoder.state_dict()[name]
        state[entry.name] = entry.reshape.to_theirs(tensor) if entry.reshape else tensor
    model.load_state_dict({name.removeprefix(layout.image_prefix): tensor for name, tensor in state.items()})
    return SimpleNamespace(ours=encoder, theirs=model.eval())


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
    expected = pair.theirs(images)
    assert relative_error(pair.ours(images), expected) < 1e-6
    assert relative_error(reparameterize(pair.ours)(images), expected) < 1e-6
    assert relative_error(reparameterize(pair.ours)(images), reparameterize_model(pair.theirs)(images)) < 1e-6


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
