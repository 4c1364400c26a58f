"""Speed of the reinforced loss, forward and backward, at the batch of one GPU and of eight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.losses import ContrastiveLoss, ReinforcedLossSpec

DIM = 512
TEACHER_DIMS = (768, 768)


def unit(batch: int, dim: int, *, requires_grad: bool = False) -> Tensor:
    return F.normalize(torch.randn(batch, dim), dim=1).requires_grad_(requires_grad)


@pytest.fixture(params=[256, 2048], ids=lambda batch: f"batch{batch}")
def student(request) -> dict[str, Tensor]:
    torch.manual_seed(0)
    names = ("image", "text", "syn_text")
    embeddings = {name: unit(request.param, DIM, requires_grad=True) for name in names}
    return embeddings | {"logit_scale": torch.tensor(100.0, requires_grad=True)}


@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.25, 0.75)], ids=["w1", "w075"])
def test_reinforced(benchmark, student, weights):
    """Two teachers, real and synthetic captions."""
    batch = len(student["image"])
    teachers = {
        f"teacher_{name}": torch.cat([unit(batch, dim) for dim in TEACHER_DIMS], dim=1)
        for name in ("image", "text", "syn_text")
    }
    loss = ReinforcedLossSpec(
        teacher_dims=TEACHER_DIMS,
        teacher_logit_scales=(100, 100),
        contrastive_weight=weights[0],
        distill_weight=weights[1],
    ).build()

    def step() -> None:
        loss(**student, **teachers).total.backward()

    benchmark(step)


def test_contrastive(benchmark, student):
    """What the teachers add to is this."""
    loss = ContrastiveLoss()

    def step() -> None:
        loss(**student).total.backward()

    benchmark(step)
