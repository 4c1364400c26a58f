"""Learning efficiency: how many steps of plain training is a step of reinforced training worth?

Command:   python -m studies.learning_efficiency    (with the extra `quickstart` installed; --tiny to see that it runs)
Hardware:  2 CPU cores, about 8 GiB of memory, no GPU
Time:      about twelve hours in all, said beforehand; it may be stopped at any moment and goes on where it was
Result:    outputs/learning_efficiency: results.jsonl with a line per training, report.md with the tables, curves.png

On the data set of icons, small students are trained plainly, with synthetic captions, with distillation, with stronger
augmentation and with an ensemble of teachers, as the paper's Table 2 adds one to the other; with 1, 10 and 100 % of the
pictures, several numbers of steps and several seeds. Other parts vary the strength of the stored views, and one choice
at a time. README.md says what came out.
"""

from __future__ import annotations

from studies.learning_efficiency.run import run
from studies.learning_efficiency.spec import EfficiencySpec


def learning_efficiency() -> EfficiencySpec:
    """Return the study: everything is a flag of the command line."""
    return EfficiencySpec()


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(EfficiencySpec, "learning_efficiency", __doc__, default=learning_efficiency()) as spec:
        run(spec)
