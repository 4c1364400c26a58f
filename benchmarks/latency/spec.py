"""What is compared, and the cases that make it up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import attrs
from attrs import validators

from benchmarks.latency.exported import Runtime
from benchmarks.latency.ways import Case
from benchmarks.rivals import PUBLISHED, Size, Tower
from mobileclip.hardware.precision import FastPrecision


@attrs.frozen(kw_only=True)
class LatencyBenchSpec:
    """What to compare, and how often.

    Args:
        models: which models.
        towers: which of their towers.
        batch_sizes: images or texts per call.
        precision: in which precisions mobileclip is optimised; int8 where it passes its gates, as the form tells.
        compiled: whether the release's way (by torch.compile as it comes) and
            mobileclip's are compiled as well.
        runtimes: which both sides are exported to; none for none.
        rounds: turns of each side with one image or text; with more, a third as many.
        threads: threads that PyTorch computes with; None for its own choice.
        output: folder of the results.
        seed: of the weights and the inputs.
        tiny: one model, one image and one text at a time, nothing compiled: whether it runs at all.
    """

    models: tuple[Size, ...] = ("s0", "s1", "s2", "b")
    towers: tuple[Tower, ...] = ("image", "text")
    batch_sizes: tuple[int, ...] = attrs.field(default=(1, 32), validator=validators.deep_iterable(validators.gt(0)))
    precision: tuple[FastPrecision, ...] = ("float32", "bfloat16")
    compiled: bool = True
    runtimes: tuple[Runtime, ...] = ("onnxruntime", "openvino", "openvino_bf16")
    rounds: int = attrs.field(default=15, validator=validators.gt(1))
    threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    output: Path = Path("outputs/bench_latency")
    seed: int = 0
    tiny: bool = False


def cases(spec: LatencyBenchSpec) -> Iterator[Case]:
    """Yield all that is compared, model by model; short captions for causal text towers, which read no further."""
    for model in spec.models:
        causal = getattr(PUBLISHED[model].spec().text, "causal", False)
        kinds: list[Literal["", "random", "short"]] = ["", "random", "short"] if causal else ["", "random"]
        for texts in kinds:
            if ("text" if texts else "image") not in spec.towers:
                continue
            for batch_size in spec.batch_sizes:
                yield Case(model=model, tower="text" if texts else "image", texts=texts, batch_size=batch_size)
