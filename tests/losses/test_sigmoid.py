"""The sigmoid losses: closed forms, the bias that they own, teachers with and without one, and people's mistakes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mobileclip.losses import (
    ContrastiveLossSpec,
    LossSpec,
    ReinforcedLoss,
    ReinforcedLossSpec,
    ReinforcedSigmoidLoss,
    ReinforcedSigmoidLossSpec,
    SigmoidLoss,
    SigmoidLossSpec,
    losses,
)
from mobileclip.serialization import from_json, to_json
from tests.errors import fails
from tests.losses.embeddings import SPECS, STUDENT, random_batch

pytestmark = pytest.mark.usefixtures("each_backend")

EYE = torch.eye(4, dtype=torch.float64)


class TestSigmoid:
    def test_pair_by_pair(self):
        """Zhai et al., algorithm 1, written out."""
        inputs = random_batch(SigmoidLossSpec(), 6, syn=False)
        loss = SigmoidLoss()
        expected = 0.0
        for i in range(6):
            for j in range(6):
                logit = 10 * (inputs["image"][i] @ inputs["text"][j]).item() - 10
                expected += math.log1p(math.exp(-logit if i == j else logit)) / 6
        assert loss(**inputs, logit_scale=10.0).total.item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize(
        ("bias", "order", "scale", "expected"),
        [
            (-10, [1, 2, 3, 0], 0.0, math.log1p(math.exp(10)) + 3 * math.log1p(math.exp(-10))),
            (-50, [0, 1, 2, 3], 100.0, 0.0),
            (-1e4, [0, 1, 2, 3], 1e3, 1e4 - 1e3),
            (1e4, [0, 1, 2, 3], 1e3, 3 * 1e4),
        ],
        ids=["at the start only the pairs count", "perfect pairs cost nothing", "no overflow", "no vanishing"],
    )
    def test_closed_forms(self, bias, order, scale, expected):
        loss = SigmoidLossSpec(initial_logit_bias=bias).build()
        total = loss(image=EYE, text=EYE[order], logit_scale=scale).total
        assert total.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_two_captions_are_summed(self):
        inputs = random_batch(SigmoidLossSpec(), 5, syn=False)
        one = SigmoidLoss()(**inputs, logit_scale=9.0).total
        two = SigmoidLoss()(**inputs, syn_text=inputs["text"], logit_scale=9.0).total
        assert two.item() == pytest.approx(2 * one.item(), rel=1e-12)

    def test_the_bias_is_learnt_and_saved(self):
        loss = SigmoidLoss()
        assert dict(loss.state_dict()) == {"logit_bias": torch.tensor(-10.0)}
        optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
        inputs = random_batch(SigmoidLossSpec(), 8)
        before = loss(**inputs, logit_scale=1.0).total
        before.backward()
        assert loss.logit_bias.grad.item() < 0  # nothing matches yet, so that it has to rise
        optimizer.step()
        assert loss(**inputs, logit_scale=1.0).total < before


def build(**choices) -> ReinforcedLoss:
    defaults = {"teacher_dims": (5,), "teacher_logit_scales": (9.0,), "initial_logit_bias": -3.0}
    return ReinforcedSigmoidLossSpec(**(defaults | choices)).build()


class TestReinforcedSigmoid:
    @pytest.mark.parametrize("bias", [-3.0, None])
    def test_a_student_equal_to_its_only_teacher_has_nothing_to_learn(self, bias):
        """Of sigmoids, whose bias both have, and of softmaxes."""
        inputs = random_batch(SigmoidLossSpec(), 7)
        teachers = {f"teacher_{name}": inputs[name].detach() for name in STUDENT}
        loss = build(teacher_logit_biases=(bias,) if bias else None, initial_logit_bias=bias)
        terms = loss(**inputs, **teachers, logit_scale=9.0)
        assert terms.distillation.item() == pytest.approx(0, abs=1e-12)
        terms.total.backward()
        assert all(inputs[name].grad.abs().max() < 1e-12 for name in STUDENT)
        assert all(abs(bias.grad.item()) < 1e-6 for bias in loss.parameters())

    @pytest.mark.parametrize("name", ["reinforced", "reinforced_sigmoid"])
    def test_divergence_is_never_negative(self, name):
        spec = SPECS[name]
        for seed in range(20):
            inputs = random_batch(spec, 5, seed=seed)
            assert spec.build()(**inputs, logit_scale=5.0).distillation.item() > 0

    def test_a_sure_teacher_turns_distillation_into_the_sigmoid_loss(self):
        inputs = random_batch(SigmoidLossSpec(), 4, syn=False) | {"teacher_image": EYE, "teacher_text": EYE}
        biased = {"teacher_logit_biases": (-5e3,)}
        for choices in (biased, {}, biased | {"sigmoid_distillation": "release"}):
            loss = build(teacher_dims=(4,), teacher_logit_scales=(1e4,), contrastive_weight=1.0, **choices)
            terms = loss(**inputs, logit_scale=10.0)
            assert terms.distillation.item() == pytest.approx(terms.contrastive.item(), rel=1e-12)

    def test_a_teacher_without_bias_expects_one_match_per_image(self):
        """Its probabilities are its softmaxes, so the bias that fits them best gives as many matches."""
        inputs = random_batch(SigmoidLossSpec(), 6, syn=False)
        alike = F.normalize(torch.ones(6, 5, dtype=torch.float64), dim=1)
        teachers = {"teacher_image": alike, "teacher_text": alike}
        loss = build(initial_logit_bias=-math.log(5))
        terms = loss(**inputs, **teachers, logit_scale=0.0)
        assert torch.sigmoid(loss.logit_bias).item() == pytest.approx(1 / 6)
        assert terms.distillation.item() == pytest.approx(0, abs=1e-12)

    def test_large_logits_stay_finite(self):
        inputs = {"image": EYE, "text": EYE[[1, 2, 3, 0]], "teacher_image": EYE, "teacher_text": EYE}
        loss = build(teacher_dims=(4,), teacher_logit_scales=(1e6,))
        assert loss(**inputs, logit_scale=1e3).distillation.item() == pytest.approx(3 + 1e3 - 3, rel=0.01)


class TestRelease:
    """The released distillation: `-logsigmoid((2 p - 1) * logits)`, with `p` the mean of the teachers' sigmoids."""

    def test_pair_by_pair(self):
        spec = ReinforcedSigmoidLossSpec(teacher_dims=(3, 4))
        inputs = random_batch(spec, 5, syn=False)
        teachers = {"teacher_dims": (3, 4), "teacher_logit_scales": (20, 10), "teacher_logit_biases": (0, -4)}
        found = build(**teachers, sigmoid_distillation="release")(**inputs, logit_scale=9.0)
        expected = 0.0
        for i in range(5):
            for j in range(5):
                p = 0.0
                for part, scale, bias in ((slice(0, 3), 20, 0), (slice(3, 7), 10, -4)):
                    one, other = (F.normalize(inputs[f"teacher_{name}"][:, part], dim=1) for name in STUDENT[:2])
                    p += torch.sigmoid(scale * one[i] @ other[j] + bias).item() / 2
                logit = 9 * (inputs["image"][i] @ inputs["text"][j]).item() - 3
                expected += math.log1p(math.exp(-(2 * p - 1) * logit)) / 5
        assert found.distillation.item() == pytest.approx(expected, rel=1e-12)

    def test_an_unsure_teacher_teaches_nothing(self):
        """Where the divergence has its least value at the teacher's own probability."""
        inputs = random_batch(SigmoidLossSpec(), 4, syn=False)
        one, other = torch.eye(8, dtype=torch.float64).chunk(2)
        teachers = {"teacher_image": one, "teacher_text": other}  # all similarities are zero, all p are 1/2
        choices = {"teacher_dims": (8,), "teacher_logit_scales": (100.0,), "teacher_logit_biases": (0.0,)}
        total = build(**choices, sigmoid_distillation="release")(**inputs, **teachers, logit_scale=9.0).total
        assert total.item() == pytest.approx(4 * math.log(2), rel=1e-12)
        total.backward()
        assert inputs["image"].grad.abs().max() < 1e-12
        build(**choices, sigmoid_distillation="divergence")(**inputs, **teachers, logit_scale=9.0).total.backward()
        assert inputs["image"].grad.abs().max() > 0.1


@pytest.mark.parametrize("name", ["contrastive", "reinforced", "sigmoid", "reinforced_sigmoid"])
def test_built_from_its_name(name):
    assert ReinforcedSigmoidLoss().spec == ReinforcedSigmoidLossSpec()
    spec = from_json(f'{{"kind": "{name}"}}', LossSpec)
    assert spec.needs_teachers == name.startswith("reinforced")
    assert spec.build().spec == spec
    choices = {} if not spec.needs_teachers else {"teacher_dims": (3, 4)}
    inputs = random_batch(spec, 4)
    total = losses.resolve(name)(**choices).build()(**inputs, logit_scale=10.0).total
    assert math.isfinite(total.item())


# As they were written before one spec had the choices of all.
TEACHER = '"teacher_dims": [8], "teacher_logit_scales": [70.0]'
READ = {"teacher_dims": (8,), "teacher_logit_scales": (70,)}
WRITTEN = {
    '{"kind": "contrastive"}': ContrastiveLossSpec(),
    f'{{"kind": "reinforced", {TEACHER}, "distill_weight": 0.75, "contrastive_weight": 0.25}}': ReinforcedLossSpec(
        **READ, distill_weight=0.75, contrastive_weight=0.25
    ),
    '{"kind": "sigmoid", "initial_logit_bias": -5.0}': SigmoidLossSpec(initial_logit_bias=-5),
    f'{{"kind": "reinforced_sigmoid", {TEACHER}, "distill_weight": 1.0, "contrastive_weight": 0.0, '
    '"teacher_logit_biases": [-9.0], "initial_logit_bias": -4.0}': ReinforcedSigmoidLossSpec(
        **READ, teacher_logit_biases=(-9,), initial_logit_bias=-4
    ),
}


@pytest.mark.parametrize(("text", "spec"), WRITTEN.items())
def test_what_was_written_before_is_read(text, spec):
    assert from_json(text, LossSpec) == spec
    assert from_json(to_json(spec, unstructure_as=LossSpec), LossSpec) == spec


@pytest.mark.parametrize("cls", [ReinforcedLossSpec, ReinforcedSigmoidLossSpec])
def test_teachers_are_needed_for_distillation_alone(cls):
    spec = cls(contrastive_weight=1.0, distill_weight=0.0)
    assert not spec.needs_teachers
    inputs = random_batch(SigmoidLossSpec(), 4)
    terms = spec.build()(**inputs, logit_scale=10.0)
    assert terms.distillation.item() == 0
    teacher = torch.ones(4, 7)
    for unused in ({"teacher_image": torch.ones(1), "teacher_text": None}, {"teacher_text": teacher}):
        assert spec.build()(**inputs, logit_scale=10.0, **unused).total.item() == terms.total.item()
    for given, missing in (({}, "teacher_image"), ({"teacher_image": torch.ones(4, 1536)}, "teacher_text")):
        with fails(ValueError, missing):
            cls().build()(image=inputs["image"], text=inputs["text"], logit_scale=10.0, **given)


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"teacher_logit_biases": (-10.0,)}, ("2", "teacher_logit_biases", "1", "per")),
        ({"teacher_logit_biases": (-10.0, float("nan"))}, ("teacher_logit_biases",)),
        ({"initial_logit_bias": None, "teacher_logit_biases": (-1, None)}, ()),
        ({"initial_logit_bias": None, "sigmoid_distillation": "release"}, ()),
        ({"sigmoid_distillation": "soft"}, ("sigmoid_distillation",)),
        ({"backend": "fast"}, ("backend",)),
        ({"initial_logit_bias": float("inf")}, ("initial_logit_bias",)),
    ],
)
def test_bad_choices_are_refused(choices, named):
    with fails(ValueError, *named):
        ReinforcedSigmoidLossSpec(**choices)
    with fails(ValueError, "initial_logit_bias", "nan"):
        SigmoidLossSpec(initial_logit_bias=float("nan"))
