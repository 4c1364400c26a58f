"""The report of an optimization, as a person reads it."""

import json

import pytest

from mobileclip.inference import Form, OptimizationReport, TowerReport, Trial

EAGER, HALF = (Form(engine="eager", precision=precision, max_batch_size=4) for precision in ("fp32", "bf16"))
TIMED = Trial(form=EAGER, milliseconds=12.34, speed_up=1.5, cosine=0.9999994, error=2e-7)
REFUSED = Trial(form=HALF, cosine=0.9, error=0.25, refused="the cosine is below 0.9995")


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (TIMED, ["    12.3 ms, 1.50 times as fast", "cosine 0.999999, error 2.0e-07"]),
        (REFUSED, ["cosine 0.900000, error 2.5e-01", "not usable: the cosine is below 0.9995"]),
        (Trial(form=EAGER, refused="no compiler"), ["not usable: no compiler"]),
        (Trial(form=EAGER, milliseconds=1.0), []),
        (Trial(form=EAGER, cosine=1.0), []),
    ],
)
def test_a_trial_says_what_is_known_of_it(trial, said):
    assert str(trial).split("; ") == [f"{trial.form!s:28s}", *said]


@pytest.mark.parametrize("used", [TIMED, None])
def test_a_star_stands_before_what_is_used(used):
    tower = TowerReport(tower="image", batch_size=4, plain_milliseconds=18.5, trials=(TIMED, REFUSED), used=used)
    first, *lines = str(tower).splitlines()
    assert first == "image, batch of 4: 18.5 ms originally"
    if used is None:
        assert lines.pop() == "  * none of these is faster; the plain folded tower is used"
    assert lines == [f"  {'*' if used else ' '} {TIMED}", f"    {REFUSED}"]
    report = OptimizationReport(image=tower, text=tower, threads=3, processor="a processor")
    assert str(report) == f"a processor, 3 threads\n{tower}\n{tower}"
    assert json.loads(report.to_json())["text"]["trials"][0]["speed_up"] == 1.5
