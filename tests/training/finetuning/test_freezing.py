import pytest
import torch

from mobileclip.training.finetuning import freeze_tower
from tests.encoders.small import SMALL_MCT, inputs
from tests.errors import fails
from tests.training.finetuning.models import fresh


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_does_not_move_and_the_other_does(tower):
    model = fresh(SMALL_MCT)
    freeze_tower(model, tower)
    model.train()
    images, tokens = inputs(SMALL_MCT, batch=4)
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=1e-2, weight_decay=0.2)
    for _ in range(2):
        optimizer.zero_grad()
        (model.encode_image(images) * model.encode_text(tokens) * model.logit_scale.exp()).mean().backward()
        optimizer.step()
    before, after = fresh(SMALL_MCT).state_dict(), model.state_dict()
    moved = {name.partition("_encoder.")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"logit_scale", "image" if tower == "text" else "text"}


def test_an_unknown_tower_is_refused():
    with fails(ValueError, "audio", "image, text"):
        freeze_tower(fresh(SMALL_MCT), "audio")
