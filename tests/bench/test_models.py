"""Speed of the towers of every published model: as trained (in evaluation mode) and folded.

Models share towers: each distinct one is measured once, under the first model that has it.
"""

from __future__ import annotations

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.blocks import models
from mobileclip.encoders import ImageEncoderSpec, TextEncoderSpec


def distinct_towers() -> dict[str, ImageEncoderSpec | TextEncoderSpec]:
    """The towers of all models, by the name of the first model and the kind of tower."""
    towers: dict[str, ImageEncoderSpec | TextEncoderSpec] = {}
    for name, model in models.items():
        for kind in ("image", "text"):
            spec = getattr(model, kind)
            if spec not in towers.values():
                towers[f"{name} {kind}"] = spec
    return towers


TOWERS = distinct_towers()


def inputs(spec: ImageEncoderSpec | TextEncoderSpec, batch: int) -> torch.Tensor:
    if isinstance(spec, ImageEncoderSpec):
        return torch.rand(batch, 3, spec.input.size, spec.input.size)
    tokens = torch.randint(1, spec.input.start_id, (batch, spec.input.context_length))
    tokens[:, 0], tokens[:, 12], tokens[:, 13:] = spec.input.start_id, spec.input.end_id, spec.input.pad_id
    return tokens


@pytest.fixture(scope="module", params=TOWERS)
def tower(request):
    """A tower's name and both forms of it, built once for all its measurements."""
    torch.manual_seed(0)
    model = TOWERS[request.param].build().eval()
    return request.param, {"training": model, "folded": reparameterize(model)}


@pytest.mark.parametrize("batch", [1, 32], ids=lambda batch: f"batch{batch}")
@pytest.mark.parametrize("form", ["training", "folded"])
@torch.inference_mode()
def test_tower(benchmark, tower, form, batch):
    name, forms = tower
    benchmark.group = f"{name}, batch {batch}"
    benchmark.extra_info["million_parameters"] = sum(p.numel() for p in forms[form].parameters()) / 1e6
    batch_of_inputs = inputs(TOWERS[name], batch)
    benchmark.pedantic(forms[form], args=[batch_of_inputs], rounds=10 if batch == 1 else 3, warmup_rounds=1)
