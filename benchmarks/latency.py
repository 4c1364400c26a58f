"""How long an image and a text take: mobileclip and the release, compiled and exported, in one run.

Command:   python -m benchmarks latency --output outputs/latency.json            (needs the extra `test`)
           python -m benchmarks latency --models s0 --batch-sizes 1 --runtimes      (a first look)
Hardware:  any CPU with a C++ compiler; close other programs, or the quartiles say how far to trust the medians
Time:      an hour and a half on two cores; 20 minutes with `--batch-sizes 1`
Result:    a table: milliseconds, the ratio to the release's way (below 1: faster) with its quartiles, by the clock and
           by the processor's time, the smallest cosine and the largest error against it; with --output, a picture
           beside it of accuracy over latency

All sides hold the same weights and get the same inputs, and take their turns in every round, in an order drawn anew; of
two calls in a turn, the second counts. Every case (a tower, a batch size) has a process of its own, which keeps its
memory, so that no side pays for what others made of the heap. Where memory runs out, fewer --runtimes and --no-compiled
take less. The release's way is open_clip's model (its image tower is timm's), reparameterised by timm, eager, in
float32. Runtimes get its tower as they get mobileclip's, exported by the same code; an export of mobileclip is
compared with the release's in the same runtime as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import attrs
import torch
from attrs import validators
from torch import Tensor

from benchmarks.harness import Bench, Case, Results, Row, Value, in_turn, ratio, require, rounds_of, spread
from benchmarks.harness.memory import keep_memory
from benchmarks.latency_exported import Runtime
from benchmarks.latency_plot import draw_accuracy
from benchmarks.latency_ways import Side, sides
from benchmarks.rivals import PUBLISHED, Size, Tower, example, randomize, rivals
from mobileclip.encoders import DualEncoderSpec
from mobileclip.evaluation.report.plots import LIGHT, to_png
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference.comparison.measuring import largest_error, smallest_cosine, turn

_SHORT_CAPTION = 10


@attrs.frozen(kw_only=True)
class LatencyBenchSpec(Bench):
    """What to compare, and how often.

    Args:
        models: which models.
        towers: which of their towers.
        batch_sizes: images or texts per call.
        precision: in which precisions mobileclip is optimised; int8 where it passes its gates, as the form tells.
        compiled: whether the release's way (by torch.compile as it comes) and mobileclip's are compiled as well.
        runtimes: which both sides are exported to; none for none.
        rounds: turns of each side with one image or text; with more, a third as many.
        seed: of the weights and the inputs.
    """

    models: tuple[Size, ...] = ("s0", "s1", "s2", "b")
    towers: tuple[Tower, ...] = ("image", "text")
    batch_sizes: tuple[int, ...] = attrs.field(default=(1, 32), validator=validators.deep_iterable(validators.gt(0)))
    precision: tuple[FastPrecision, ...] = ("float32", "bfloat16")
    compiled: bool = True
    runtimes: tuple[Runtime, ...] = ("onnxruntime", "openvino", "openvino_bf16")
    rounds: int = attrs.field(default=15, validator=validators.gt(1))
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {"models": ("s0",), "batch_sizes": (1,), "rounds": 2, "compiled": False}
    selects: ClassVar[frozenset[str]] = frozenset(("models", "towers", "batch_sizes"))

    def cases(self) -> Iterator[Case]:
        """Yield all inputs, model by model; short captions for causal text towers, which read no further."""
        require("timm", "open_clip")
        for model in self.models:
            causal = getattr(PUBLISHED[model].spec().text, "causal", False)
            kinds = ["image", "random text", *(["short text"] if causal else [])]
            for kind, batch_size in product(kinds, self.batch_sizes):
                if kind.split()[-1] in self.towers:
                    labels = {"model": model, "inputs": kind, "batch": str(batch_size)}
                    yield Case(labels=labels, measure=partial(measure, self, model, kind, batch_size), apart=True)

    def finish(self, results: Results) -> None:
        """Draw accuracy over latency."""
        if self.output is not None:
            picture = draw_accuracy(results.rows, title=str(results.machine), theme=LIGHT)
            self.output.with_suffix(".png").write_bytes(to_png(picture))


def measure(spec: LatencyBenchSpec, size: Size, kind: str, batch_size: int) -> list[Row]:
    """Return what every side took; the process keeps the memory and the seed that this sets."""
    keep_memory()
    torch.manual_seed(spec.seed)
    published = PUBLISHED[size]
    model = published.spec().build().eval()
    randomize(model)
    wanted: Tower = "image" if kind == "image" else "text"
    release = next(module for _, tower, module in rivals(published, model, ("open_clip",)) if tower == wanted)
    if kind == "short text":
        inputs = captions(model.spec, batch_size=batch_size)
    else:
        inputs = example(model.spec, wanted, batch_size=batch_size, channels_last=False)
    rounds = rounds_of(spec.rounds, batch_size=batch_size)
    with TemporaryDirectory() as folder:
        contestants = sides(
            model,
            release,
            inputs,
            wanted,
            precisions=spec.precision,
            compiled=spec.compiled,
            runtimes=spec.runtimes,
            rounds=rounds,
            folder=Path(folder),
        )
        return list(compare(list(contestants), inputs, rounds=rounds))


def captions(spec: DualEncoderSpec, *, batch_size: int) -> Tensor:
    """Return random texts of ten ids, start and end included."""
    contract = spec.text.input
    start = contract.vocab_size - 2
    tokens = torch.full((batch_size, contract.context_length), contract.pad_id)
    tokens[:, :_SHORT_CAPTION] = torch.randint(1, start, (batch_size, _SHORT_CAPTION))
    tokens[:, 0], tokens[:, _SHORT_CAPTION - 1] = start, contract.end_id
    return tokens


@torch.inference_mode()
def compare(contestants: list[Side], inputs: Tensor, *, rounds: int) -> Iterator[Row]:
    """Yield what every side took for `inputs`, called in turn; the first is what the others are compared with."""
    embeddings = [side.encode(inputs).float() for side in contestants]
    turns: dict[str, Callable[[], tuple[float, float]]] = {
        side.way: partial(turn, partial(side.encode, inputs)) for side in contestants
    }
    taken = in_turn(turns, rounds=rounds)
    ms: dict[str, list[float]] = {way: [one for one, _ in several] for way, several in taken.items()}
    cpu = {way: sum(one for _, one in several) for way, several in taken.items()}
    first = contestants[0].way
    for side, embedding in zip(contestants, embeddings, strict=True):
        values = {
            "time": spread(ms[side.way], "ms"),
            "ratio": ratio(ms[side.way], ms[first]),
            "CPU ratio": Value(number=cpu[side.way] / cpu[first]),
            "cosine": Value(number=smallest_cosine(embedding, embeddings[0]), unit="cosine"),
            "error": Value(number=largest_error(embedding, embeddings[0])),
        }
        same_runtime = ms.get(f"release_{side.way}")
        if same_runtime is not None:
            values["ratio in its runtime"] = ratio(ms[side.way], same_runtime)
        yield Row(case={"way": side.way}, values=values, notes={"form": side.form})
