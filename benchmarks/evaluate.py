"""The quickstart's test set evaluated by mobileclip and by CLIP_benchmark: same weights, same files, one run.

Command:   python -m benchmarks.evaluate          (needs the extras `test` and `quickstart`, and npm)
           python -m benchmarks.evaluate --max-images 64 --sets emoji-test_concepts     (a first look)
Hardware:  any CPU; close what else computes, or trust the processor's time more than the clock's
Time:      about thirty-five minutes on two cores that nothing else uses
Result:    a table: seconds by the clock and of the processor of both, the ratios CLIP_benchmark / mobileclip
           (above 1: mobileclip is faster), and how far the metrics are apart; the same in OUTPUT/results.jsonl, a line
           as soon as it is there

Reading, decoding, resizing, both encoders and the metrics are timed; making the models is not. mobileclip's is
`evaluate_benchmark`, to which the model comes unfolded, and which encodes a text that several sets ask for once, as one
run of `mobileclip eval` does; the other is CLIP_benchmark's own command line in float32 with its
own defaults (batches of 64, four workers), on open_clip's model with the very same weights. The model's towers are
random and its projections fitted to training pictures: what counts is how long it takes, and that both say the same of
it. Both sides start every other data set.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import attrs
import torch
from attrs import validators

from benchmarks.command_line import empty_table, main
from benchmarks.rivals import PUBLISHED, Size, open_clip_model
from examples.quickstart.emoji import EmojiDataSpec, build_dataset
from examples.quickstart.emoji.benchmark import write_benchmarks
from examples.quickstart.emoji.teachers import PROMPTS
from mobileclip.data import ImageTransform, SkipReport, Tokenizer
from mobileclip.encoders import DualEncoder, MCiSpec
from mobileclip.evaluation import (
    Benchmark,
    BenchmarkSample,
    Session,
    evaluate_benchmark,
    open_benchmark,
    write_benchmark,
)
from mobileclip.extras import install_library
from mobileclip.recipes.tiny.fitted_model import fitted_model
from mobileclip.terminal import print_table

SETS = (
    "emoji-test_concepts",
    "emoji-test_renderings-captions",
    "emoji-test_renderings",
    "emoji-test_style-captions",
    "emoji-test_style",
)
_HELD = "held"


@attrs.frozen(kw_only=True)
class EvaluateBenchSpec:
    """What to compare.

    Args:
        model: which model, of those with convolutions in the image tower.
        sets: which data sets of the quickstart's test splits.
        max_images: at most so many pictures of each set; None for all. Classes and prompts stay as many.
        rounds: how often each side evaluates each set.
        fit_images: pictures of the training split that the projections are fitted to.
        threads: threads that PyTorch computes with; None for its own choice.
        output: folder of the pictures and the results.
        seed: of the weights.
    """

    model: Size = attrs.field(default="s0", validator=validators.in_(("s0", "s1", "s2")))
    sets: tuple[str, ...] = attrs.field(
        default=SETS, validator=[validators.min_len(1), validators.deep_iterable(validators.in_(SETS))]
    )
    max_images: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    rounds: int = attrs.field(default=1, validator=validators.gt(0))
    fit_images: int = attrs.field(default=200, validator=validators.gt(1))
    threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    output: Path = Path("outputs/bench_evaluate")
    seed: int = 0


@attrs.frozen(kw_only=True)
class Seconds:
    """How long an evaluation took.

    Args:
        wall: by the clock.
        cpu: of the processor, in this process and those that it started.
    """

    wall: float
    cpu: float


@attrs.frozen(kw_only=True)
class Comparison:
    """One data set, evaluated by both.

    Args:
        name: of the data set.
        num_images: pictures in it.
        num_texts: prompts or captions in it.
        mobileclip: what mobileclip took.
        clip_benchmark: what CLIP_benchmark took.
        mobileclip_metrics: what mobileclip gave.
        clip_benchmark_metrics: what CLIP_benchmark gave.
    """

    name: str
    num_images: int
    num_texts: int
    mobileclip: Seconds
    clip_benchmark: Seconds
    mobileclip_metrics: Mapping[str, float]
    clip_benchmark_metrics: Mapping[str, float]

    @property
    def largest_difference(self) -> float:
        """The largest difference of a metric that both give."""
        both = self.mobileclip_metrics.keys() & self.clip_benchmark_metrics.keys()
        return max(abs(self.mobileclip_metrics[name] - self.clip_benchmark_metrics[name]) for name in both)


@attrs.frozen(kw_only=True)
class Models:
    """One set of weights, as both sides hold it.

    Args:
        mobileclip: its model, unfolded.
        open_clip: its model, with its transform and its tokenizer.
    """

    mobileclip: DualEncoder
    open_clip: tuple[torch.nn.Module, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]


def make_models(spec: EvaluateBenchSpec, images: list[bytes], texts: list[list[str]]) -> Models:
    """Return both, fitted to pictures and what is said of them."""
    import open_clip  # type: ignore[import-untyped]

    published = PUBLISHED[spec.model]
    architecture = published.spec()
    assert isinstance(architecture.image, MCiSpec)
    # open_clip's image projections have a bias.
    architecture = attrs.evolve(architecture, image=attrs.evolve(architecture.image, projection_bias=True))
    model = fitted_model(architecture, images, texts, seed=spec.seed)
    contract = architecture.image.input
    transform = open_clip.image_transform(
        contract.size,
        is_train=False,
        mean=contract.mean,
        std=contract.std,
        interpolation=contract.interpolation,
    )
    rival = open_clip_model(published, model).eval()
    return Models(mobileclip=model, open_clip=(rival, transform, open_clip.get_tokenizer(published.open_clip)))


def new_session(model: DualEncoder) -> Session:
    """Return a session of our model, which knows no text yet."""
    spec = model.spec
    transform, tokenizer = ImageTransform(spec.image.input), Tokenizer(spec.text.input)
    return Session(model, transform=transform, tokenize=tokenizer, show_progress=False)


def evaluate_mobileclip(session: Session, benchmark: Benchmark) -> dict[str, float]:
    """Return the metrics that we give."""
    evaluation = evaluate_benchmark(session, benchmark)
    assert evaluation.report.num_skipped == 0, "what we wrote can be read"
    return dict(evaluation.result.metrics)


def evaluate_clip_benchmark(models: Models, benchmark: Benchmark, folder: Path, output: Path) -> dict[str, float]:
    """Return the metrics that CLIP_benchmark gives."""
    from clip_benchmark import cli, models as kinds

    from mobileclip.evaluation.clip_benchmark import register

    register()
    kinds.TYPE2FUNC[_HELD] = lambda **_: models.open_clip
    if _HELD not in kinds.MODEL_TYPES:
        kinds.MODEL_TYPES.append(_HELD)
    arguments = f"eval --model_type {_HELD} --no_amp --quiet --recall_k 1 5 10 --task zeroshot_{benchmark.kind}".split()
    arguments += ["--dataset", "wds/it", "--dataset_root", str(folder), "--output", str(output)]
    with _command_line(["clip_benchmark", *arguments]):
        cli.main()
    return dict(json.loads(output.read_text(encoding="utf-8"))["metrics"])


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


def timed(evaluate: Callable[[], dict[str, float]]) -> tuple[Seconds, dict[str, float]]:
    """Return what an evaluation took and gave."""
    wall, cpu = time.perf_counter(), _processor_seconds()
    metrics = evaluate()
    return Seconds(wall=time.perf_counter() - wall, cpu=_processor_seconds() - cpu), metrics


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def write_sets(spec: EvaluateBenchSpec) -> tuple[dict[str, Path], list[bytes], list[list[str]]]:
    """Return the folders of the data sets, and training pictures with their captions."""
    dataset = build_dataset(EmojiDataSpec(), spec.output / "data")
    folder = spec.output / "benchmarks"
    write_benchmarks(dataset, folder, templates=PROMPTS)
    folders = {name: folder / f"wds_{name}_test" for name in spec.sets}
    if spec.max_images is not None:
        folders = {name: cut(path, spec.max_images) for name, path in folders.items()}
    samples = list(islice(dataset.train.samples(), spec.fit_images))
    images = [sample.image for sample in samples if sample.image is not None]
    return folders, images, [list(sample.captions[:1]) for sample in samples]


def cut(folder: Path, count: int) -> Path:
    """Write the first pictures of a data set beside it."""
    whole = open_benchmark(folder)
    samples: list[BenchmarkSample] = list(islice(samples_of(whole), count))
    path = folder.with_name(f"first-{count}") / folder.name
    shards = max(1, len(samples) // 4)
    write_benchmark(path, samples, class_names=whole.class_names, templates=whole.templates, samples_per_shard=shards)
    return path


def samples_of(benchmark: Benchmark) -> Iterator[BenchmarkSample]:
    """Yield the samples of a data set that was written here."""
    return benchmark.samples(SkipReport())


def compare(spec: EvaluateBenchSpec) -> Iterator[Comparison]:
    """Yield the comparison on every data set, round by round."""
    folders, images, texts = write_sets(spec)
    models = make_models(spec, images, texts)
    session = new_session(models.mobileclip)
    for turn in range(spec.rounds * len(folders)):
        name = spec.sets[turn % len(folders)]
        if name == spec.sets[0]:
            session = new_session(models.mobileclip)
        benchmark = open_benchmark(folders[name])
        samples = list(samples_of(benchmark))
        scratch = spec.output / "clip_benchmark.json"
        sides: dict[str, Callable[[], dict[str, float]]] = {
            "mobileclip": partial(evaluate_mobileclip, session, benchmark),
            "clip_benchmark": partial(evaluate_clip_benchmark, models, benchmark, folders[name], scratch),
        }
        order = tuple(sides) if turn % 2 == 0 else tuple(sides)[::-1]
        results = {side: timed(sides[side]) for side in order}
        num_prompts = len(benchmark.class_names) * len(benchmark.templates)
        yield Comparison(
            name=name,
            num_images=len(samples),
            num_texts=num_prompts or sum(len(sample.captions) for sample in samples),
            mobileclip=results["mobileclip"][0],
            clip_benchmark=results["clip_benchmark"][0],
            mobileclip_metrics=results["mobileclip"][1],
            clip_benchmark_metrics=results["clip_benchmark"][1],
        )


def run(spec: EvaluateBenchSpec) -> None:
    """Compare, and print the table."""
    if importlib.util.find_spec("clip_benchmark") is None:
        raise SystemExit(f"CLIP_benchmark cannot be imported: {install_library('test', 'quickstart')}")
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that it built a model without pretrained weights
    done = []
    spec.output.mkdir(parents=True, exist_ok=True)
    with (spec.output / "results.jsonl").open("w", encoding="utf-8") as lines:
        for one in compare(spec):
            done.append(one)
            values = attrs.asdict(one) | {"largest_difference": one.largest_difference, "spec": str(spec)}
            lines.write(json.dumps(values) + "\n")
            lines.flush()
    title = f"{spec.model}, CPU threads: {torch.get_num_threads()}, PyTorch {torch.__version__}, seconds"
    both = ("mobileclip", "CLIP_benchmark")
    timed_columns = (*both, "ratio", *(f"{side}, CPU" for side in both), "ratio")
    columns = ("set", "images", "texts", *timed_columns, "difference")
    table = empty_table(columns, texts=("set",), title=title)
    for one in done:
        table.add_row(
            one.name, str(one.num_images), str(one.num_texts), *_cells(one.mobileclip, one.clip_benchmark),
            f"{one.largest_difference:.0e}",
        )  # fmt: skip
    table.add_section()
    sums = _sum(one.mobileclip for one in done), _sum(one.clip_benchmark for one in done)
    table.add_row("all", "", "", *_cells(*sums), "")
    print_table(table, min_width=150)


def _sum(seconds: Iterator[Seconds]) -> Seconds:
    several = list(seconds)
    return Seconds(wall=sum(one.wall for one in several), cpu=sum(one.cpu for one in several))


def _cells(mobileclip: Seconds, clip_benchmark: Seconds) -> tuple[str, ...]:
    return (
        *(f"{seconds.wall:.0f}" for seconds in (mobileclip, clip_benchmark)),
        f"{clip_benchmark.wall / mobileclip.wall:.2f}",
        *(f"{seconds.cpu:.0f}" for seconds in (mobileclip, clip_benchmark)),
        f"{clip_benchmark.cpu / mobileclip.cpu:.2f}",
    )


if __name__ == "__main__":
    main(EvaluateBenchSpec, run, __doc__)
