"""The page about what was measured, written from the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.gpu.results import Machine, Outcome, Results
from benchmarks.loss import GIB

NOTHING = "Not measured yet."

_HEAD = """# Measured on a GPU

```
make gpu                       # all of it, in less than 25 minutes on one card; a second run does what is missing
make gpu ARGS="--only train"   # some of it
```

It needs Linux, and a Python that has PyTorch with CUDA (`make PYTHON=/path/to/python3 gpu`). That PyTorch stays as it
is. The figures are written to `build/gpu.json`, and this page from them.
"""

_TESTS = """## Tests

The tests that need a CUDA device. Those of xformers and of several cards are skipped where these are not there.
"""
_TRAINING = """## A training step

A model of this library beside open_clip's of the same weights: forward, contrastive loss, backward, AdamW; 128 images
and texts of random numbers, bfloat16, `channels_last`. Compiled is `compile="step"` here, and the model as one there.
Memory is the peak of a step over weights and optimiser's state (`python -m benchmarks.train`).
"""
_LOSS = """## The loss

The reinforced loss forward and backward, tile by tile, and dense, with every matrix held: float32, 512 dims, two
teachers of 768, real and synthetic captions. Memory is the peak over the embeddings (`python -m benchmarks.loss`).
"""
_RATES = """## Teachers and captioner

ViT-L/14 and CoCa ViT-L/14 of random weights, bfloat16, from pixels and captions to embeddings on the CPU
(`python -m benchmarks.cost_reinforce`).
"""
_JOB = """## Reinforcement

A whole job with a ViT-L/14, bfloat16, 10 augmentations and 6 captions a picture, beside the bare forward passes on the
same pictures and captions. What the job takes more is decoding, augmenting and writing, on this machine's processor
(`python -m benchmarks.reinforce`).
"""


def page(results: Results | None) -> str:
    """Return the page in Markdown.

    Args:
        results: what was measured; None where nothing was.
    """
    outcomes: Mapping[str, Outcome] = {} if results is None else results.outcomes
    sections = [
        (_TESTS, "tests", _tests),
        (_TRAINING, "train ", _training),
        (_LOSS, "loss ", _loss),
        (_RATES, "reinforce rates", _rates),
        (_JOB, "reinforce job", _job),
    ]
    parts = [_HEAD, f"{NOTHING if results is None else _where(results.machine)}\n"]
    for text, prefix, table in sections:
        own = {name: outcome for name, outcome in outcomes.items() if name.startswith(prefix)}
        parts += [text, _measured(own, table(own))]
    return "\n".join(parts)


def _where(machine: Machine) -> str:
    note = "\n\nEverything was made so small that the figures mean nothing (`--tiny`)." if machine.tiny else ""
    return f"Measured on: {machine}.{note}"


def _measured(outcomes: Mapping[str, Outcome], table: Sequence[str]) -> str:
    """Return a section's table, and what could not be measured."""
    failures = [f"- {name}: {_plain(outcome.error)}" for name, outcome in outcomes.items() if outcome.error is not None]
    missing = ["", "Without a result:", "", *failures] if failures else []
    lines = [*(table if len(table) > 2 else [NOTHING]), *missing]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return the first sentence of an error, since PyTorch's go on for a paragraph, for Markdown to show as it is."""
    return f"`{text.splitlines()[0].split('. ')[0].replace('`', chr(39))}`"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _tests(outcomes: Mapping[str, Outcome]) -> list[str]:
    found = [one.tests for one in outcomes.values() if one.tests is not None]
    rows = [(str(one.num_passed), str(one.num_skipped), ", ".join(one.failed) or "none") for one in found]
    return _rows(("passed", "skipped", "failed"), rows)


def _training(outcomes: Mapping[str, Outcome]) -> list[str]:
    head = (
        "model",
        "mobileclip, images/s",
        "open_clip, images/s",
        "ratio",
        "quartiles",
        "mobileclip, GiB",
        "open_clip, GiB",
    )
    rows = []
    for name, outcome in outcomes.items():
        if (one := outcome.training) is not None:
            low, high = one.ratio_quartiles
            speeds = (f"{one.mobileclip:,.0f}", f"{one.open_clip:,.0f}", f"{one.ratio:.2f}", f"{low:.2f} to {high:.2f}")
            rows.append((name.removeprefix("train "), *speeds, *(f"{bytes_ / GIB:.2f}" for bytes_ in one.memory)))
    return _rows(head, rows)


def _loss(outcomes: Mapping[str, Outcome]) -> list[str]:
    head = ("batch", "tiles, s", "dense, s", "tiles, GiB", "dense, GiB", "difference of the losses")
    rows = []
    for name, outcome in outcomes.items():
        batch, _, side = name.removeprefix("loss ").partition(" ")
        tiled = outcome.loss
        if side != "tiled" or tiled is None:
            continue
        dense = outcomes.get(f"loss {batch} dense", Outcome()).loss
        seconds, memory = f"{tiled.seconds:.3f}", f"{tiled.bytes / GIB:.2f}"
        if dense is None:
            rows.append((batch, seconds, "", memory, "", ""))
        else:
            error = abs(tiled.value / dense.value - 1)
            of_dense = (f"{dense.seconds:.3f}", f"{dense.bytes / GIB:.2f}")
            rows.append((batch, seconds, of_dense[0], memory, of_dense[1], f"{error:.0e}"))
    return _rows(head, rows)


def _rates(outcomes: Mapping[str, Outcome]) -> list[str]:
    head = ("images/s of a teacher", "captions/s of a teacher", "first captions/s", "further captions/s")
    found = [one.rates for one in outcomes.values() if one.rates is not None]
    seconds = [(one.image, one.text, one.first_caption, one.caption) for one in found]
    # A further caption costs so little that the difference that it is taken from may be noise.
    return _rows(head, [[f"{1 / value:,.1f}" if value > 0 else "not told apart" for value in one] for one in seconds])


def _job(outcomes: Mapping[str, Outcome]) -> list[str]:
    head = ("augmented images/s of the job", "of the bare passes", "time of the job over the bare passes")
    rows = []
    for outcome in outcomes.values():
        if (one := outcome.job) is not None:
            job, bare = (median(getattr(each, name) for each in one.rounds) for name in ("job", "bare"))
            rows.append((f"{one.num_views / job:,.1f}", f"{one.num_views / bare:,.1f}", f"{job / bare:.2f}"))
    return _rows(head, rows)
