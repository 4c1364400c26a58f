"""Folded towers against timm's and open_clip's own reparameterised ones: same weights, same inputs, one run.

Command:   python -m benchmarks models            (needs the extra `test`)
Hardware:  any CPU; close other programs, or the quartiles of the ratios say how far to trust the medians
Time:      about two minutes at batch 1 on two cores; `--batch-sizes 32` is about thirty times as much
Result:    a table: milliseconds, and the ratio mobileclip / reference (below 1: mobileclip is faster), with quartiles

mobileclip's weights are written in open_clip's layout and loaded, strictly, by open_clip and timm, which then fold what
they fold. Both sides have to give equal embeddings before they are timed, and take turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import ClassVar

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from benchmarks.harness import Bench, Case, Row, Value, clocked, in_turn, ratio, require, spread
from benchmarks.rivals import PUBLISHED, Rival, Size, Tower, example, randomize, rivals
from mobileclip.reparam import reparameterize

LARGEST_ERROR = 2e-5


@attrs.frozen(kw_only=True)
class ModelBenchSpec(Bench):
    """What to compare, and how often.

    Args:
        models: which models.
        towers: which of their towers. timm has no text towers.
        against: whose models to compare with.
        batch_sizes: images or texts per call.
        rounds: timed calls of each side.
        channels_last: run both sides' image towers with channels innermost in memory.
        seed: of the weights and the inputs.
    """

    models: tuple[Size, ...] = ("s0", "s1", "s2", "b")
    towers: tuple[Tower, ...] = ("image", "text")
    against: tuple[Rival, ...] = ("timm", "open_clip")
    batch_sizes: tuple[int, ...] = attrs.field(default=(1,), validator=validators.deep_iterable(validators.gt(0)))
    rounds: int = attrs.field(default=20, validator=validators.gt(1))
    channels_last: bool = False
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {"models": ("s0",), "rounds": 2}
    selects: ClassVar[frozenset[str]] = frozenset(("models", "towers", "against", "batch_sizes"))

    def cases(self) -> Iterator[Case]:
        """Yield each model with each of its rivals."""
        require("timm", "open_clip")
        for size, rival in product(self.models, self.against):
            if "image" in self.towers or rival == "open_clip":
                yield Case(labels={"model": size, "against": rival}, measure=partial(measure, self, size, rival))


def measure(spec: ModelBenchSpec, size: Size, rival: Rival) -> Iterator[Row]:
    """Yield the comparison of every tower with a rival's at every batch size."""
    torch.manual_seed(spec.seed)
    published = PUBLISHED[size]
    whole = published.spec().build().eval()
    randomize(whole)
    folded = reparameterize(whole)
    for _, tower, reference in rivals(published, whole, (rival,)):
        if tower not in spec.towers:
            continue
        mine = folded.image_encoder if tower == "image" else folded.text_encoder
        if tower == "image" and spec.channels_last:
            for model in (mine, reference):
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for batch_size in spec.batch_sizes:
            inputs = example(whole.spec, tower, batch_size=batch_size, channels_last=spec.channels_last)
            case = {"tower": tower, "batch": str(batch_size)}
            yield Row(case=case, values=compare(mine, reference, inputs, rounds=spec.rounds))


@torch.inference_mode()
def compare(model: nn.Module, reference: nn.Module, inputs: Tensor, *, rounds: int) -> dict[str, Value]:
    """Return how long both models take for `inputs`, called in turn.

    Raises:
        ValueError: if their outputs differ by more than rounding: then the times mean nothing.
    """
    expected = reference(inputs)
    error = float((model(inputs) - expected).norm() / expected.norm())
    if not error < LARGEST_ERROR:
        raise ValueError(f"the outputs differ by {error:.1e} of their norm, which is no rounding error")
    sides = {"mobileclip": clocked(partial(model, inputs)), "reference": clocked(partial(reference, inputs))}
    ms = {name: [1e3 * one.wall for one in taken] for name, taken in in_turn(sides, rounds=rounds).items()}
    return {
        **{name: spread(times, "ms") for name, times in ms.items()},
        "ratio": ratio(ms["mobileclip"], ms["reference"]),
        "error": Value(number=error),
    }
