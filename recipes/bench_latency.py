"""How long an image and a text take in Python: the release's way, compiled, and ours, eager and optimised, in one run.

Command:   python recipes/bench_latency.py             (needs the extra `test`: pip install 'mobileclip[test]')
           python recipes/bench_latency.py --models s0 --batch-sizes 1 --precision bf16      (a first look)
Hardware:  any CPU with a C++ compiler; close what else computes, or the middle halves say how far to trust the medians
Time:      about twenty minutes on two cores, half of it for the compiler
Result:    a table: milliseconds, the ratio to the release's way (below 1: faster) by the clock and by the processor's
           time, the middle half of the ratios, the smallest cosine and the largest error against it; the same in
           OUTPUT/latency.jsonl, a line as soon as it is there

All sides hold the same weights and get the same inputs, and take their turns in every round, so that a machine that
slows down for a while slows all of them down. The release's way is open_clip's model (its image tower is timm's),
reparameterised by timm, eager, in float32.
"""

from __future__ import annotations

import copy
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import attrs
import torch
from attrs import validators
from bench_models import PUBLISHED, Size, Tower, example, randomize, require_rivals, rivals
from torch import Tensor, nn

from mobileclip.encoders import DualEncoder, DualEncoderSpec, TextEncoder, encode_to_the_end
from mobileclip.inference import Precision, optimize_tower, processor
from mobileclip.inference.measuring import largest_error, smallest_cosine
from mobileclip.progress import track
from mobileclip.reparam import reparameterize

Way = Literal["release", "release_compiled", "eager", "optimized_fp32", "optimized_bf16"]
Encode = Callable[[Tensor], Tensor]
_SHORT_CAPTION = 10
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
        compile_release: whether the release's way is compiled as well, by torch.compile as it comes.
        rounds: timed calls of each side, after one to warm up.
        threads: threads that PyTorch computes with; None for its own choice.
        output: folder of the results.
        seed: of the weights and the inputs.
        tiny: one model, one image and one text at a time, nothing compiled: whether it runs at all.
    """

    models: tuple[Size, ...] = ("s0", "s1", "s2", "b")
    towers: tuple[Tower, ...] = ("image", "text")
    batch_sizes: tuple[int, ...] = attrs.field(default=(1, 32), validator=validators.deep_iterable(validators.gt(0)))
    precision: tuple[Precision, ...] = ("fp32", "bf16")
    compile_release: bool = True
    rounds: int = attrs.field(default=15, validator=validators.gt(1))
    threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    output: Path = Path("outputs/bench_latency")
    seed: int = 0
    tiny: bool = False


@attrs.frozen(kw_only=True)
class Case:
    """One kind of input.

    Args:
        model: which model.
        tower: which of its towers.
        texts: of random lengths, or short captions; empty for images.
        batch_size: images or texts per call.
    """

    model: Size
    tower: Tower
    texts: Literal["", "random", "short"]
    batch_size: int

    def __str__(self) -> str:
        """Return what the table calls it."""
        return " ".join(filter(None, (self.model, self.texts, self.tower)))


@attrs.frozen(kw_only=True)
class Latency:
    """What one side took.

    Args:
        case: for what.
        way: how it was computed.
        form: the form that the optimiser chose; empty for the others.
        milliseconds: median of its calls.
        ratio: median of its calls' time over the release's in the same round.
        ratio_quartiles: the middle half of these ratios.
        cpu_ratio: the ratio of the processor's time, summed over the calls.
        cosine: the smallest cosine with the release's embeddings.
        error: the largest norm of a difference from the release's embeddings, over their norm.
    """

    case: Case
    way: Way
    form: str
    milliseconds: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    cpu_ratio: float
    cosine: float
    error: float


@attrs.frozen(kw_only=True)
class Side:
    """One way to compute embeddings.

    Args:
        way: which.
        encode: from inputs to embeddings.
        form: what the optimiser chose.
    """

    way: Way
    encode: Encode
    form: str = ""


def captions(spec: DualEncoderSpec, *, batch_size: int) -> Tensor:
    """Return random texts of ten ids, start and end included."""
    contract = spec.text.input
    tokens = torch.full((batch_size, contract.context_length), contract.pad_id)
    tokens[:, :_SHORT_CAPTION] = torch.randint(1, contract.start_id, (batch_size, _SHORT_CAPTION))
    tokens[:, 0], tokens[:, _SHORT_CAPTION - 1] = contract.start_id, contract.end_id
    return tokens


def eager(folded: DualEncoder, tower: Tower) -> Encode:
    """Return our folded tower as `mobileclip.load` runs it."""
    if tower == "image":
        return folded.image_encoder
    assert isinstance(folded.text_encoder, TextEncoder)
    return partial(encode_to_the_end, folded.text_encoder)


def sides(ours: DualEncoder, theirs: nn.Module, inputs: Tensor, tower: Tower, spec: LatencyBenchSpec) -> Iterator[Side]:
    """Yield every way to compute the embeddings of `inputs`, the release's first."""
    yield Side(way="release", encode=theirs)
    if spec.compile_release and not spec.tiny:
        # A copy: what is compiled keeps a cache of its own in the module.
        yield Side(way="release_compiled", encode=torch.compile(copy.deepcopy(theirs), dynamic=False))
    folded = reparameterize(ours)
    yield Side(way="eager", encode=eager(folded, tower))
    mine = folded.image_encoder if tower == "image" else folded.text_encoder
    for precision in spec.precision:
        way: Way = "optimized_fp32" if precision == "fp32" else "optimized_bf16"
        fast, report = optimize_tower(mine, inputs, precision=precision, compiled=not spec.tiny, rounds=spec.rounds)
        yield Side(way=way, encode=fast, form="folded" if report.used is None else str(report.used.form))


@torch.inference_mode()
def compare(case: Case, contestants: list[Side], inputs: Tensor, *, rounds: int) -> Iterator[Latency]:
    """Yield what every side took for `inputs`, called in turn; the first is what the others are compared with."""
    embeddings = [side.encode(inputs).float() for side in contestants]
    wall: list[list[float]] = [[] for _ in contestants]
    cpu = [0.0 for _ in contestants]
    for index in range(rounds):
        order = range(len(contestants)) if index % 2 == 0 else reversed(range(len(contestants)))
        for which in order:
            start, cpu_start = time.perf_counter(), time.process_time()
            contestants[which].encode(inputs)
            wall[which].append(1e3 * (time.perf_counter() - start))
            cpu[which] += time.process_time() - cpu_start
    for side, embedding, times, seconds in zip(contestants, embeddings, wall, cpu, strict=True):
        ratios = [ours / theirs for ours, theirs in zip(times, wall[0], strict=True)]
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
        contestants = list(sides(ours, theirs[case.tower], inputs, case.tower, spec))
        yield list(compare(case, contestants, inputs, rounds=spec.rounds))


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
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that it built a model without pretrained weights
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    table = Table(title=", ".join(map(str, machine.values())), box=None, padding=(0, 2, 0, 0))
    for title in ("tower", "batch", "way", "ms", "ratio", "middle half", "cpu ratio", "cosine", "error", "form"):
        left = title in ("tower", "way", "form")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    spec.output.mkdir(parents=True, exist_ok=True)
    total = len(list(cases(spec)))
    with (spec.output / "latency.jsonl").open("w", encoding="utf-8") as lines:
        for results in track(measure(spec), total=total, title="comparing", unit="cases"):
            for result in results:
                lines.write(json.dumps(machine | attrs.asdict(result)) + "\n")
                lines.flush()
                low, high = result.ratio_quartiles
                measured = (f"{result.milliseconds:.1f}", f"{result.ratio:.2f}", f"{low:.2f}-{high:.2f}")
                exactness = (f"{result.cpu_ratio:.2f}", f"{result.cosine:.6f}", f"{result.error:.0e}")
                named = (str(result.case), str(result.case.batch_size), result.way)
                table.add_row(*named, *measured, *exactness, result.form)
    Console(width=max(Console().width, _WIDTH)).print(table)


if __name__ == "__main__":
    import tyro

    assert __doc__ is not None
    what, _, how = __doc__.split("\n\n")
    run(tyro.cli(LatencyBenchSpec, default=bench_latency(), description=f"{what}\n\n{how}"))
