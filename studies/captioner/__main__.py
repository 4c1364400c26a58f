"""What a student gains from the captions of a captioner that was trained here.

Command:   python -m studies.captioner    (with the extra `quickstart` installed; --tiny to see that it runs)
Hardware:  CPU cores alone, no GPU; every step of it takes one
Result:    outputs/captioner: lines.jsonl with a line per captioner and per training, report.md with the tables

A small CoCa learns composed captions of some icon sets, and writes captions of other sets' pictures, whose names it was
never told. Students learn these pictures with keywords alone, with composed captions, with the captioner's, and with
both, each with a teacher and without. This prints what came out:
`python -m studies.captioner.report studies/captioner/results.jsonl`.
"""

from __future__ import annotations

from studies.captioner.run import run
from studies.captioner.spec import CaptionerStudySpec


def captioner() -> CaptionerStudySpec:
    """Return the study: everything is a flag of the command line."""
    return CaptionerStudySpec()


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(CaptionerStudySpec, "captioner", __doc__, default=captioner()) as spec:
        run(spec)
