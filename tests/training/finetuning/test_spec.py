import sys

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.extras import install
from mobileclip.reparam import is_folded
from mobileclip.training.finetuning import FinetuningSpec, FrozenBatchNorm2d, add_lora
from tests.encoders.small import embeddings
from tests.errors import fails
from tests.training.finetuning.models import fresh, trainable


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_a_prepared_model_is_ordinary_again_when_finished(batch_norm):
    model, spec = fresh(), FinetuningSpec(batch_norm=batch_norm, frozen_towers=("text",))
    spec.prepare(model)
    frozen = [module for module in model.image_encoder.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert bool(frozen) == (batch_norm == "frozen")
    assert not trainable(model.text_encoder)
    spec.finish(model.train())
    assert not model.training
    assert trainable(model) == dict(model.named_parameters()).keys()
    torch.testing.assert_close(embeddings(model), embeddings(fresh()), rtol=0, atol=0)
    assert is_folded(reparameterize(model))


def test_adapters_need_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with fails(ModuleNotFoundError, f"adapters needs peft: `{install('lora')}`"):
        add_lora(fresh())


def test_mistakes_are_named():
    for choices, *words in (
        ({"frozen_towers": ("image", "text")},),
        ({"frozen_towers": ("audio",)}, "frozen_towers", "image', 'text"),
        ({"batch_norm": "thawed"}, "batch_norm"),
        ({"batch_norm": "synchronised"},),
    ):
        with fails(ValueError, *words):
            FinetuningSpec(**choices).prepare(fresh())
