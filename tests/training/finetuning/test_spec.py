import re
import sys

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.extras import install
from mobileclip.reparam import is_folded
from mobileclip.training.finetuning import FinetuningSpec, FrozenBatchNorm2d, LoraSpec, add_lora
from tests.encoders.small import SMALL, embeddings
from tests.errors import fails
from tests.training.finetuning.models import fresh


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_a_prepared_model_is_ordinary_again_when_finished(batch_norm):
    model = fresh(SMALL)
    spec = FinetuningSpec(batch_norm=batch_norm, frozen_towers=("text",))
    spec.prepare(model)
    frozen = [module for module in model.image_encoder.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert bool(frozen) == (batch_norm == "frozen")
    assert not any(parameter.requires_grad for parameter in model.text_encoder.parameters())
    spec.finish(model.train())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(embeddings(model), embeddings(fresh(SMALL)), rtol=0, atol=0)
    assert is_folded(reparameterize(model))


def test_adapters_need_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"adapters needs peft: `{install('lora')}`")):
        add_lora(fresh(SMALL), LoraSpec())


def test_mistakes_are_named():
    with fails(ValueError):
        FinetuningSpec(frozen_towers=("image", "text"))
    with fails(ValueError, "frozen_towers", "image', 'text"):
        FinetuningSpec(frozen_towers=("audio",))
    with fails(ValueError, "batch_norm"):
        FinetuningSpec(batch_norm="thawed")
    with fails(ValueError):
        FinetuningSpec(batch_norm="synchronised").prepare(fresh(SMALL))
