"""The gain of a student from the captions of a captioner that the study trains.

Command:   python -m studies.captioner    (with the extra `quickstart` installed; --tiny to see that it runs)
Hardware:  CPU cores only, no GPU; each step takes one core
Result:    outputs/captioner: lines.jsonl with a line per captioner and per training, and report.md with the tables

A small CoCa learns template captions of some icon sets, and writes captions for images of other sets without knowing
their names. Students learn these images with keywords alone, with template captions, with the captioner's captions, and
with both, each with a teacher and without. `python -m studies.captioner.report studies/captioner/results.jsonl` prints
the results.
"""

from __future__ import annotations

from studies.captioner.run import run
from studies.captioner.spec import CaptionerStudySpec


def captioner() -> CaptionerStudySpec:
    """Return the settings of the study; all of them are flags of the command line."""
    return CaptionerStudySpec()


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(CaptionerStudySpec, "captioner", __doc__, default=captioner()) as spec:
        run(spec)
