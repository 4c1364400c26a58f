"""RepMixer: a residual that starts as almost nothing, over rows of an image or over a text."""

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import RepMixer, RepMixerBlock, TextRepMixer, TextRepMixerBlock
from tests.blocks.filling import filled, noise
from tests.errors import fails


def test_the_formula():
    block, x = filled(RepMixer(4)), noise(2, 4, 5, 6)
    gamma = block.layer_scale.gamma
    torch.testing.assert_close(block(x), x + gamma * (block.mixer(x) - block.norm.skip(x)))


def test_with_a_scale_of_zero_it_passes_its_input_on():
    block, x = RepMixer(4, layer_scale=0.0).eval(), noise(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    assert torch.equal(reparameterize(block)(x), x)


def test_channels_do_not_mix():
    block, x = filled(RepMixer(4)), noise(1, 4, 5, 5)
    changed = x.clone()
    changed[:, 2] += 1
    difference = (block(changed) - block(x)).abs().sum((0, 2, 3))
    assert (difference > 0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 11), (5, 3)])
def test_folded_it_is_one_depthwise_convolution(kernel_size):
    folded = reparameterize(filled(RepMixer(6, kernel_size=kernel_size)))
    assert type(folded) is nn.Conv2d
    assert (folded.groups, folded.kernel_size) == (6, kernel_size)
    assert sum(parameter.numel() for parameter in folded.parameters()) == 6 * kernel_size[0] * kernel_size[1] + 6


def test_image_and_text_are_one_class():
    """A text block is an image block of one row."""
    text = filled(TextRepMixerBlock(4, kernel_size=5, hidden_dim=6))
    image = RepMixerBlock(4, kernel_size=(1, 5), ffn_kernel_size=(1, 5), hidden_dim=6).eval()
    image.load_state_dict(text.state_dict())
    x = noise(2, 9, 4)
    torch.testing.assert_close(text(x), image(x.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2))


def test_a_token_reaches_half_a_kernel_on_either_side():
    block, x = filled(RepMixer(4, kernel_size=(1, 5))), noise(1, 4, 1, 11)
    changed = x.clone()
    changed[..., 5] += 1
    reached = (block(changed) != block(x)).any(1).flatten()
    assert reached.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("make", "name", "size", "named"),
    [
        (RepMixer, "kernel_size", (4, 4), "(4, 4)"),
        (RepMixerBlock, "kernel_size", (4, 4), "(4, 4)"),
        (TextRepMixerBlock, "kernel_size", 10, "(1, 10)"),
        (RepMixerBlock, "ffn_kernel_size", (6, 6), "(6, 6)"),
    ],
)
def test_even_kernels_are_refused(make, name, size, named):
    with fails(ValueError, named):
        make(4, **{name: size})


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("make", [TextRepMixer, TextRepMixerBlock])
def test_gradients_over_sequences_are_those_of_finite_differences(make, training, batch):
    """Of one sequence alone, too: there PyTorch has wrong gradients where a dimension of size 1 has an odd stride."""
    block = filled(make(4, kernel_size=3)).double().train(training)
    x = noise(batch, 5, 4, dtype=torch.float64).requires_grad_()
    parameters = tuple(block.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *parameters), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["squeeze_excite", "activation"])
def test_a_mixer_with_a_gate_or_an_activation_does_not_fold(name):
    mixer = RepMixer(4).eval()
    setattr(mixer.norm, name, nn.Sigmoid())
    with fails(ValueError):
        mixer.fold()
