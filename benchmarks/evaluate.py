"""The quickstart's test set evaluated by mobileclip and by CLIP_benchmark: same weights, same files, one run.

Command:   python -m benchmarks evaluate          (needs the extras `test` and `quickstart`, and npm)
           python -m benchmarks evaluate --max-images 64 --sets emoji-test_concepts     (a first look)
Hardware:  any CPU; close other programs, or trust the processor's time more than the clock's
Time:      about thirty-five minutes on two cores that nothing else uses
Result:    a table: seconds by the clock and of the processor of both, the ratios CLIP_benchmark / mobileclip
           (above 1: mobileclip is faster), and how far the metrics are apart

Reading, decoding, resizing, both encoders and the metrics are timed; making the models is not. mobileclip's is
`evaluate_benchmark`, to which the model comes unfolded, and which encodes a text that several sets ask for once, as one
run of `mobileclip eval` does; the other is CLIP_benchmark's own command line in float32 with its
own defaults (batches of 64, four workers), on open_clip's model with the very same weights. The model's towers are
random and its projections fitted to training pictures: what counts is how long it takes, and that both say the same of
it. Who is first is drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from attrs import validators

from benchmarks.harness import Bench, Case, Row, Value, clocked, in_turn, ratio, require, spread
from benchmarks.rivals import PUBLISHED, Size, open_clip_model, open_clip_transform
from examples.quickstart.emoji import EmojiDataSpec, build_dataset
from examples.quickstart.emoji.benchmark import write_benchmarks
from examples.quickstart.emoji.teachers import PROMPTS
from mobileclip.data import SkipReport
from mobileclip.encoders import DualEncoder, MCiSpec
from mobileclip.evaluation import (
    Benchmark,
    BenchmarkSample,
    Session,
    evaluate_benchmark,
    open_benchmark,
    write_benchmark,
)
from mobileclip.recipes.tiny.fitted_model import fitted_model

SETS = (
    "emoji-test_concepts",
    "emoji-test_renderings-captions",
    "emoji-test_renderings",
    "emoji-test_style-captions",
    "emoji-test_style",
)
_HELD = "held"


@attrs.frozen(kw_only=True)
class EvaluateBenchSpec(Bench):
    """What to compare.

    Args:
        model: which model, of those with convolutions in the image tower.
        sets: which data sets of the quickstart's test splits.
        max_images: at most so many pictures of each set; None for all. Classes and prompts stay as many.
        rounds: how often each side evaluates each set.
        fit_images: pictures of the training split that the projections are fitted to.
        folder: of the pictures and the data sets.
        seed: of the weights.
    """

    model: Size = attrs.field(default="s0", validator=validators.in_(("s0", "s1", "s2")))
    sets: tuple[str, ...] = attrs.field(
        default=SETS, validator=[validators.min_len(1), validators.deep_iterable(validators.in_(SETS))]
    )
    max_images: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    rounds: int = attrs.field(default=1, validator=validators.gt(0))
    fit_images: int = attrs.field(default=200, validator=validators.gt(1))
    folder: Path = Path("outputs/bench_evaluate")
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {"sets": SETS[:-3:-1], "max_images": 12, "fit_images": 8}
    selects: ClassVar[frozenset[str]] = frozenset(("sets",))

    def cases(self) -> Iterator[Case]:
        """Yield every data set; a session knows the texts of those before."""
        require("clip_benchmark", extras=("test", "quickstart"))
        held: dict[str, Any] = {}
        for name in self.sets:
            yield Case(labels={"set": name}, measure=partial(compare, self, held, name))


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
    transform = open_clip_transform(architecture.image.input)
    rival = open_clip_model(published, model).eval()
    return Models(mobileclip=model, open_clip=(rival, transform, open_clip.get_tokenizer(published.open_clip)))


def new_session(model: DualEncoder) -> Session:
    """Return a session of our model, which knows no text yet."""
    return Session(model, show_progress=False)


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


def write_sets(spec: EvaluateBenchSpec) -> tuple[dict[str, Path], list[bytes], list[list[str]]]:
    """Return the folders of the data sets, and training pictures with their captions."""
    dataset = build_dataset(EmojiDataSpec(), spec.folder / "data")
    folder = spec.folder / "benchmarks"
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


def compare(spec: EvaluateBenchSpec, held: dict[str, Any], name: str) -> list[Row]:
    """Return what both took for a data set, and how far their metrics are apart.

    Args:
        spec: the choices.
        held: what the sets before left: the folders, the models and a session for each round.
        name: of the set.
    """
    if not held:
        folders, images, texts = write_sets(spec)
        models = make_models(spec, images, texts)
        sessions = [new_session(models.mobileclip) for _ in range(spec.rounds)]
        held |= {"folders": folders, "models": models, "sessions": sessions}
    folder = held["folders"][name]
    benchmark = open_benchmark(folder)
    scratch = spec.folder / "clip_benchmark.json"
    metrics: dict[str, dict[str, float]] = {}
    sessions = iter(held["sessions"])

    def mobileclip() -> None:
        metrics["mobileclip"] = evaluate_mobileclip(next(sessions), benchmark)

    def clip_benchmark() -> None:
        metrics["CLIP_benchmark"] = evaluate_clip_benchmark(held["models"], benchmark, folder, scratch)

    sides = {"mobileclip": clocked(mobileclip), "CLIP_benchmark": clocked(clip_benchmark)}
    taken = in_turn(sides, rounds=spec.rounds)
    samples = list(samples_of(benchmark))
    num_prompts = len(benchmark.class_names) * len(benchmark.templates)
    values = {
        "images": Value(number=len(samples)),
        "texts": Value(number=num_prompts or sum(len(sample.captions) for sample in samples)),
    }
    for kind in ("wall", "cpu"):
        seconds = {side: [getattr(one, kind) for one in several] for side, several in taken.items()}
        suffix = ", CPU" if kind == "cpu" else ""
        values |= {f"{side}{suffix}": spread(several, "s") for side, several in seconds.items()}
        values[f"ratio{suffix}"] = ratio(seconds["CLIP_benchmark"], seconds["mobileclip"])
    return [Row(values={**values, "difference": Value(number=largest_difference(*metrics.values()))})]


def largest_difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """Return the largest difference of a metric that both give."""
    return max(abs(ours[name] - theirs[name]) for name in ours.keys() & theirs.keys())
