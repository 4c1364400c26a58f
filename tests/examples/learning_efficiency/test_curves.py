"""What a budget is worth in plain steps."""

import math

import numpy as np
import pytest

from examples.learning_efficiency.curves import (
    Curve,
    describe,
    difference,
    equivalents,
    half_widths,
    make_curve,
    speedup,
    speedup_limits,
    steps_to_reach,
)

STEPS = np.array([100.0, 200.0, 400.0, 800.0])


def curve(*means, spread=0.0, num_seeds=5):
    offsets = spread * np.linspace(-1, 1, num_seeds)
    return Curve(steps=STEPS[: len(means)], scores=tuple(mean + offsets for mean in means))


class TestCurves:
    @pytest.mark.parametrize(
        ("score", "steps"),
        [(2.0, 200.0), (3.0, 200 * 2**0.5), (4.0, 400.0), (0.5, 0.0), (1.0, 0.0), (8.1, math.inf), (8.0, 800.0)],
    )
    def test_steps_between_budgets_follow_the_logarithm(self, score, steps):
        assert steps_to_reach(score, STEPS, np.array([1.0, 2.0, 4.0, 8.0])) == pytest.approx(steps)

    def test_a_score_that_was_reached_once_and_lost_again_counts_from_the_first_time(self):
        assert steps_to_reach(3.0, STEPS, np.array([1.0, 3.0, 2.0, 3.0])) == 200.0

    def test_a_variant_that_is_as_good_in_half_the_steps_is_worth_twice_its_budget(self):
        plain, other = curve(1, 2, 3, 4, spread=0.01), curve(2, 3, 4, 5, spread=0.01)
        worth = equivalents(plain, other)
        assert [one.value for one in worth] == pytest.approx([200, 400, 800, math.inf])
        assert all(one.low <= one.value <= one.high for one in worth)
        assert speedup(plain, other).value == pytest.approx(2)

    def test_no_more_is_claimed_than_the_budgets_can_show(self):
        plain, other = curve(1, 2, 3, 4), curve(9, 10)
        assert speedup(plain, other).value == math.inf
        assert describe(speedup(plain, other), limits=speedup_limits(plain, other), digits=1) == "> 8.0"
        assert speedup(other, plain).value == 0
        assert describe(equivalents(other, plain)[0], limits=(100, 200)) == "< 100"

    def test_limits_are_what_the_best_score_of_the_baseline_took(self):
        # It needs 800 steps, and 400 of the other way are not enough, so that these are less than twice as few.
        plain, short = curve(1, 2, 3, 4), curve(1, 2, 3)
        assert describe(speedup(plain, short), limits=speedup_limits(plain, short), digits=1) == "< 2.0"
        # Its best score came with 200 steps already.
        peak, better = curve(1, 5, 4, 3), curve(6, 7)
        assert describe(speedup(peak, better), limits=speedup_limits(peak, better), digits=1) == "> 2.0"

    def test_a_spread_as_large_as_the_difference_makes_a_wide_interval(self):
        narrow, wide = (
            equivalents(curve(1, 2, 3, 4, spread=spread), curve(1.5, 2.5, 3.5, spread=spread))[1]
            for spread in (0.05, 1.5)
        )
        assert narrow.value == wide.value
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
        assert describe(narrow, limits=(100, 800)).count("to") == 1

    def test_every_finished_training_is_in_a_point_of_its_curve(self):
        scores = {(budget, seed): float(budget + seed) for budget in (10, 20, 40) for seed in range(3)}
        del scores[40, 0], scores[40, 1]
        made = make_curve(dict(reversed(scores.items())))
        assert made.steps.tolist() == [10, 20, 40]
        assert [one.tolist() for one in made.scores] == [[10, 11, 12], [20, 21, 22], [42]]
        assert make_curve({(10, 0): 1.0, (10, 1): 2.0}) is None

    def test_one_seed_has_no_spread(self):
        assert np.isnan(curve(1, 2, num_seeds=1).deviation).all()
        assert curve(1, 2, spread=1.0).deviation == pytest.approx([0.7906, 0.7906], abs=1e-4)

    def test_a_single_training_is_as_uncertain_as_one_of_the_next_shorter_budget(self):
        whole, other = curve(1, 2, 4, spread=0.5), curve(3, 3.1)
        single = Curve(steps=whole.steps, scores=(*whole.scores[:2], np.array([4.0])))
        of_whole, of_single = (equivalents(one, other)[0] for one in (whole, single))
        assert of_whole.value == of_single.value
        assert of_single.high - of_single.low > of_whole.high - of_whole.low > 0
        assert equivalents(curve(1, 2, 4, num_seeds=1), other)[0].low == of_single.value

    def test_a_speedup_is_told_for_each_budget(self):
        plain, other = curve(1, 2, 3, 4), curve(2, 3, 4, 5)
        found = [
            describe(speedup(plain, other, budget=at), limits=speedup_limits(plain, other, budget=at), digits=1)
            for at in range(4)
        ]
        assert found == ["> 1.0", "> 2.0", "2.0", "2.0"]


class TestPictures:
    """The held-out pictures are a sample, too: of other pictures, scores would be others."""

    NUM = 400

    def counted(self, *chances, seed=0, kept=True):
        """A curve of three trainings a budget; which pictures are named depends on how hard each is."""
        hard = np.random.default_rng(9).random(self.NUM)
        rng = np.random.default_rng(seed)
        hits = tuple(np.stack([hard + rng.normal(0, 0.02, self.NUM) < chance for _ in range(3)]) for chance in chances)
        scores = {(10 * 2**at, seed): 100 * one[seed].mean() for at, one in enumerate(hits) for seed in range(3)}
        bits = {(10 * 2**at, seed): one[seed] for at, one in enumerate(hits) for seed in range(3)}
        return make_curve(scores, bits if kept else None, num_pictures=self.NUM)

    def test_scores_alone_have_the_noise_of_a_count(self):
        for width, chance in zip(half_widths(self.counted(0.2, 0.5, kept=False)), (0.2, 0.5), strict=True):
            noise = 1.645 * 100 * math.sqrt(chance * (1 - chance) / self.NUM)
            assert width == pytest.approx(noise, rel=0.2)

    def test_ways_that_name_the_same_pictures_are_told_apart_more_sharply(self):
        """Both know the easy ones: what is left of the pictures' noise is that of the few between."""
        together, alone = (
            difference(self.counted(0.2, 0.4, kept=kept), self.counted(0.2, 0.45, seed=1, kept=kept), steps=20)
            for kept in (True, False)
        )
        assert together.value == pytest.approx(alone.value)
        assert 0 < together.low < together.value < together.high
        assert together.high - together.low < 0.6 * (alone.high - alone.low)
        assert alone.low < 0

    def test_a_line_without_hits_leaves_a_curve_with_its_scores_alone(self):
        scores = {(budget, seed): 5.0 for budget in (10, 20) for seed in range(2)}
        bits = {at: np.ones(4, dtype=bool) for at in scores if at != (20, 1)}
        assert make_curve(scores, bits, num_pictures=4).hits == ()
        assert len(make_curve(scores, bits | {(20, 1): bits[10, 0]}, num_pictures=4).hits) == 2

    def test_three_seeds_differ_as_three_of_many_do(self):
        """Drawn from three, means of three would have two thirds of the variance."""
        scores = {(budget, seed): float(value) for budget in (10, 20) for seed, value in enumerate((-1, 0, 1))}
        width = half_widths(make_curve(scores))[0]
        # The greatest and the least mean, each drawn in 1 of 27, lie outside of the 90 %.
        assert width == pytest.approx(math.sqrt(1.5) * 2 / 3, rel=1e-6)
