"""Learning efficiency: how many steps of plain training does a step of reinforced training replace?

Command:   python -m studies.learning_efficiency    (with the extra `quickstart` installed; --tiny to see that it runs)
Hardware:  2 CPU cores, about 8 GiB of memory, no GPU
Time:      about twelve hours in total, with an estimate at the start; the same command resumes an interrupted run
Result:    outputs/learning_efficiency: results.jsonl with a line per training, report.md with the tables, and
           curves.png

The study trains small students on the data set of icons: plainly, with synthetic captions, with distillation, with
stronger augmentation and with an ensemble of teachers, added one by one as in the paper's Table 2; with 1, 10 and 100 %
of the images, several numbers of steps and several seeds. Other parts vary the strength of the stored views, and one
setting at a time. README.md has the results.
"""

from __future__ import annotations

from studies.learning_efficiency.run import run
from studies.learning_efficiency.spec import EfficiencySpec


def learning_efficiency() -> EfficiencySpec:
    """Return the settings of the study; all of them are flags of the command line."""
    return EfficiencySpec()


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(EfficiencySpec, "learning_efficiency", __doc__, default=learning_efficiency()) as spec:
        run(spec)
