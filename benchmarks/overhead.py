"""What a training step costs: plain, reinforced, and with teachers that look at every batch. The paper's table 4d.

Command:   python -m benchmarks overhead
Hardware:  any CPU with nothing else to do, or a GPU with --device cuda
Time:      about twelve minutes on two cores, half of them for the online teachers (--no-online leaves them out)
Result:    samples/s of each way, loader included, and over plain training: 0.996 for reinforced data on two cores. The
           paper: 1.3 h plain, 1.3 h reinforced, 4.1 h with online teachers, 21.1 h with an online captioner too, per
           12.8M samples on 8 A100
"""

from __future__ import annotations

import io
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import ClassVar

import attrs
import numpy as np
import torch
from attrs import validators

from benchmarks.harness import Bench, Case, Row, Value, in_turn, ratio
from benchmarks.random_weights import random_weights
from mobileclip.blocks import models
from mobileclip.data import (
    BatchSource,
    Captions,
    Layout,
    OnlinePipelineSpec,
    ReinforcedBatch,
    ReinforcedPipelineSpec,
    ReinforcedSample,
    Tokenizer,
    augmentation_rng,
    datacompdr_augmentation,
    write_shards,
)
from mobileclip.encoders import DualEncoderSpec
from mobileclip.losses import ContrastiveLossSpec, LossSpec, ReinforcedLossSpec
from mobileclip.recipes.tiny.scenes import scenes
from mobileclip.reinforce import (
    Captioner,
    CaptionerSpec,
    CocaCaptioner,
    OnlineTeachers,
    OpenClipTeacher,
    TeacherEnsemble,
    TeacherSpec,
    build_ensemble,
)
from mobileclip.training import CosineSchedule, TrainingSpec, World, read_metrics, train

NUM_SAMPLES_OF_12M = 12_800_000
PLAIN, REINFORCED = "plain CLIP, two captions", "reinforced data"
TEACHERS_ONLINE, ALL_ONLINE = "captions stored, teachers online", "nothing stored: captioner and teachers online"
_SAMPLES_PER_SHARD = 16


@attrs.frozen(kw_only=True)
class OverheadBenchSpec(Bench):
    """What to measure, and how often.

    Args:
        student: name of the model that trains.
        teachers: open_clip architectures of the online teachers; their weights are random, which takes the same time.
        captioner: the online captioner's architecture; it writes captions of the greatest length.
        batch_size: samples per step.
        num_steps: steps that are timed in a round, after two that are not.
        num_rounds: plain and reinforced training take turns so often.
        num_online_steps: steps that are timed with online teachers, which are slow.
        online: whether to measure these at all.
        width: of the JPEG pictures, in pixels; they are three quarters as high.
        num_augmentations: stored per picture.
        layout: form of the stored embeddings.
        num_workers: processes of the loader.
        device: where everything computes.
        precision: of the student's forward pass.
    """

    student: str = "mobileclip_s0"
    teachers: tuple[str, ...] = ("ViT-L-14", "ViT-L-14")
    captioner: str = "coca_ViT-L-14"
    batch_size: int = attrs.field(default=16, validator=validators.ge(2))
    num_steps: int = attrs.field(default=6, validator=validators.gt(0))
    num_rounds: int = attrs.field(default=5, validator=validators.gt(0))
    num_online_steps: int = attrs.field(default=2, validator=validators.gt(0))
    online: bool = True
    width: int = attrs.field(default=512, validator=validators.ge(64))
    num_augmentations: int = attrs.field(default=30, validator=validators.gt(0))
    layout: Layout = "pth.gz"
    num_workers: int = attrs.field(default=1, validator=validators.ge(0))
    device: str = "cpu"
    precision: str = "float32"

    smallest: ClassVar[Mapping[str, object]] = {
        "online": False,
        "batch_size": 2,
        "num_steps": 1,
        "num_rounds": 1,
        "width": 64,
        "num_augmentations": 2,
        "num_workers": 0,
    }

    def cases(self) -> Iterator[Case]:
        """Yield all ways, which take turns."""
        yield Case(labels={"student": self.student}, measure=partial(measure_all, self))


@attrs.frozen(kw_only=True)
class Training:
    """One comparison: a student on the same pictures in several ways.

    Args:
        spec: what to measure.
        student: the model that trains.
        folder: where shards and runs go.
        dims: of the stored embeddings' teachers.
    """

    spec: OverheadBenchSpec
    student: DualEncoderSpec
    folder: Path
    dims: tuple[int, ...]

    def write_data(self) -> None:
        """Write reinforced shards of drawn scenes, with embeddings of random directions."""
        count = self.spec.batch_size * (self.spec.num_steps + 2)
        samples = scene_samples(self.spec, self.dims, max(count, 2 * _SAMPLES_PER_SHARD))
        write_shards(self.folder / "data", samples, layout=self.spec.layout, samples_per_shard=_SAMPLES_PER_SHARD)

    def steps(self, loss: LossSpec, batches: BatchSource[ReinforcedBatch], num_steps: int) -> list[float]:
        """Train, and return the seconds of every step but the first two, waiting for data included."""
        warmup = 2
        output = self.folder / "run"
        training = TrainingSpec(
            loss=loss,
            schedule=CosineSchedule(warmup_steps=1, total_steps=warmup + num_steps),
            precision="bfloat16" if self.spec.precision == "bfloat16" else "float32",
            log_every_steps=1,
        )
        torch.manual_seed(0)
        model, world = self.student.build(), World(device=self.spec.device)
        train(training, model=model, batches=batches, output=output, world=world)
        seconds = [line["seconds"] for line in read_metrics(output / "metrics.jsonl")]
        shutil.rmtree(output)
        return seconds[warmup:]

    def pipeline(
        self, *, reinforced: bool, online: tuple[int, ...] = (), captions: Captions = "both"
    ) -> BatchSource[ReinforcedBatch]:
        """Return the pictures with what is stored beside them, or without."""
        spec = ReinforcedPipelineSpec(
            shards=[str(path) for path in sorted((self.folder / "data").glob("*.tar"))],
            batch_size=self.spec.batch_size,
            image=self.student.image.input,
            text=self.student.text.input,
            reinforced=reinforced,
            captions=captions,
            num_workers=self.spec.num_workers,
        )
        return (OnlinePipelineSpec.of(spec, online=online) if online else spec).build()

    def plain(self) -> list[float]:
        """Time plain CLIP training."""
        return self.steps(ContrastiveLossSpec(), self.pipeline(reinforced=False), self.spec.num_steps)

    def reinforced(self) -> list[float]:
        """Time training on what is stored."""
        loss = ReinforcedLossSpec(teacher_dims=self.dims, teacher_logit_scales=(100.0,) * len(self.dims))
        return self.steps(loss, self.pipeline(reinforced=True), self.spec.num_steps)

    def online(self, teachers: TeacherEnsemble, captioner: Captioner | None) -> list[float]:
        """Time training with teachers, and a captioner where there is one, that look at every batch."""
        captions: Captions = "both" if captioner is None else "real"
        source = OnlineTeachers(
            batches=self.pipeline(reinforced=False, online=teachers.image_sizes, captions=captions),
            teachers=teachers,
            captioner=captioner,
            tokenizer=Tokenizer(self.student.text.input),
        )
        loss = ReinforcedLossSpec(teacher_dims=teachers.dims, teacher_logit_scales=teachers.logit_scales)
        return self.steps(loss, source, self.spec.num_online_steps)


def measure(
    training: Training, *, teachers: Sequence[TeacherSpec] = (), captioner: CaptionerSpec | None = None
) -> list[Row]:
    """Return samples per second of all ways, and over plain training: the median of what the rounds give.

    Args:
        training: the comparison.
        teachers: the online ones; none to leave them out.
        captioner: the online one; None to leave it out.
    """
    spec = training.spec
    training.write_data()
    rounds = in_turn({PLAIN: training.plain, REINFORCED: training.reinforced}, rounds=spec.num_rounds)
    if teachers:
        ensemble = build_ensemble(teachers, spec.device)
        rounds[TEACHERS_ONLINE] = [training.online(ensemble, None)]
        if captioner is not None:
            rounds[ALL_ONLINE] = [training.online(ensemble, captioner.build(spec.device))]
    return rows(rounds, spec.batch_size)


def rows(rounds: Mapping[str, Sequence[Sequence[float]]], batch_size: int) -> list[Row]:
    """Return what came out.

    Args:
        rounds: seconds of every timed step, by way, one entry a round.
        batch_size: samples per step.
    """
    steps = {way: [one for each in several for one in each] for way, several in rounds.items()}
    plain, found = [median(one) for one in rounds[PLAIN]], []
    for way, several in rounds.items():
        rate = batch_size / median(steps[way])
        # What runs once is set against all rounds.
        whole = len(several) == len(plain)
        over = (
            ratio(plain, list(map(median, several))) if whole else ratio([median(steps[PLAIN])], [median(steps[way])])
        )
        values = {
            "rate": Value(number=rate, unit="samples/s"),
            "over plain": over,
            "12.8M samples": Value(number=NUM_SAMPLES_OF_12M / rate / 3600, unit="hours"),
        }
        found.append(Row(case={"way": way}, values=values))
    return found


def scene_samples(spec: OverheadBenchSpec, dims: tuple[int, ...], count: int) -> list[ReinforcedSample]:
    """Return drawn scenes with stored augmentations and embeddings of random directions."""
    rng = np.random.default_rng(0)
    policy = datacompdr_augmentation(224)
    size = (spec.width, spec.width * 3 // 4)

    def directions(rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        parts = [rng.standard_normal((rows, dim)) for dim in dims]
        unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
        return np.concatenate(unit, axis=1).astype(np.float32)

    samples = []
    for index, scene in enumerate(itertools.islice(scenes(0), count)):
        stream = io.BytesIO()
        scene.draw(rng, *size).save(stream, "JPEG", quality=90)
        real, *synthetic = scene.captions()
        key = f"{index:08d}"
        samples.append(
            ReinforcedSample(
                key=key,
                captions=(real,),
                syn_captions={"syn_text": synthetic},
                image=stream.getvalue(),
                augmentations=[
                    policy.sample(augmentation_rng(0, key, number), size) for number in range(spec.num_augmentations)
                ],
                image_emb=directions(spec.num_augmentations),
                text_emb=directions(1),
                syn_text_emb={"syn_text": directions(len(synthetic))},
            )
        )
    return samples


def measure_all(spec: OverheadBenchSpec) -> list[Row]:
    """Return what every way takes, with teachers of random weights."""
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as name:
        folder = Path(name)
        teachers: list[TeacherSpec] = []
        captioner = None
        if spec.online:
            teachers = [
                OpenClipTeacher(model=model, pretrained=random_weights(model, folder, seed=number))
                for number, model in enumerate(spec.teachers)
            ]
            weights = random_weights(spec.captioner, folder)
            captioner = CocaCaptioner(
                model=spec.captioner, pretrained=weights, num_captions=1, max_batch=spec.batch_size
            )
        student = models.resolve(spec.student)
        assert isinstance(student, DualEncoderSpec), "whole models are dual encoders"
        training = Training(spec=spec, student=student, folder=folder, dims=(768, 768))
        return measure(training, teachers=teachers, captioner=captioner)
