"""How long an image and a text take: the release's way, compiled and exported, and ours, in one run.

Command:   python recipes/bench_latency.py             (needs the extra `test`: pip install 'mobileclip[test]')
           python recipes/bench_latency.py --models s0 --batch-sizes 1 --runtimes      (a first look)
Hardware:  any CPU with a C++ compiler; close what else computes, or the middle halves say how far to trust the medians
Time:      20 minutes for `--batch-sizes 1` on two cores; batches of 32 take longer
Result:    a table: milliseconds, the ratio to the release's way (below 1: faster) by the clock and by the processor's
           time, the middle half of the ratios, the smallest cosine and the largest error against it; the same in
           OUTPUT/latency.jsonl, a line as soon as it is there, and OUTPUT/latency.png, accuracy over latency

All sides hold the same weights and get the same inputs, and take their turns in every round, so that a machine that
slows down for a while slows all of them down; of two calls in a turn, the second counts. The process keeps its memory,
so that no side pays for what others made of the heap. The release's way is open_clip's model (its image tower is
timm's), reparameterised by timm, eager, in float32. Runtimes get its tower as they get ours, exported by the same code;
an export of ours is compared with theirs in the same runtime as well.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import attrs
import torch
from attrs import validators
from bench_models import PUBLISHED, Size, Tower, example, randomize, require_rivals, rivals
from latency import Case, Latency, Runtime, Side, draw_accuracy, keep_memory, sides
from torch import Tensor, nn

from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.evaluation.report.figures import LIGHT, to_png
from mobileclip.inference import Precision, processor
from mobileclip.inference.measuring import largest_error, median_ratio, smallest_cosine, turn
from mobileclip.progress import track

_SHORT_CAPTION = 10
_FEWEST_ROUNDS = 5
# Columns of a line of the table: it is read from files as well.
_WIDTH = 140


@attrs.frozen(kw_only=True)
class LatencyBenchSpec:
    """What to compare, and how often.

    Args:
        models: which models.
        towers: which of their towers.
        batch_sizes: images or texts per call.
        precision: in which precisions ours is optimised.
        compiled: whether the release's way (by torch.compile as it comes) and ours are compiled as well.
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
    precision: tuple[Precision, ...] = ("fp32", "bf16")
    compiled: bool = True
    runtimes: tuple[Runtime, ...] = ("onnxruntime", "openvino", "openvino_bf16")
    rounds: int = attrs.field(default=15, validator=validators.gt(1))
    threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    output: Path = Path("outputs/bench_latency")
    seed: int = 0
    tiny: bool = False


def captions(spec: DualEncoderSpec, *, batch_size: int) -> Tensor:
    """Return random texts of ten ids, start and end included."""
    contract = spec.text.input
    tokens = torch.full((batch_size, contract.context_length), contract.pad_id)
    tokens[:, :_SHORT_CAPTION] = torch.randint(1, contract.start_id, (batch_size, _SHORT_CAPTION))
    tokens[:, 0], tokens[:, _SHORT_CAPTION - 1] = contract.start_id, contract.end_id
    return tokens


@torch.inference_mode()
def compare(case: Case, contestants: list[Side], inputs: Tensor, *, rounds: int) -> Iterator[Latency]:
    """Yield what every side took for `inputs`, called in turn; the first is what the others are compared with."""
    embeddings = [side.encode(inputs).float() for side in contestants]
    wall: list[list[float]] = [[] for _ in contestants]
    cpu = [0.0 for _ in contestants]
    for index in range(rounds):
        order = range(len(contestants)) if index % 2 == 0 else reversed(range(len(contestants)))
        for which in order:
            milliseconds, seconds = turn(partial(contestants[which].encode, inputs))
            wall[which].append(milliseconds)
            cpu[which] += seconds
    by_way = dict(zip((side.way for side in contestants), wall, strict=True))
    for side, embedding, times, seconds in zip(contestants, embeddings, wall, cpu, strict=True):
        ratios = [ours / theirs for ours, theirs in zip(times, wall[0], strict=True)]
        same_runtime = by_way.get(f"release_{side.way}")  # type: ignore[call-overload]  # not all of these are ways
        low, _, high = statistics.quantiles(ratios, n=4)
        yield Latency(
            case=case,
            way=side.way,
            form=side.form,
            milliseconds=statistics.median(times),
            ratio=statistics.median(ratios),
            ratio_quartiles=(low, high),
            cpu_ratio=seconds / cpu[0],
            cosine=smallest_cosine(embedding, embeddings[0]),
            error=largest_error(embedding, embeddings[0]),
            runtime_ratio=None if same_runtime is None else median_ratio(times, same_runtime),
        )


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


def measure(spec: LatencyBenchSpec) -> Iterator[list[Latency]]:
    """Yield the comparison of every case."""
    require_rivals()
    built: tuple[Size, DualEncoder, dict[Tower, nn.Module]] | None = None
    for case in cases(spec):
        if built is None or built[0] != case.model:
            torch.manual_seed(spec.seed)
            published = PUBLISHED[case.model]
            model = published.spec().build().eval()
            randomize(model)
            built = case.model, model, {tower: theirs for _, tower, theirs in rivals(published, model, ("open_clip",))}
        _, ours, theirs = built
        if case.texts == "short":
            inputs = captions(ours.spec, batch_size=case.batch_size)
        else:
            inputs = example(ours.spec, case.tower, batch_size=case.batch_size, channels_last=False)
        rounds = spec.rounds if case.batch_size == 1 else max(min(_FEWEST_ROUNDS, spec.rounds), spec.rounds // 3)
        with TemporaryDirectory() as folder:
            contestants = sides(
                ours,
                theirs[case.tower],
                inputs,
                case.tower,
                precisions=spec.precision,
                compiled=spec.compiled and not spec.tiny,
                runtimes=spec.runtimes,
                rounds=rounds,
                folder=Path(folder),
            )
            yield list(compare(case, list(contestants), inputs, rounds=rounds))


def bench_latency() -> LatencyBenchSpec:
    """Return the comparison: everything is a flag of the command line."""
    return LatencyBenchSpec()


def tiny(spec: LatencyBenchSpec) -> LatencyBenchSpec:
    """Return the comparison of one model, one image and one text at a time, in two rounds."""
    return attrs.evolve(spec, models=("s0",), batch_sizes=(1,), rounds=2)


def run(spec: LatencyBenchSpec) -> None:
    """Compare, with a bar for how far it is, write the results as they come and print the table."""
    from rich.console import Console
    from rich.table import Table

    spec = tiny(spec) if spec.tiny else spec
    keep_memory()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that it built a model without pretrained weights
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    where = f"{machine['processor']}, {machine['threads']} threads, PyTorch {machine['torch']}"
    table = Table(title=where, box=None, padding=(0, 2, 0, 0))
    titles = ("tower", "batch", "way", "ms", "ratio", "middle half", "cpu ratio", "cosine", "error", "runtime", "form")
    for title in titles:
        left = title in ("tower", "way", "form")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    spec.output.mkdir(parents=True, exist_ok=True)
    total, found = len(list(cases(spec))), []
    with (spec.output / "latency.jsonl").open("w", encoding="utf-8") as lines:
        for results in track(measure(spec), total=total, title="comparing", unit="cases"):
            found += results
            for result in results:
                lines.write(json.dumps(machine | attrs.asdict(result)) + "\n")
                lines.flush()
                low, high = result.ratio_quartiles
                measured = (f"{result.milliseconds:.1f}", f"{result.ratio:.2f}", f"{low:.2f}-{high:.2f}")
                exactness = (f"{result.cpu_ratio:.2f}", f"{result.cosine:.6f}", f"{result.error:.0e}")
                named = (str(result.case), str(result.case.batch_size), result.way)
                runtime = "" if result.runtime_ratio is None else f"{result.runtime_ratio:.2f}"
                table.add_row(*named, *measured, *exactness, runtime, result.form)
    picture = draw_accuracy(found, title=where, theme=LIGHT)
    (spec.output / "latency.png").write_bytes(to_png(picture))
    Console(width=max(Console().width, _WIDTH)).print(table)


if __name__ == "__main__":
    import tyro

    assert __doc__ is not None
    what, _, how = __doc__.split("\n\n")
    run(tyro.cli(LatencyBenchSpec, default=bench_latency(), description=f"{what}\n\n{how}"))
