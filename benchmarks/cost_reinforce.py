"""Costs of reinforcing 12.8M and 1.28B pairs: device hours, terabytes and price, computed from measured rates.

Command:   python -m benchmarks cost_reinforce --price-per-hour 2.0      (needs the extra `teachers`)
Hardware:  the machine for the planned work, or a similar machine
Time:      four minutes on two CPU cores
Result:    a table for all numbers of augmentations and captions, such as the table in docs/reinforcing.md
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import ClassVar, Literal

import attrs
import numpy as np
import numpy.typing as npt
import torch
from attrs import validators
from PIL import Image

from benchmarks.harness import Bench, Case, Row, Value, seconds_of
from benchmarks.rivals import random_weights
from mobileclip.data import LAYOUTS, AugmentationSpec, Layout, ReinforcedSample, augmentation_rng, write_shard
from mobileclip.reinforce import CocaCaptioner, OpenClipTeacher

NUM_SAMPLES = {"12M": 12_800_000, "1B": 1_280_000_000}
_DIM = 1536
_SAMPLES_PER_SHARD = 50


@attrs.frozen(kw_only=True)
class CostSpec(Bench):
    """Settings of the cost estimate.

    Args:
        teacher: open_clip architecture of both teachers. Their weights are random, which takes the same time.
        captioner: open_clip architecture of the captioner.
        device: device for the measurements.
        precision: precision of teachers and captioner.
        batch_size: number of images and of texts per measured pass.
        num_rounds: number of passes per rate; the rate is their median.
        augmentations: numbers of augmentations per image for the estimate.
        captions: numbers of synthetic captions per image for the estimate.
        price_per_hour: price per hour of one device, in any currency.
    """

    teacher: str = "ViT-L-14"
    captioner: str = "coca_ViT-L-14"
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = attrs.field(default=8, validator=validators.gt(0))
    num_rounds: int = attrs.field(default=3, validator=validators.gt(0))
    augmentations: tuple[int, ...] = (1, 2, 5, 10, 30)
    captions: tuple[int, ...] = (0, 1, 5)
    price_per_hour: float = attrs.field(default=0.0, validator=validators.ge(0))

    smallest: ClassVar[Mapping[str, object]] = {
        "teacher": "ViT-S-32-alt",
        "captioner": "coca_ViT-B-32",
        "precision": "float32",
        "batch_size": 1,
        "num_rounds": 1,
        "augmentations": (2,),
        "captions": (1,),
    }

    def cases(self) -> Iterator[Case]:
        """Yield the teacher with the captioner."""
        labels = {"teacher": self.teacher, "captioner": self.captioner}
        yield Case(labels=labels, measure=partial(measure_all, self))


def measure_all(spec: CostSpec) -> Iterator[Row]:
    """Yield the rates of the device and the costs."""
    return costs(spec, measure(spec))


@attrs.frozen(kw_only=True)
class Rates:
    """Seconds per operation on one device.

    Args:
        image: seconds for one teacher to encode one augmented image.
        text: seconds for one teacher to encode one caption.
        caption: seconds for the captioner to write one more caption.
        first_caption: seconds for the captioner to encode the image and write the first caption.
    """

    image: float
    text: float
    caption: float
    first_caption: float

    def per_sample(self, num_augmentations: int, num_captions: int) -> float:
        """Return the seconds per pair with two teachers and one real caption."""
        encoding = 2 * (num_augmentations * self.image + (1 + num_captions) * self.text)
        writing = self.first_caption + (num_captions - 1) * self.caption if num_captions else 0.0
        return encoding + writing


def measure(spec: CostSpec) -> Rates:
    """Return the rates of the device."""
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        image, text = _teacher_rates(spec, Path(folder))
        caption, first_caption = _captioner_rates(spec, Path(folder))
    return Rates(image=image, text=text, caption=caption, first_caption=first_caption)


def _teacher_rates(spec: CostSpec, folder: Path) -> tuple[float, float]:
    weights = random_weights(spec.teacher, folder)
    teacher = OpenClipTeacher(model=spec.teacher, pretrained=weights, precision=spec.precision).build(spec.device)
    size = teacher.image.size
    pixels = torch.randint(0, 256, (spec.batch_size, 3, size, size), dtype=torch.uint8)
    texts = [f"a picture of thing number {index} on a table in a room" for index in range(spec.batch_size)]
    image = _seconds(spec, lambda: teacher.encode_images(pixels)) / spec.batch_size
    return image, _seconds(spec, lambda: teacher.encode_texts(texts)) / spec.batch_size


def _captioner_rates(spec: CostSpec, folder: Path) -> tuple[float, float]:
    weights = random_weights(spec.captioner, folder)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (384, 512, 3), dtype=np.uint8)) for _ in range(spec.batch_size)]
    seeds = list(range(spec.batch_size))
    seconds = {}
    for num_captions in (1, 5):
        captioner = CocaCaptioner(
            model=spec.captioner,
            pretrained=weights,
            num_captions=num_captions,
            precision=spec.precision,
            max_batch=spec.batch_size,
        ).build(spec.device)
        work = lambda: captioner.caption(images, seeds)  # noqa: B023, E731 - it is called before the next turn
        seconds[num_captions] = _seconds(attrs.evolve(spec, num_rounds=1), work) / spec.batch_size
    return (seconds[5] - seconds[1]) / 4, seconds[1]


def _seconds(spec: CostSpec, work: Callable[[], object]) -> float:
    """Return the median duration of a call that ends with results on the CPU, after a warm-up call."""
    return median([seconds_of(work).wall for _ in range(spec.num_rounds + 1)][1:])


def knowledge_bytes(num_augmentations: int, num_captions: int, layout: Layout) -> float:
    """Return the bytes added per sample of a shard: two teachers of 768 dims, with random embeddings."""
    rng = np.random.default_rng(0)
    policy = AugmentationSpec(size=224)
    samples = []
    for index in range(_SAMPLES_PER_SHARD):
        names = {"syn_text": tuple(f"a caption of usual length, number {number}" for number in range(num_captions))}
        samples.append(
            ReinforcedSample(
                key=f"{index:08d}",
                captions=("the real caption of this picture",),
                syn_captions=names if num_captions else {},
                augmentations=[
                    policy.sample(augmentation_rng(0, f"{index}", number), (512, 384))
                    for number in range(num_augmentations)
                ],
                image_emb=_directions(rng, num_augmentations),
                text_emb=_directions(rng, 1),
                syn_text_emb={"syn_text": _directions(rng, num_captions)} if num_captions else {},
            )
        )
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        path = write_shard(Path(folder) / "0.tar", samples, layout=layout)
        return path.stat().st_size / len(samples)


def _directions(rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    rows = rng.normal(size=(count, 2, _DIM // 2))
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(unit.reshape(count, _DIM), dtype=np.float32)


def costs(spec: CostSpec, rates: Rates) -> Iterator[Row]:
    """Yield the rates, and the costs of every setting for each data set."""
    per_second = {
        "images": rates.image,
        "texts": rates.text,
        "first captions": rates.first_caption,
        "further captions": rates.caption,
    }
    # A further caption costs so little that the measured difference may be noise.
    known = {name: Value(number=1 / value, unit="1/s") for name, value in per_second.items() if value > 0}
    yield Row(case={"data set": "rates of one device"}, values=known)
    for num_augmentations, num_captions in itertools.product(spec.augmentations, spec.captions):
        per_sample = rates.per_sample(num_augmentations, num_captions)
        sizes = {layout: knowledge_bytes(num_augmentations, num_captions, layout) for layout in LAYOUTS}
        for name, count in NUM_SAMPLES.items():
            hours = count * per_sample / 3600
            values = {
                "device": Value(number=hours, unit="hours"),
                "price": Value(number=hours * spec.price_per_hour),
            }
            values |= {layout: Value(number=size * count / 1e12, unit="TB") for layout, size in sizes.items()}
            case = {"data set": name, "augmentations": str(num_augmentations), "captions": str(num_captions)}
            yield Row(case=case, values=values)
