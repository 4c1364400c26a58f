"""The reinforced loss against the golden values, closed forms, finite differences and people's mistakes."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mobileclip.losses import (
    ContrastiveLoss,
    ReinforcedLoss,
    ReinforcedLossSpec,
    distillation_loss,
    teacher_targets,
)
from tests.errors import fails
from tests.losses.embeddings import unit_rows

pytestmark = pytest.mark.usefixtures("each_backend")

GOLDEN = Path(__file__).parents[1] / "golden" / "loss"
CASES = json.loads((GOLDEN / "dr_loss.json").read_text())
STUDENT = ("image", "text", "syn_text")
TEACHERS = ("teacher_image", "teacher_text", "teacher_syn_text")


def golden_inputs(case: dict) -> dict[str, Tensor]:
    with np.load(GOLDEN / "dr_loss_inputs.npz") as arrays:
        inputs = {
            f"{owner}{name}": torch.from_numpy(arrays[f"{case['seed']}.{prefix}_{name}"]).double()
            for prefix, owner in (("student", ""), ("teacher", "teacher_"))
            for name in STUDENT
        }
    for name in STUDENT:
        inputs[name].requires_grad_()
    inputs["logit_scale"] = torch.tensor(case["student_logit_scale"], dtype=torch.float64, requires_grad=True)
    return inputs


def build(case: dict) -> ReinforcedLoss:
    teachers = {name: case[name] for name in ("teacher_dims", "teacher_logit_scales")}
    contrastive_weight, distill_weight = case["weights"]
    return ReinforcedLossSpec(**teachers, contrastive_weight=contrastive_weight, distill_weight=distill_weight).build()


def random_inputs(batch: int, dim: int, teacher_dims: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    unit = partial(unit_rows, batch, generator=generator)
    inputs = {name: unit(dim) for name in STUDENT}
    for name in STUDENT:
        inputs[f"teacher_{name}"] = torch.cat([unit(width) for width in teacher_dims], dim=1)
    return inputs


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['seed']}")
class TestGolden:
    def test_terms_and_gradients(self, case):
        inputs = golden_inputs(case)
        terms = build(case)(**inputs)
        entropy = case["weights"][1] * sum(case["teacher_entropy"])
        assert terms.contrastive.item() == pytest.approx(case["contrastive"], abs=1e-8)
        assert terms.distillation.item() == pytest.approx(case["distill_cross_entropy"] - entropy, abs=1e-8)
        assert terms.total.item() == (terms.contrastive + terms.distillation).item()
        contrastive = ContrastiveLoss()(**{name: inputs[name] for name in (*STUDENT, "logit_scale")})
        weight = case["weights"][0]
        assert weight * contrastive.total.item() == pytest.approx(case["contrastive"], abs=1e-8)
        assert (contrastive.total.item(), contrastive.distillation.item()) == (contrastive.contrastive.item(), 0)
        terms.total.backward()
        for name in STUDENT:
            assert inputs[name].grad.norm().item() == pytest.approx(case[f"grad_{name}_norm"], abs=1e-8)
        assert inputs["logit_scale"].grad.item() == pytest.approx(case["grad_logit_scale"], abs=1e-8)
        np.testing.assert_allclose(inputs["image"].grad[0, :8], case["grad_image_row0"], rtol=0, atol=1e-8)

    def test_teacher_entropies(self, case):
        inputs = golden_inputs(case)
        for text, expected in zip(("teacher_text", "teacher_syn_text"), case["teacher_entropy"], strict=True):
            teachers = {name: case[name] for name in ("teacher_dims", "teacher_logit_scales")}
            targets = teacher_targets(inputs["teacher_image"], inputs[text], **teachers)
            entropies = [-torch.special.xlogy(p, p).sum(dim=1).mean().item() for p in targets]
            assert sum(entropies) / 2 == pytest.approx(expected, abs=1e-8)

    def test_one_caption_is_half_of_two_equal_ones(self, case):
        inputs = golden_inputs(case)
        inputs |= {"syn_text": inputs["text"], "teacher_syn_text": inputs["teacher_text"]}
        both = build(case)(**inputs)
        one = build(case)(**{name: value for name, value in inputs.items() if "syn" not in name})
        assert both.total.item() == pytest.approx(2 * one.total.item(), rel=1e-12)

    def test_teachers_scaled_per_slice_change_nothing(self, case):
        inputs = golden_inputs(case)
        expected = build(case)(**inputs)
        widths = torch.tensor(case["teacher_dims"])
        factors = (0.5 + torch.arange(len(widths), dtype=torch.float64)).repeat_interleave(widths)
        for name in STUDENT:
            inputs[f"teacher_{name}"] = inputs[f"teacher_{name}"] * factors
        terms = build(case)(**inputs)
        assert terms.distillation.item() == pytest.approx(expected.distillation.item(), rel=1e-12)


class TestClosedForms:
    def test_equal_texts_make_everything_uniform(self):
        batch = 16
        inputs = random_inputs(batch, 8, (4, 6))
        for name in ("text", "syn_text", "teacher_text", "teacher_syn_text", "image", "teacher_image"):
            inputs[name] = inputs[name][:1].expand(batch, -1)
        teachers = {"teacher_dims": (4, 6), "teacher_logit_scales": (100, 50)}
        loss = ReinforcedLossSpec(**teachers, contrastive_weight=1.0, distill_weight=1.0).build()
        terms = loss(**inputs, logit_scale=torch.tensor(77.0, dtype=torch.float64))
        assert terms.contrastive.item() == pytest.approx(2 * math.log(batch), abs=1e-12)
        assert terms.distillation.item() == pytest.approx(0.0, abs=1e-12)

    def test_a_sure_teacher_turns_distillation_into_the_contrastive_loss(self):
        eye = torch.eye(6, dtype=torch.float64)
        inputs = random_inputs(6, 5, (6,)) | dict.fromkeys(TEACHERS, eye)
        loss = ReinforcedLossSpec(teacher_dims=(6,), teacher_logit_scales=(1e4,), contrastive_weight=1.0).build()
        terms = loss(**inputs, logit_scale=10.0)
        assert terms.distillation.item() == pytest.approx(terms.contrastive.item(), rel=1e-12)

    def test_targets_are_distributions_in_both_directions_and_the_mean_of_the_teachers(self):
        inputs = random_inputs(9, 4, (3, 5, 7))
        dims, scales = (3, 5, 7), (20.0, 40.0, 60.0)
        pair = inputs["teacher_image"], inputs["teacher_text"]
        targets = teacher_targets(*pair, teacher_dims=dims, teacher_logit_scales=scales)
        parts = zip(pair[0].split(dims, 1), pair[1].split(dims, 1), dims, scales, strict=True)
        alone = [
            teacher_targets(image, text, teacher_dims=(dim,), teacher_logit_scales=(scale,))
            for image, text, dim, scale in parts
        ]
        for direction in (0, 1):
            torch.testing.assert_close(targets[direction].sum(dim=1), torch.ones(9, dtype=torch.float64))
            torch.testing.assert_close(targets[direction], sum(one[direction] for one in alone) / 3)
        assert not torch.allclose(targets[1], targets[0].T)

    def test_targets_of_exact_zero_are_finite(self):
        logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
        sure = torch.eye(2, dtype=torch.float64)
        value = distillation_loss(logits, sure, sure)
        value.backward()
        assert value.item() == pytest.approx(math.log(2))
        assert torch.isfinite(logits.grad).all()


def test_teachers_receive_no_gradient():
    inputs = random_inputs(4, 3, (3,))
    inputs["teacher_image"].requires_grad_()
    inputs["image"].requires_grad_()
    loss = ReinforcedLossSpec(teacher_dims=(3,), teacher_logit_scales=(10,)).build()
    loss(**inputs, logit_scale=1.0).total.backward()
    assert inputs["teacher_image"].grad is None


def test_a_choice_alone_is_followed_by_the_others():
    assert ReinforcedLossSpec(teacher_dims=[8]).teacher_dims == (8,)
    assert ReinforcedLossSpec(teacher_dims=(8,)).teacher_logit_scales == (100.0,)
    assert ReinforcedLossSpec(distill_weight=0.0).contrastive_weight == 1.0
    assert ReinforcedLossSpec(distill_weight=0.5).contrastive_weight == 0.0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"teacher_dims": (8,), "teacher_logit_scales": (100, 100)}, "2"),
        ({"teacher_logit_scales": (100,)}, "1"),
        ({"teacher_dims": (), "teacher_logit_scales": ()}, "teacher_dims"),
        ({"teacher_dims": (768, 0)}, "teacher_dims"),
        ({"teacher_dims": (768, 1.5)}, "teacher_dims"),
        ({"teacher_logit_scales": (100, -1)}, "teacher_logit_scales"),
        ({"teacher_logit_scales": (100, float("nan"))}, "teacher_logit_scales"),
        ({"contrastive_weight": -0.1}, "contrastive_weight"),
        ({"distill_weight": float("inf")}, "distill_weight"),
        ({"contrastive_weight": 0.0, "distill_weight": 0.0}, ""),
    ],
)
def test_bad_choices_are_refused(choices, message):
    with fails(ValueError, message):
        ReinforcedLossSpec(**choices)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text": torch.zeros(5, 4)}, ("image", "6", "text", "5")),
        ({"text": torch.zeros(6, 3)}, ("image", "4", "text", "3")),
        ({"syn_text": torch.zeros(7, 4)}, ("image", "6", "syn_text", "7")),
        ({"image": torch.zeros(6, 4, 1)}, ("image", "(6, 4, 1)")),
        ({"teacher_text": torch.zeros(6, 6)}, ("teacher_image", "7", "teacher_text", "6")),
        ({"teacher_syn_text": torch.zeros(6, 8)}, ("teacher_image", "7", "teacher_syn_text", "8")),
        ({"teacher_syn_text": None}, ("syn_text", "teacher_syn_text")),
        ({"syn_text": None}, ("teacher_syn_text", "syn_text")),
        (dict.fromkeys(TEACHERS, torch.zeros(6, 9)), ("9", "(3, 4)", "7")),
        (dict.fromkeys(TEACHERS, torch.zeros(3, 7)), ("6", "3")),
        (dict.fromkeys(STUDENT, torch.zeros(0, 4)), ("image", "text")),
    ],
)
def test_shapes_that_disagree_name_the_numbers(changes, named):
    inputs = random_inputs(6, 4, (3, 4)) | changes
    loss = ReinforcedLossSpec(teacher_dims=(3, 4), teacher_logit_scales=(10, 20)).build()
    with fails(ValueError, *named):
        loss(**inputs, logit_scale=10.0)


def test_perfect_pairs_cost_nothing():
    eye = torch.eye(8)
    assert ContrastiveLoss()(image=eye, text=eye, logit_scale=100.0).total.item() == pytest.approx(0, abs=1e-6)
