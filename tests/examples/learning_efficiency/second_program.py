"""The study's headline once more from its lines: `python -m tests.examples.learning_efficiency.second_program`.

It shares no code with the study. The noise of seeds and pictures is drawn from normal distributions, not from the seeds
and counts themselves. Curves are inverted by bisection.
"""

import json
import math
import random
import sys
from pathlib import Path

LINES = Path(__file__).parents[3] / "docs" / "learning_efficiency.jsonl"
DRAWS = 2000


def scores(lines, variant, share, pictures="test_pictures", metric="top5"):
    """Return the scores of every seed by steps, as fractions of one, and how many pictures they are of."""
    found, number = {}, None
    for text in lines:
        line = json.loads(text)
        cell = line["cell"]
        one = line["scores"][pictures]
        if one.get("hits"):
            number = one["hits"]["num_pictures"]
        if (cell["variant"], cell["share"], cell.get("learning_rate")) == (variant, share, None):
            found.setdefault(cell["budget"], []).append(one[metric] / 100)
    return dict(sorted(found.items())), number


def height(points, log_steps):
    """Return the score of a curve at a logarithm of steps."""
    (x0, y0), *rest = points
    for x1, y1 in rest:
        if log_steps <= x1:
            return y0 + (y1 - y0) * (log_steps - x0) / (x1 - x0)
        x0, y0 = x1, y1
    return y0


def fewer(baseline, other, steps):
    """Return how many times fewer steps the other curve needs for the baseline's score; None outside of its budgets."""
    wanted = baseline[steps]
    points = [(math.log(at), score) for at, score in other.items()]
    above = next((index for index, (_, score) in enumerate(points) if score >= wanted), None)
    if not above:
        return math.inf if above == 0 else 0.0
    low, high = points[above - 1][0], points[above][0]
    for _ in range(50):
        middle = (low + high) / 2
        if height(points, middle) < wanted:
            low = middle
        else:
            high = middle
    return steps / math.exp(high)


def noisy(seeds_by_steps, pictures, draw):
    """Return means as they might have been: of other seeds, and of other pictures."""
    drawn, variance = {}, 0.0
    for steps, seeds in seeds_by_steps.items():
        mean = sum(seeds) / len(seeds)
        if len(seeds) > 1:
            variance = sum((one - mean) ** 2 for one in seeds) / (len(seeds) - 1)
        of_pictures = mean * (1 - mean) / pictures if pictures else 0.0
        drawn[steps] = draw.gauss(mean, math.sqrt(variance / len(seeds) + of_pictures))
    return drawn


def headline(lines, baseline, other, share, steps):
    """Return how many times fewer steps, and the ends of the 90 % interval."""
    (one, pictures), (two, _) = (scores(lines, name, share) for name in (baseline, other))
    value = fewer(*({at: sum(seeds) / len(seeds) for at, seeds in curve.items()} for curve in (one, two)), steps)
    draw = random.Random(1)
    values = sorted(fewer(noisy(one, pictures, draw), noisy(two, pictures, draw), steps) for _ in range(DRAWS))
    return value, values[round(0.05 * DRAWS)], values[round(0.95 * DRAWS)]


ASKED = [
    ("captions", "distillation", 1.0, 1600),
    ("captions", "distillation", 1.0, 6400),
    ("captions", "distillation", 1.0, 25600),
    ("captions", "distillation", 0.1, 6400),
    ("plain", "distillation", 1.0, 25600),
]

if __name__ == "__main__":
    text = LINES.read_text(encoding="utf-8").splitlines()
    for asked in ASKED:
        sys.stdout.write("{} -> {}, share {}, {} steps: ".format(*asked))
        sys.stdout.write("{:.2f} ({:.2f} to {:.2f})\n".format(*headline(text, *asked)))
