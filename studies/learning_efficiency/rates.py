"""A learning rate for each way of training: chosen on the validation drawings, reported on the others."""

from __future__ import annotations

import statistics

from examples.icons.splits import TEST_PICTURES, VALIDATION
from studies.learning_efficiency.spec import EfficiencySpec
from studies.learning_efficiency.tables import Results, by_seed, percent, spread, table
from studies.learning_efficiency.variants import PARTS, VARIANTS


def rate_table(spec: EfficiencySpec, results: Results) -> list[str]:
    """Return top-5 on the validation drawings at each rate, and what the best of them gives on the unseen ones.

    Args:
        spec: the choices.
        results: the trainings that are finished.

    Returns:
        A row for each way that was trained with every rate; nothing where there is none.
    """
    part = PARTS["rates"]
    ((share, (budget,)),) = (
        (spec.shares[share], [spec.budgets[one] for one in of]) for share, of in part.budgets.items()
    )
    rows = []
    for name in part.variants:
        found = {
            rate or spec.learning_rate: by_seed(results, name, share, budget, learning_rate=rate)
            for rate in part.learning_rates
        }
        # The same seeds at every rate, so that none is ahead by its seeds.
        seeds = sorted(set.intersection(*map(set, found.values())))
        if not seeds:
            continue
        scores = {
            rate: {part: [of[seed].scores[part].top5 for seed in seeds] for part in (VALIDATION, TEST_PICTURES)}
            for rate, of in found.items()
        }
        best = max(scores, key=lambda rate: statistics.fmean(scores[rate][VALIDATION]))
        rows.append(
            [
                f"{VARIANTS[name].title}",
                str(len(seeds)),
                *(spread(of[VALIDATION]) for of in scores.values()),
                f"{best:g}",
                spread(scores[best][TEST_PICTURES]),
                spread(scores[spec.learning_rate][TEST_PICTURES]),
            ]
        )
    if not rows:
        return []
    rates = (f"validation at {rate or spec.learning_rate:g}" for rate in part.learning_rates)
    head = [f"top-5, {percent(share)}, {budget:,} steps", "seeds", *rates]
    return table([*head, "chosen", "unseen drawings at it", f"at {spec.learning_rate:g}"], rows)
