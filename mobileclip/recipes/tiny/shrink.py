"""Reduces any recipe to a tiny run for `--tiny`, with a drawn data set and small models."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any, TypeVar

import attrs
import numpy as np
import torch
from torch import nn

from mobileclip.data import (
    ReinforcedSample,
    ReinforcementCard,
    augmentation_rng,
    count_samples,
    datacompdr_augmentation,
    expand_shards,
    write_shards,
)
from mobileclip.data.shards.sidecars import TeacherEntry, card_of_shards, write_card
from mobileclip.datasets import (
    LabelledPipelineSpec,
    RowOptions,
    ShardSource,
    as_source,
    find_class_names,
    open_data_set,
)
from mobileclip.encoders import (
    CoCaSpec,
    TextTransformerSpec,
    ViTSpec,
    load_model,
    save_model,
)
from mobileclip.evaluation import SUITES, EvaluationSpec, find_task
from mobileclip.evaluation.tasks.catalogue import open_zero_shot
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.processes import this_process
from mobileclip.recipes.distilling import DistilSpec
from mobileclip.recipes.tiny.few_samples import first_samples
from mobileclip.recipes.tiny.scenes import SHAPES, draw_shape, jpeg, scene_samples
from mobileclip.recipes.tiny.shapes import OUTLINES
from mobileclip.reinforce import CheckpointCaptioner, CheckpointTeacher, ReinforcementSpec
from mobileclip.storage import atomic_folder, write_text
from mobileclip.training import CosineSchedule, RunSpec, TrainingSpec, follow_card
from mobileclip.training.finetuning.run import FinetuneSpec

FOLDER = Path("outputs") / "tiny"
SMALL_MODEL = "icons"
"""Name of a model in the package, for images of 32 x 32 pixels."""
NUM_SAMPLES, SAMPLES_PER_SHARD = 48, 12
NUM_STEPS, BATCH_SIZE = 2, 8
_TEACHER_DIM = 32
_NAMES = ("drawn-a", "drawn-b")

Spec = TypeVar("Spec")


@singledispatch
def shrink(spec: Any, rows: RowOptions | None = None) -> Any:  # noqa: ARG001  runs take it
    """Return a reduced spec: few samples, few steps, and a shallow or small model unless the spec names a model.

    With data in the spec, the reduced spec uses the first samples; without data, it uses drawn samples (see `drawn`).

    Args:
        spec: spec of a recipe; the spec's class must be in `mobileclip.recipes.kinds.KINDS`.
        rows: options for reading rows of lists and tables, for specs without such options.

    Raises:
        ValueError, OSError: if the data that the spec names does not exist or cannot be read.
    """
    raise ValueError(f"--tiny is for the library's own specs, but the spec is a {type(spec).__name__}")


@shrink.register
def _(spec: RunSpec, rows: RowOptions | None = None) -> RunSpec:
    data = _few(spec.data, rows)
    card = card_of_shards(expand_shards(data.shards)) if getattr(data, "reinforced", False) else None
    if card is not None and getattr(data, "teacher_columns", None):
        data = attrs.evolve(data, teacher_columns=(sum(card.teacher_dims[:-1]), sum(card.teacher_dims)))
    model = spec.model if spec.initial_weights is not None else shallow(spec.model)
    training = _few_steps(spec.training, NUM_STEPS)
    small = attrs.evolve(spec, model=fitted_to_data(model, data), data=data, training=training)
    return follow_card(small, spec)[0]


@shrink.register
def _(spec: ReinforcementSpec, *_: object) -> ReinforcementSpec:
    captioner = spec.captioner
    is_here = isinstance(captioner, CheckpointCaptioner) and Path(captioner.checkpoint).exists()
    if captioner is not None and not is_here:
        num_captions = getattr(captioner, "num_captions", 5)
        captioner = CheckpointCaptioner(checkpoint=str(small_captioner()), num_captions=num_captions, max_length=12)
    return attrs.evolve(
        spec,
        source=_copy(spec.source) if spec.source is not None else drawn(),
        teachers=tuple(
            CheckpointTeacher(
                checkpoint=str(small_model(seed) if seed else SMALL_MODEL),
                logit_scale=getattr(one, "logit_scale", None),
            )
            for seed, one in enumerate(spec.teachers)
        ),
        captioner=captioner,
        num_compared=0,  # random teachers cannot agree, so there is nothing to measure
    )


@shrink.register
def _(spec: FinetuneSpec, *_: object) -> FinetuneSpec:
    def few(path: str | None) -> str:
        return str(drawn()) if path is None else _copy(open_data_set(path, rows=spec.rows).source)

    untouched = FinetuneSpec()
    small: dict[str, Any] = {
        "held_out": 0.4,
        "batch_size": 16,
        "epochs": 20,
        "learning_rate": 1e-3,
        "templates": ("{}",),
    }
    return attrs.evolve(
        spec,
        checkpoint=spec.checkpoint or SMALL_MODEL,
        data=str(drawn_shapes()) if spec.data is None else few(spec.data),
        test=spec.test and few(spec.test),
        retention_tasks=tuple(map(few, spec.retention_tasks or (None,))),
        **{name: value for name, value in small.items() if getattr(spec, name) == getattr(untouched, name)},
    )


@shrink.register
def _(spec: DistilSpec, *_: object) -> DistilSpec:
    file = FOLDER / "texts.txt"
    if not spec.data or not Path(spec.data[0].partition("=")[2] or spec.data[0]).exists():
        captions = (text for one in scene_samples(NUM_SAMPLES, seed=0) for text in one.captions)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{text}\n" for text in captions))
        spec = attrs.evolve(spec, data=(str(file),))
    is_chosen = spec.kind == "teacher" or spec.width is not None
    return attrs.evolve(
        spec,
        model=spec.model if spec.model and Path(spec.model).exists() else SMALL_MODEL,
        width=spec.width if is_chosen else 64,
        context_length=min(spec.context_length, 24),
        batch_size=min(32, spec.batch_size),
        training=_few_steps(spec.training, 10),
    )


@shrink.register
def _(spec: EvaluationSpec, *_: object) -> EvaluationSpec:
    names = spec.datasets or (SUITES[spec.suite] if spec.data is not None else ())
    tasks = [one for one in (find_task(name, spec.data) for name in names) if one.opener is open_zero_shot]
    copies = tuple(_copy(open_data_set(one.path, rows=spec.rows).source) for one in tasks)
    return attrs.evolve(spec, datasets=copies or (str(drawn()),), data=None)


def fitted_to_data(model: Any, data: Any) -> Any:
    """Return a model spec with the data's inputs and classes."""
    changes: dict[str, Any] = {}
    for name in ("image", "text"):
        tower: Any = getattr(model, name, None)
        contract = getattr(data, name, None)
        if contract is not None and attrs.has(type(tower)) and hasattr(tower, "input"):
            changes[name] = attrs.evolve(tower, input=contract)
    for name in ("num_classes", "class_names"):
        if hasattr(model, name) and hasattr(data, name):
            changes[name] = getattr(data, name)
    return attrs.evolve(model, **changes) if changes else model


def shallow(spec: Spec) -> Spec:
    """Return a model's spec with at most one block per stage or tower; widths and inputs do not change."""
    changes = {
        field.name: _shallow_part(field.name, getattr(spec, field.name))
        for field in attrs.fields(type(spec))  # type: ignore[arg-type]
    }
    return attrs.evolve(spec, **changes)  # type: ignore[misc]


def _shallow_part(name: str, value: Any) -> Any:
    if name.rpartition("_")[2] == "depth" and isinstance(value, int):
        return min(value, 1)
    if isinstance(value, tuple):
        return tuple(_shallow_part("", one) for one in value)
    return shallow(value) if attrs.has(type(value)) else value


def drawn(folder: Path | None = None) -> Path:
    """Write the drawn data set, unless it exists, and return its folder.

    Each scene has a real caption, five synthetic captions, its left shape as class, and stored embeddings of two
    simulated teachers: a random vector per scene plus noise.

    Args:
        folder: folder of the data set; None for `outputs/tiny/scenes`.
    """
    place = folder or FOLDER / "scenes"
    if place.exists():
        return place
    policy = datacompdr_augmentation(224)
    with atomic_folder(place) as partial:
        samples = []
        for index, one in enumerate(scene_samples(NUM_SAMPLES, seed=0)):
            rng = np.random.default_rng(index)
            code = rng.standard_normal(2 * _TEACHER_DIM)

            def seen(count: int, rng: np.random.Generator = rng, code: Any = code) -> Any:
                return (code + 0.3 * rng.standard_normal((count, len(code)))).astype(np.float32)

            label = one.captions[0].split()[3]  # "a SIZE COLOUR SHAPE and ..."
            samples.append(
                ReinforcedSample(
                    key=one.key,
                    captions=one.captions,
                    syn_captions=one.syn_captions,
                    image=one.image,
                    url=one.url,
                    metadata={**one.metadata, "label": label},
                    augmentations=[policy.sample(augmentation_rng(0, one.key, view), (240, 180)) for view in range(2)],
                    image_emb=seen(2),
                    text_emb=seen(len(one.captions)),
                    syn_text_emb={name: seen(len(texts)) for name, texts in one.syn_captions.items()},
                )
            )
        write_shards(partial, samples, samples_per_shard=SAMPLES_PER_SHARD)
        teachers = tuple(
            TeacherEntry(
                name=name, dim=_TEACHER_DIM, logit_scale=50.0, weights_sha256="0" * 64, image=ImageInput(size=224)
            )
            for name in _NAMES
        )
        write_card(
            partial,
            ReinforcementCard(
                teachers=teachers, augmentation=policy, num_augmentations=2, layout="npz", num_samples=NUM_SAMPLES
            ),
        )
    return place


def drawn_shapes() -> Path:
    """Write a folder of 20 images for each of eight shapes, unless the folders exist; return the parent folder."""
    place = FOLDER / "shapes"
    if not place.exists():
        rng = np.random.default_rng(2)
        with atomic_folder(place) as partial:
            for shape in OUTLINES:
                (partial / shape).mkdir()
                for index in range(20):
                    (partial / shape / f"{index:02d}.jpg").write_bytes(jpeg(draw_shape(shape, rng, 120, 90)))
    return place


def small_captioner() -> Path:
    """Write a small captioner with random weights, unless the file exists, and return the file.

    As in a trained captioner, few ids have nearly all of the probability, so sampling sorts few of them.
    """
    size: dict[str, Any] = {"width": 64, "depth": 1, "num_heads": 2, "embedding_dim": 64}
    spec = CoCaSpec(
        image=ViTSpec(**size, patch_size=16, stem="patch", class_position=True, input=ImageInput(size=64)),
        text=TextTransformerSpec(**size, causal=True, input=TextInput(context_length=24)),
        decoder_depth=1,
        decoder_heads=2,
        num_queries=9,
        pooler_heads=2,
    )

    def build() -> nn.Module:
        model = spec.build()
        model.decoder.project.weight.data.mul_(8)
        return model

    return _saved("captioner", build)


def small_model(seed: int) -> Path:
    """Write a randomly initialised `SMALL_MODEL`, unless the file exists, and return the file."""
    spec: Any = load_model(SMALL_MODEL, fold=False).spec
    return _saved(f"model-{seed}", spec.build, seed)


def _saved(name: str, build: Callable[[], nn.Module], seed: int = 0) -> Path:
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_model(build(), path)
    return path


def _few(data: Any, rows: RowOptions | None) -> Any:
    """Return the data spec with the first samples, or drawn samples, in full batches."""
    if not hasattr(data, "shards"):
        raise ValueError(f"--tiny uses the first samples of shards, but {type(data).__name__} has no shards")
    processes = this_process().size
    labelled = isinstance(data, LabelledPipelineSpec)
    changes: dict[str, Any] = {"num_workers": 0}
    if not data.shards:
        changes["shards"] = (f"{drawn()}/{{{0:08d}..{NUM_SAMPLES // SAMPLES_PER_SHARD - 1:08d}}}.tar",)
        if hasattr(data, "caption_sets"):
            changes["caption_sets"] = None  # the drawn caption set has a different name
        if labelled:
            changes |= {"class_names": tuple(sorted(SHAPES)), "num_classes": len(SHAPES)}
    elif getattr(data, "reinforced", False) or (
        isinstance(source := as_source(data.shards, rows=rows or RowOptions()), ShardSource) and labelled
    ):
        changes["shards"] = expand_shards(data.shards)[:processes]
    else:
        copy = _copy(source)
        changes["shards"] = tuple(str(one) for one in sorted(Path(copy).glob("*.tar")))
        if labelled and (names := find_class_names((copy,))):
            changes |= {"class_names": names, "num_classes": len(names)}
    num_samples = count_samples(expand_shards(changes["shards"]))
    batch_size = min(BATCH_SIZE, num_samples) // processes * processes
    if not batch_size:
        raise ValueError(
            f"{num_samples} samples are too few for {processes} processes; expected at least one sample per process"
        )
    return attrs.evolve(data, **changes, num_samples=num_samples, batch_size=batch_size)


def _few_steps(training: TrainingSpec, steps: int) -> TrainingSpec:
    peak, final = training.schedule.peak, training.schedule.final
    schedule = CosineSchedule(peak=peak, final=final, warmup_steps=1, total_steps=steps)
    return attrs.evolve(training, schedule=schedule, precision="float32", log_every_steps=1)


def _copy(source: Any) -> str:
    return first_samples(source, FOLDER / "samples")


__all__ = ["SMALL_MODEL", "drawn", "drawn_shapes", "fitted_to_data", "shallow", "shrink", "small_captioner"]
