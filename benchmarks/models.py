"""Folded towers against timm's and open_clip's own reparameterised ones: same weights, same inputs, one run.

Command:   python -m benchmarks.models            (needs the extra `test`)
Hardware:  any CPU; close what else computes, or the spread in the last columns says how far to trust the medians
Time:      about two minutes at batch 1 on two cores; `--batch-sizes 32` is about thirty times as much
Result:    a table: milliseconds, the ratio mobileclip / reference (below 1: mobileclip is faster), and the
           quartiles of the ratios

mobileclip's weights are written in open_clip's layout and loaded, strictly, by open_clip and timm, which then fold what
they fold. Both sides have to give equal embeddings before they are timed. Calls alternate (mobileclip, reference,
reference, mobileclip, ...), so that a machine that slows down for a while slows both down.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from benchmarks.command_line import empty_table, main
from benchmarks.rivals import PUBLISHED, Rival, Size, Tower, example, randomize, require_rivals, rivals
from mobileclip.progress import track
from mobileclip.reparam import reparameterize
from mobileclip.terminal import print_table

LARGEST_ERROR = 2e-5


@attrs.frozen(kw_only=True)
class ModelBenchSpec:
    """What to compare, and how often.

    Args:
        models: which models.
        towers: which of their towers. timm has no text towers.
        against: whose models to compare with.
        batch_sizes: images or texts per call.
        rounds: timed calls of each side, after one to warm up.
        threads: threads that PyTorch computes with; None for its own choice.
        channels_last: run both sides' image towers with channels innermost in memory.
        seed: of the weights and the inputs.
    """

    models: tuple[Size, ...] = ("s0", "s1", "s2", "b")
    towers: tuple[Tower, ...] = ("image", "text")
    against: tuple[Rival, ...] = ("timm", "open_clip")
    batch_sizes: tuple[int, ...] = attrs.field(default=(1,), validator=validators.deep_iterable(validators.gt(0)))
    rounds: int = attrs.field(default=20, validator=validators.gt(1))
    threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    channels_last: bool = False
    seed: int = 0


@attrs.frozen
class Comparison:
    """What one pair of models took.

    Args:
        mobileclip: median of its calls, in milliseconds.
        reference: median of the other's calls, in milliseconds.
        ratio: the first over the second.
        ratio_quartiles: the quartiles of the ratios of neighbouring calls.
        error: norm of the embeddings' difference over the norm of the reference's.
    """

    mobileclip: float
    reference: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    error: float


@torch.inference_mode()
def compare(model: nn.Module, reference: nn.Module, inputs: Tensor, *, rounds: int) -> Comparison:
    """Return how long both models take for `inputs`, called in turn.

    Raises:
        ValueError: if their outputs differ by more than rounding: then the times mean nothing.
    """
    expected = reference(inputs)
    error = float((model(inputs) - expected).norm() / expected.norm())
    if not error < LARGEST_ERROR:
        raise ValueError(f"the outputs differ by {error:.1e} of their norm, which is no rounding error")
    times: dict[nn.Module, list[float]] = {model: [], reference: []}
    for index in range(rounds):
        for called in (model, reference) if index % 2 == 0 else (reference, model):
            start = time.perf_counter()
            called(inputs)
            times[called].append(1e3 * (time.perf_counter() - start))
    medians = [statistics.median(times[one]) for one in (model, reference)]
    low, _, high = statistics.quantiles([a / b for a, b in zip(times[model], times[reference], strict=True)], n=4)
    return Comparison(medians[0], medians[1], medians[0] / medians[1], (low, high), error)


def measure(spec: ModelBenchSpec) -> Iterator[tuple[Size, Tower, Rival, int, Comparison]]:
    """Yield the comparison of every tower with every rival at every batch size."""
    require_rivals()
    for size in spec.models:
        torch.manual_seed(spec.seed)
        published = PUBLISHED[size]
        whole = published.spec().build().eval()
        randomize(whole)
        folded = reparameterize(whole)
        for rival, tower, reference in rivals(published, whole, spec.against):
            if tower not in spec.towers:
                continue
            mine = folded.image_encoder if tower == "image" else folded.text_encoder
            if tower == "image" and spec.channels_last:
                for model in (mine, reference):
                    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for batch_size in spec.batch_sizes:
                inputs = example(whole.spec, tower, batch_size=batch_size, channels_last=spec.channels_last)
                yield size, tower, rival, batch_size, compare(mine, reference, inputs, rounds=spec.rounds)


def run(spec: ModelBenchSpec) -> None:
    """Compare, with a bar for how far it is, and print the table."""
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that it built a model without pretrained weights
    title = f"Folded towers, float32, CPU threads: {torch.get_num_threads()}, PyTorch {torch.__version__}"
    columns = ("tower", "against", "batch", "mobileclip ms", "reference ms", "ratio", "quartiles", "error")
    table = empty_table(columns, texts=("tower", "against"), title=title)
    per_rival = {"timm": {"image"}, "open_clip": {"image", "text"}}
    pairs = sum(len(per_rival[rival] & set(spec.towers)) for rival in spec.against)
    total = len(spec.models) * pairs * len(spec.batch_sizes)
    for size, tower, rival, batch_size, result in track(measure(spec), total=total, title="comparing", unit="pairs"):
        low, high = result.ratio_quartiles
        times = (f"{value:.1f}" for value in (result.mobileclip, result.reference))
        ratios = (f"{result.ratio:.2f}", f"{low:.2f}-{high:.2f}")
        table.add_row(f"{size} {tower}", rival, str(batch_size), *times, *ratios, f"{result.error:.0e}")
    print_table(table, min_width=80)


if __name__ == "__main__":
    main(ModelBenchSpec, run, __doc__)
