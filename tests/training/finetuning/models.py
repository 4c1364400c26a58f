"""Small models that come out the same every time: `randomised` leaves matrices to torch's own random numbers."""

from __future__ import annotations

import torch

from mobileclip.encoders import DualEncoder, DualEncoderSpec
from tests.encoders.small import randomised


def fresh(spec: DualEncoderSpec, seed: int = 0) -> DualEncoder:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = randomised(spec, seed)
    torch.set_rng_state(state)
    return model
