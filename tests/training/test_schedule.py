import math

import pytest
from hypothesis import given, strategies as st

from mobileclip.training import ConstantCosineSchedule, CosineSchedule
from tests.errors import fails


def test_closed_form():
    schedule = CosineSchedule(peak=1.0, final=0.1, warmup_steps=4, total_steps=12)
    assert [schedule.learning_rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    later = [1.0, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1, 0.1]
    assert [schedule.learning_rate(step) for step in (4, 6, 8, 12, 500)] == pytest.approx(later)
    assert CosineSchedule(peak=0.5, final=0.0, warmup_steps=0, total_steps=10).learning_rate(0) == 0.5


@given(st.integers(0, 50), st.integers(1, 200), st.integers(0, 300))
def test_it_rises_then_falls_between_its_bounds(warmup, more, step):
    schedule = CosineSchedule(peak=2e-3, final=1e-5, warmup_steps=warmup, total_steps=warmup + more)
    now, then = schedule.learning_rate(step), schedule.learning_rate(step + 1)
    assert 0 < now <= 2e-3
    assert then > now if step + 1 < warmup else then <= now or step + 1 == warmup


def test_mistakes_are_named():
    for schedule, named, choices in (
        (CosineSchedule, "warmup_steps", {"warmup_steps": 10, "total_steps": 10}),
        (CosineSchedule, "peak", {"peak": 1e-4, "final": 1e-3, "warmup_steps": 0, "total_steps": 10}),
        (ConstantCosineSchedule, "constant_steps", {"warmup_steps": 4, "constant_steps": 3, "total_steps": 20}),
        (ConstantCosineSchedule, "constant_steps", {"warmup_steps": 4, "constant_steps": 20, "total_steps": 20}),
    ):
        with fails(ValueError, named):
            schedule(**choices)


def test_long_training_stays_at_the_peak_then_falls():
    schedule = ConstantCosineSchedule(peak=1.0, final=0.1, warmup_steps=4, constant_steps=12, total_steps=20)
    rates = [schedule.learning_rate(step) for step in (0, 3, 4, 11, 12, 16, 20)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 1.0, 1.0, 0.55, 0.1])
    longer = ConstantCosineSchedule(peak=1.0, final=0.1, warmup_steps=4, constant_steps=40, total_steps=50)
    assert [longer.learning_rate(step) for step in range(12)] == [schedule.learning_rate(step) for step in range(12)]


@pytest.mark.parametrize("total_steps", [1, 2, 9, 50, 1999, 2001, 19_999])
def test_any_length_alone_makes_a_schedule(total_steps):
    for schedule in (CosineSchedule(total_steps=total_steps), ConstantCosineSchedule(total_steps=total_steps)):
        assert schedule.warmup_steps <= total_steps / 10
        assert all(schedule.learning_rate(step) <= schedule.peak for step in (0, total_steps // 2, total_steps))
    assert CosineSchedule(total_steps=200_000).warmup_steps == 2_000
    assert ConstantCosineSchedule(total_steps=100, constant_steps=3).warmup_steps == 3
    assert CosineSchedule(total_steps=10, peak=1e-9).final == 1e-9


def test_a_schedule_may_have_nothing_to_fall_and_no_constant_part():
    assert CosineSchedule(peak=0.5, final=0.5, warmup_steps=0, total_steps=3).learning_rate(2) == 0.5
    numbers = {"peak": 1.0, "final": 0.1, "warmup_steps": 4, "total_steps": 12}
    short, plain = ConstantCosineSchedule(**numbers, constant_steps=4), CosineSchedule(**numbers)
    assert all(short.learning_rate(step) == plain.learning_rate(step) for step in range(14))
