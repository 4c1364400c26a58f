"""Norms that change nothing, for files whose form has norms where the folded model has none."""

import torch

from mobileclip import reparameterize
from mobileclip.blocks import ConvNorm
from mobileclip.encoders.checkpoints import with_neutral_norms
from tests.blocks.filling import filled, noise


@torch.inference_mode()
def test_a_convolution_alone():
    block = filled(ConvNorm(3, out_dim=4)).eval()
    target = ConvNorm(3, out_dim=4).eval()
    target.load_state_dict(with_neutral_norms(reparameterize(block).state_dict(), target))
    x = noise(2, 3, 5, 5)
    torch.testing.assert_close(target(x), block(x), rtol=1e-5, atol=1e-5)
