"""Small models that come out the same every time: `randomised` leaves matrices to torch's own random numbers."""

from __future__ import annotations

import torch
from torch import nn

from mobileclip.encoders import DualEncoder, DualEncoderSpec
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, inputs, randomised

SPECS = {"mci": SMALL, "mct": SMALL_MCT, "vit": SMALL_VIT}


def fresh(spec: DualEncoderSpec = SMALL, seed: int = 0) -> DualEncoder:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = randomised(spec, seed)
    torch.set_rng_state(state)
    return model


def stepped(model: DualEncoder) -> DualEncoder:
    """Train what may be trained for two steps, in the mode that the model has; then set evaluation mode."""
    images, tokens = inputs(model.spec, batch=4)
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        (model.encode_image(images) * model.encode_text(tokens) * model.logit_scale.exp()).mean().backward()
        optimizer.step()
    return model.eval()


def moved(model: nn.Module, original: nn.Module) -> set[str]:
    """Return the names of the tensors in which a model is not the original one any more."""
    before = original.state_dict()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
