"""Feature maps of the image encoders: timm's with the same weights, at any size, and what is refused."""

import pytest
import torch
from torch import nn

from mobileclip import reparameterize, specs
from mobileclip.encoders import MCi
from mobileclip.reparam import is_folded
from tests.blocks.filling import filled, noise
from tests.encoders.timm_pairs import mci_pair, vit_pair, with_our_weights
from tests.encoders.towers import SMALL
from tests.errors import fails
from tests.golden.checkpoints import relative_error
from tests.lazily import lazily

timm = lazily("timm")

PAIRS = {
    "mobileclip": lambda: mci_pair(1),
    "mobileclip2": lambda: mci_pair(2),
    "vit": lambda: vit_pair("convolutional"),
    "vit_patch": lambda: vit_pair("patch"),
}
FULL = {"fastvit_mci0": specs.mci0, "fastvit_mci3": specs.mci3, "vit_base_mci_224": lambda: specs.mobileclip2_b().image}
SIZES = [(128, 128), (160, 96)]


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]()


def differences(ours, theirs, images):
    """The relative error of every map, whose shapes are as the encoder says."""
    maps = ours.features(images)
    expected = theirs.forward_intermediates(images, intermediates_only=True)
    assert len(maps) == len(expected) == len(ours.dims) == len(ours.strides)
    for feature_map, dim, stride in zip(maps, ours.dims, ours.strides, strict=True):
        assert feature_map.shape == (len(images), dim, images.shape[2] // stride, images.shape[3] // stride)
    return [relative_error(*both) for both in zip(maps, expected, strict=True)]


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_maps_are_timms_unfolded_and_folded(pair, size):
    ours, theirs = pair
    images = noise(2, 3, *size)
    assert max(differences(ours, theirs, images)) < 1e-5
    folded = reparameterize(ours)
    assert is_folded(folded)
    assert max(differences(folded, theirs, images)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [(256, 256), (320, 192), (1024, 1024)])
@pytest.mark.parametrize("name", FULL)
@torch.inference_mode()
def test_maps_of_published_encoders_are_timms(name, size):
    ours = filled(FULL[name]().build())
    sides = {"dynamic_img_size": True} if name.startswith("vit") else {}
    theirs = with_our_weights(ours, timm.create_model(name, num_classes=ours.spec.embedding_dim, **sides))
    images = noise(1, 3, *size)
    assert max(differences(ours, theirs, images)) < 1e-5
    assert max(differences(reparameterize(ours), theirs, images)) < 1e-5


@pytest.mark.parametrize("stem", ["convolutional", "patch"])
@torch.inference_mode()
def test_tokens_of_layers_begin_with_the_class_token_which_the_last_projects(stem):
    ours, theirs = vit_pair(stem)
    images = noise(2, 3, 96, 160)
    expected = theirs.forward_intermediates(images, intermediates_only=True, return_prefix_tokens=True)
    for tokens, (_, prefix) in zip(ours.layer_tokens(images), expected, strict=True):
        assert tokens.shape == (2, 1 + 6 * 10, 32)
        assert relative_error(tokens[:, :1], prefix) < 1e-5
    images = noise(2, 3, 128, 128)
    (last,) = ours.layer_tokens(images, (2,))
    torch.testing.assert_close(ours.project(ours.norm(last[:, 0])), ours(images))


@torch.inference_mode()
def test_embeddings_and_maps_in_one_pass_are_those_of_two(pair):
    encoder, _ = pair
    images = noise(2, 3, encoder.spec.input.size, encoder.spec.input.size)
    expected = encoder(images), encoder.features(images, (2, 0))
    if isinstance(encoder, MCi):
        torch.testing.assert_close(encoder.head(expected[1][0]), expected[0])
    calls = called(encoder)
    torch.testing.assert_close(encoder.embedding_and_features(images, (2, 0)), expected)
    assert calls == [0, 1, 2]
    with fails(ValueError, "2"):
        encoder.embedding_and_features(images, (3,))


def called(encoder):
    """A list of the numbers of stages or layers that are computed from now on."""
    calls = []
    for number, part in enumerate(encoder.stages if isinstance(encoder, MCi) else encoder.layers):
        part.register_forward_hook(lambda *_, number=number: calls.append(number))
    return calls


@torch.inference_mode()
def test_maps_come_in_the_order_asked_for_and_no_more_is_computed(pair):
    encoder, _ = pair
    images = noise(1, 3, 64, 64)
    everything, calls = encoder.features(images), called(encoder)
    second, first = encoder.features(images, stages=[1, 0])
    assert calls == [0, 1]
    torch.testing.assert_close((first, second), tuple(everything[:2]))


def test_gradients_reach_all_that_the_maps_depend_on(pair):
    """Of a ViT at another size too, whose positions are interpolated."""
    encoder, _ = pair
    encoder.train()
    sum(each.square().mean() for each in encoder.features(noise(2, 3, 96, 64))).backward()
    beside = ("head.", "project.", "norm.")
    without = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in encoder.named_parameters() if name.startswith(beside)}


def test_unknown_stages_and_sides_that_a_stride_does_not_divide_are_refused(pair):
    encoder, _ = pair
    for stages in ((3,), (0, -1), ()):
        with fails(ValueError, "2"):
            encoder.features(noise(1, 3, 64, 64), stages)
    for shape in ((1, 3, 64, 40), (1, 3, 40, 64), (3, 64, 64)):
        with fails(ValueError, "16"):
            encoder.features(noise(*shape))


def test_positions_of_no_square_grid_and_stages_without_a_stride_are_refused():
    vit, mci = SMALL["vit"].build(), SMALL["mci"].build()
    vit.position = nn.Parameter(vit.position[:15])
    with fails(ValueError, "15"):
        vit.features(noise(1, 3, 96, 96))
    with fails(ValueError, "2", "1"):
        MCi(mci.stem, mci.stages, mci.head, dims=mci.dims, strides=mci.strides[:1])
    (finest,) = mci.features(noise(1, 3, 36, 44), (0,))
    assert finest.shape == (1, 8, 9, 11), "only strides of stages asked for divide the sides"


class Backbone(nn.Module):
    """What a detector has below its neck."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return self.encoder.features(images, (0, 1))


@torch.inference_mode()
def test_an_exported_backbone_takes_any_sides():
    backbone = Backbone(reparameterize(filled(SMALL["mci"].build())))
    rows, columns = (8 * torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
    exported = torch.export.export(backbone, (noise(2, 3, 64, 96),), dynamic_shapes=({2: rows, 3: columns},)).module()
    images = noise(2, 3, 128, 48)
    for ours, theirs in zip(exported(images), backbone(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
