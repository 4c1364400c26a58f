import pytest

from mobileclip.training.finetuning import freeze_tower
from tests.encoders.small import SMALL_MCT
from tests.errors import fails
from tests.training.finetuning.models import fresh, moved, stepped


@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_a_frozen_tower_does_not_move_and_the_other_does(tower, other):
    model = fresh(SMALL_MCT)
    freeze_tower(model, tower)
    names = moved(stepped(model.train()), fresh(SMALL_MCT))
    assert {name.partition("_encoder.")[0] for name in names} == {"logit_scale", other}


def test_an_unknown_tower_is_refused():
    with fails(ValueError, "audio", "image, text"):
        freeze_tower(fresh(), "audio")
