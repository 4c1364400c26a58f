"""Texts read to their end token against the whole context, and images in parts of a batch, in both precisions."""

import pytest
import torch

from mobileclip import reparameterize, specs
from mobileclip.inference import Form, OptimizedTower, prepared_tower


@pytest.fixture(scope="module", params=["text_base", "text_causal", "text_mct"])
def tower(request):
    torch.manual_seed(0)
    model = specs.mobileclip_b().text if request.param == "text_causal" else getattr(specs, request.param)()
    return request.param, reparameterize(model.build().eval())


@pytest.mark.parametrize("batch", [1, 32], ids=lambda batch: f"batch{batch}")
@pytest.mark.parametrize("form", ["whole", "to_the_end", "to_the_end_bf16"])
@torch.inference_mode()
def test_captions_of_ten_ids(benchmark, tower, form, batch):
    name, folded = tower
    contract = folded.spec.input
    tokens = torch.full((batch, contract.context_length), contract.pad_id)
    tokens[:, :10] = torch.randint(1, contract.start_id, (batch, 10))
    tokens[:, 0], tokens[:, 9] = contract.start_id, contract.end_id
    forms = {
        "whole": folded,
        "to_the_end": prepared_tower(folded),
        "to_the_end_bf16": OptimizedTower(
            folded, form=Form(engine="eager", precision="bfloat16", max_batch_size=batch)
        ),
    }
    benchmark.group = f"{name}, batch {batch}"
    benchmark.pedantic(forms[form], args=[tokens], rounds=10 if batch == 1 else 3, warmup_rounds=1)


@pytest.mark.parametrize("batch", [1, 32], ids=lambda batch: f"batch{batch}")
@pytest.mark.parametrize("most", [4, 32])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@torch.inference_mode()
def test_images_of_s0(benchmark, precision, most, batch):
    torch.manual_seed(0)
    tower = OptimizedTower(
        reparameterize(specs.mci0().build().eval()), form=Form(engine="eager", precision=precision, max_batch_size=most)
    )
    benchmark.group = f"mci0, batch {batch}"
    size = tower.spec.input.size
    benchmark.pedantic(tower, args=[torch.rand(batch, 3, size, size)], rounds=10 if batch == 1 else 3, warmup_rounds=1)
