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

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal, cast

import attrs
import torch
from torch import Tensor, nn

from benchmarks.harness import Results, Row, Value
from benchmarks.rivals import PUBLISHED, Size, Tower
from mobileclip.charts import draw_bars, put_legend_below
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation.published import published_results
from mobileclip.evaluation.report.figures import LIGHT, Theme, new_figure, rule_axes, to_png
from mobileclip.evaluation.suite import SUITE
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference import optimize_tower, prepared_tower
from mobileclip.inference.optimization.optimizing import ENGINES
from mobileclip.reparam import reparameterize
from mobileclip.serialization import from_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from collections.abc import Mapping
from functools import partial
from itertools import product
from tempfile import TemporaryDirectory
from typing import ClassVar

from attrs import validators

from benchmarks.harness import Bench, Case, in_turn, keep_memory, ratio, require, rounds_of, spread
from benchmarks.rivals import Runtime, example, exported, randomize, released
from mobileclip.encoders import DualEncoderSpec
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
    release = released(published, model, wanted)
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


Way = Literal[
    "release",
    "release_compiled",
    "release_onnxruntime",
    "release_openvino",
    "release_openvino_bf16",
    "eager",
    "optimized_fp32",
    "optimized_bf16",
    "optimized_int8",
    "onnxruntime",
    "openvino",
    "openvino_bf16",
]
Encode = Callable[[Tensor], Tensor]
_OPTIMIZED: dict[FastPrecision, Way] = {
    "float32": "optimized_fp32",
    "bfloat16": "optimized_bf16",
    "int8": "optimized_int8",
}


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


def sides(
    model: DualEncoder,
    release: nn.Module,
    inputs: Tensor,
    tower: Tower,
    *,
    precisions: tuple[FastPrecision, ...],
    compiled: bool,
    runtimes: tuple[Runtime, ...],
    rounds: int,
    folder: Path,
) -> Iterator[Side]:
    """Yield every way to compute the embeddings of `inputs`, the release's first.

    Args:
        model: of this library, in training form.
        release: the release's tower with the same weights, reparameterised.
        inputs: images or token ids.
        tower: which tower.
        precisions: in which the model is optimised.
        compiled: whether the release's way and this library's are compiled.
        runtimes: that both sides are exported to.
        rounds: timed calls that the optimiser chooses by.
        folder: of the exported files.
    """
    yield Side(way="release", encode=release)
    if compiled:
        # A copy: what is compiled keeps a cache of its own in the module.
        yield Side(way="release_compiled", encode=torch.compile(copy.deepcopy(release), dynamic=False))
    folded = reparameterize(model)
    mine = folded.image_encoder if tower == "image" else folded.text_encoder
    yield Side(way="eager", encode=prepared_tower(mine))
    engines = ENGINES if compiled else ENGINES[:1]
    for precision in precisions:
        fast, report = optimize_tower(mine, inputs, precision=precision, engines=engines, rounds=rounds)
        form = "folded" if report.used is None else str(report.used.form)
        yield Side(way=_OPTIMIZED[precision], encode=fast, form=form)
    for runtime in runtimes:
        for whose, rival in (("release_", release), ("", None)):
            way: Way = f"{whose}{runtime}"  # type: ignore[assignment]  # all of these are ways
            encode = exported(mine, tower, runtime, batch_size=len(inputs), rival=rival, folder=folder / way)
            yield Side(way=way, encode=encode)


KEPT = Path(__file__).parents[1] / "docs" / "latency.json"
# What is drawn and how: each way of this library after that of the release in the same runtime.
_DRAWN: dict[Way, tuple[str, str, str]] = {
    "release": ("the release, eager float32", "o", "-"),
    "eager": ("mobileclip, eager float32", "o", "-"),
    "release_openvino": ("the release in OpenVINO, float32", "^", "--"),
    "openvino": ("mobileclip in OpenVINO, float32", "^", "--"),
    "optimized_fp32": ("mobileclip, optimised float32", "s", "-"),
    "release_openvino_bf16": ("the release in OpenVINO, bfloat16", "v", ":"),
    "openvino_bf16": ("mobileclip in OpenVINO, bfloat16", "v", ":"),
    "optimized_bf16": ("mobileclip, optimised bfloat16", "D", "-"),
    "optimized_int8": ("mobileclip, optimised int8", "P", "-"),
}
_Point = tuple[str, float, float, tuple[float, float] | None]


def accuracies(latencies: Sequence[Row]) -> dict[Way, list[_Point]]:
    """Return, for every way that is drawn, the models with the time of an image and a text, and their accuracy.

    Beside them stand the sums of both times' quartiles, where these are known.

    The accuracy is the mean of the 38 data sets that is published of the weights: it is the same for every way, since
    all compute the same embeddings.

    Args:
        latencies: those of single images and texts of random lengths count.

    Source: MobileCLIP (arXiv 2311.17049), table 7; MobileCLIP2 (arXiv 2508.20691).
    """
    keys = [entry.key for entry in SUITE]
    single = {
        (one.case["way"], one.case["model"], one.case["inputs"].split()[-1]): one.values["time"]
        for one in latencies
        if one.failure is None and one.case["batch"] == "1" and one.case["inputs"] != "short text"
    }
    found: dict[Way, list[_Point]] = {}
    for way in _DRAWN:
        for model in dict.fromkeys(model for _, model, _ in single):
            image, text = single.get((way, model, "image")), single.get((way, model, "text"))
            if image is None or text is None:
                continue
            name = PUBLISHED[cast("Size", model)].open_clip
            figures = published_results(name.lower().replace("-", "_"))
            score, ends = fmean(figures[key].main_metric for key in keys), _ends(image, text)
            found.setdefault(way, []).append((name, image.number + text.number, score, ends))
    return found


def _ends(image: Value, text: Value) -> tuple[float, float] | None:
    if image.low is None or text.low is None or image.high is None or text.high is None:
        return None
    return image.low + text.low, image.high + text.high


def draw_accuracy(latencies: Sequence[Row], *, title: str, theme: Theme) -> Figure:
    """Return published accuracy over measured latency.

    Args:
        latencies: of all cases.
        title: what it was measured on.
        theme: the colours.
    """
    figure = new_figure(7.2, 5.6, theme)
    axes = figure.add_axes((0.09, 0.3, 0.89, 0.58))
    axes.set_facecolor(theme.paper)
    axes.set_xscale("log")
    found = accuracies(latencies)
    has_bars = any(ends for points in found.values() for *_, ends in points)
    for way, points in found.items():
        label, marker, stroke = _DRAWN[way]
        color = theme.published if way.startswith("release") else theme.measured
        times, scores = [time for _, time, *_ in points], [100 * score for _, _, score, _ in points]
        (line,) = axes.plot(times, scores, marker=marker, linestyle=stroke, color=color, label=label, linewidth=1.2)
        line.set(markerfacecolor=theme.paper, markersize=5)
        ends = [one for *_, one in points if one is not None]
        if len(ends) == len(points):
            draw_bars(axes, times, scores, ends, color, along="x")
    for model, time, score, _ in found.get("release", []):
        axes.annotate(f"  {model}", (time, 100 * score), color=theme.ink, fontsize=9, va="center")
    axes.margins(x=0.25)  # for the longest name
    low, high = axes.get_xlim()
    ticks = [value for value in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if low <= value <= high]
    rule_axes(axes, ticks, theme)
    axes.set_xlabel("latency of one image + one text, ms (logarithmic), measured here", color=theme.faint, fontsize=9.5)
    axes.set_ylabel("average of 38 data sets, per cent, published", color=theme.faint, fontsize=9.5)
    figure.text(
        0.09,
        0.955,
        "Medians, with the quartiles of image and text added up" if has_bars else "Medians",
        color=theme.ink,
        fontsize=11,
    )
    figure.text(0.09, 0.91, title, color=theme.faint, fontsize=9, parse_math=False)
    put_legend_below(axes, ncols=2, fontsize=8.5, labelcolor=theme.ink)
    return figure


def kept() -> Results:
    """Return the latencies of the page; without compilers, `optimize` has eager forms alone, and is left out."""
    found = from_json(KEPT.read_text(encoding="utf-8"), Results)
    rows = tuple(row for row in found.rows if found.choices["compiled"] or not row.case["way"].startswith("optimized"))
    return attrs.evolve(found, rows=rows)
