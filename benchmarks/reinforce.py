"""What reinforcement costs beyond its teacher's forward passes: decoding, replay, tokens, writing, reading back.

Command:   python -m benchmarks reinforce; with --num-shards 6 --store-seconds 0.05, through a store (extra `test`)
Hardware:  any CPU with nothing else to do, or a GPU with --device cuda
Time:      nine minutes on two cores
Result:    the time of the whole job over that of the bare forward passes on the same pictures and texts: 1.02 on two
           cores (at most 1.15 is the aim). Through a store that takes 50 ms a request, with 288 pictures in six shards,
           1.03 (at most 1.05 is the aim), and 1.08 with 96: a job begins and ends with thirty requests, two seconds
"""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import ClassVar

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor

from benchmarks.harness import Bench, Case, Row, Value, in_turn, seconds_of, spread
from benchmarks.object_store import object_store
from benchmarks.random_weights import random_weights
from mobileclip.data import (
    ImageTextSample,
    augmentation_rng,
    datacompdr_augmentation,
    decode_image,
    normalize_pixels,
    write_shard,
)
from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision, dtype_of
from mobileclip.reinforce import (
    ModelTeacher,
    OpenClipTeacher,
    ReinforcementSpec,
    TeacherEnsemble,
    reinforce,
)
from mobileclip.storage import join


@attrs.frozen(kw_only=True)
class ReinforceBenchSpec(Bench):
    """What to measure, and how often.

    Args:
        model: the teacher, an open_clip architecture; its weights are random, which takes the same time.
        num_samples: pictures per round, each with one real and five synthetic captions.
        width: of the JPEG pictures, in pixels; they are three quarters as high.
        num_augmentations: augmentations per picture.
        batch_size: samples that are encoded at once.
        num_shards: that the pictures are in; each is read back and uploaded while the next is encoded.
        store_seconds: that a store on this machine takes over each request; the pictures come from it and the shards go
            there. None for files.
        num_rounds: the bare passes and the job take turns so often.
        device: where the teacher computes, such as `cuda`.
        precision: of the teacher.
    """

    model: str = "ViT-B-32"
    num_samples: int = attrs.field(default=48, validator=validators.gt(0))
    width: int = attrs.field(default=512, validator=validators.ge(64))
    num_augmentations: int = attrs.field(default=10, validator=validators.gt(0))
    batch_size: int = attrs.field(default=8, validator=validators.gt(0))
    num_shards: int = attrs.field(default=1, validator=validators.gt(0))
    store_seconds: float | None = attrs.field(default=None, validator=validators.optional(validators.ge(0)))
    num_rounds: int = attrs.field(default=3, validator=validators.gt(0))
    device: str = "cpu"
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))

    smallest: ClassVar[Mapping[str, object]] = {
        "model": "ViT-S-32-alt",
        "precision": "float32",
        "num_samples": 2,
        "num_augmentations": 2,
        "num_rounds": 1,
    }

    def cases(self) -> Iterator[Case]:
        """Yield the job."""
        place = "files" if self.store_seconds is None else f"{self.store_seconds:g} s a request"
        labels = {"teacher": self.model, "pictures": str(self.num_samples), "shards": str(self.num_shards)}
        yield Case(labels={**labels, "place": place}, measure=partial(measure_all, self))


def measure(spec: ReinforceBenchSpec, folder: Path) -> dict[str, list[float]]:
    """Return seconds of the bare passes and of the job, round by round, after one job that warms everything up.

    Args:
        spec: what to measure.
        folder: for the teacher's weights, the pictures and what is made of them.
    """
    samples = _pictures(spec)
    size = -(-len(samples) // spec.num_shards)
    parts = [samples[start : start + size] for start in range(0, len(samples), size)]
    base = str(folder) if spec.store_seconds is None else "s3://bench"
    shards = tuple(write_shard(join(base, f"pictures-{number}.tar"), part) for number, part in enumerate(parts))
    teacher = _teacher(spec, folder)
    passes = _forward_passes(spec, samples, teacher)
    teachers = TeacherEnsemble([teacher])

    def job(number: int) -> None:
        output = join(base, f"round-{number}")
        reinforce(_reinforcement(spec, shards, output), teachers=teachers, show_progress=False)

    numbers = itertools.count(-1)
    job(next(numbers))
    cores = torch.get_num_threads()

    def bare() -> float:
        # The faster of two ways to use the cores.
        return min(seconds_of(partial(_run, passes, each, cores // each)).wall for each in {cores, 1})

    return in_turn({"bare": bare, "job": lambda: seconds_of(lambda: job(next(numbers))).wall}, rounds=spec.num_rounds)


def _pictures(spec: ReinforceBenchSpec) -> list[ImageTextSample]:
    from mobileclip.recipes.tiny.scenes import scenes

    rng = np.random.default_rng(0)
    samples = []
    for index, scene in enumerate(itertools.islice(scenes(0), spec.num_samples)):
        stream = io.BytesIO()
        scene.draw(rng, spec.width, spec.width * 3 // 4).save(stream, "JPEG", quality=90)
        real, *synthetic = scene.captions()
        captions = {"syn_text": tuple(f"{text}, number {index}" for text in synthetic)}
        sample = ImageTextSample(
            key=f"{index:06d}", captions=(f"{real}, number {index}",), syn_captions=captions, image=stream.getvalue()
        )
        samples.append(sample)
    return samples


def _teacher(spec: ReinforceBenchSpec, folder: Path) -> ModelTeacher:
    weights = random_weights(spec.model, folder)
    teacher = OpenClipTeacher(model=spec.model, pretrained=weights, precision=spec.precision, max_batch=4096)
    return teacher.build(spec.device)


def _reinforcement(spec: ReinforceBenchSpec, shards: tuple[str, ...], output: str) -> ReinforcementSpec:
    return ReinforcementSpec(
        source=shards,
        output=output,
        augmentation=datacompdr_augmentation(224),
        num_augmentations=spec.num_augmentations,
        batch_size=spec.batch_size,
        num_compared=0,
    )


def _forward_passes(
    spec: ReinforceBenchSpec, samples: Sequence[ImageTextSample], teacher: ModelTeacher
) -> list[Callable[[], Tensor]]:
    """Return the passes that the job makes, on tensors that are ready: one of images and one of texts per batch."""
    policy = datacompdr_augmentation(teacher.image.size)
    passes: list[Callable[[], Tensor]] = []
    for start in range(0, len(samples), spec.batch_size):
        views, texts = [], []
        for sample in samples[start : start + spec.batch_size]:
            assert sample.image is not None, "they were drawn"
            image = decode_image(sample.image)
            for index in range(spec.num_augmentations):
                params = policy.sample(augmentation_rng(0, sample.key, index), image.size)
                views.append(np.asarray(policy.apply(image, params)))
            texts += [*sample.captions, *sample.syn_captions["syn_text"]]
        pixels = normalize_pixels(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2), teacher.image)
        pixels = pixels.to(spec.device, dtype_of(spec.precision))
        ids = teacher.clip.tokenizer(texts).to(spec.device)
        passes += [partial(teacher.clip.model.encode_image, pixels), partial(teacher.clip.model.encode_text, ids)]
    return passes


def _run(passes: Sequence[Callable[[], Tensor]], threads_per_pass: int, num_passes: int) -> None:
    """Do all passes, so many at once, each with so many of torch's threads."""

    def do(one: Callable[[], Tensor]) -> None:
        with torch.inference_mode():
            one()

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_passes, initializer=torch.set_num_threads, initargs=(threads_per_pass,)) as pool:
            list(pool.map(do, passes))
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
    finally:
        torch.set_num_threads(before)


def measure_all(spec: ReinforceBenchSpec) -> list[Row]:
    """Return how long the job takes beside the bare passes, and images per second of both."""
    store = nullcontext() if spec.store_seconds is None else object_store(seconds=spec.store_seconds)
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder, store:
        seconds = measure(spec, Path(folder))
    views = spec.num_samples * spec.num_augmentations
    values = {
        "bare passes": spread(seconds["bare"], "s"),
        "job": spread(seconds["job"], "s"),
        "bare passes' views": spread([views / one for one in seconds["bare"]], "images/s"),
        "job's views": spread([views / one for one in seconds["job"]], "images/s"),
        "job / bare passes": Value(number=median(seconds["job"]) / median(seconds["bare"])),
    }
    return [Row(values=values)]
