"""A small world to try the evaluation in: a shallow model that knows a little, and drawn scenes to test it on."""

from __future__ import annotations

from pathlib import Path

import attrs

from mobileclip import specs
from mobileclip.data import ImageTextSample
from mobileclip.datasets import open_data_set
from mobileclip.encoders import save_model
from mobileclip.evaluation import SUITES, BenchmarkSample, EvaluationSpec, find_task, write_benchmark
from mobileclip.evaluation.tasks.zero_shot.evaluate import open_zero_shot
from mobileclip.recipes.tiny.few_samples import first_samples
from mobileclip.recipes.tiny.fitted_model import fitted_model
from mobileclip.recipes.tiny.scenes import SHAPES, scene_samples
from mobileclip.recipes.training.tiny import shallow

_NUM_SCENES, _NUM_KNOWN = 96, 64
_TEMPLATES = ("a drawing of a {} and something else", "a {}")


def shrink(models: tuple[str, ...] | None, spec: EvaluationSpec) -> tuple[tuple[str, ...], EvaluationSpec]:
    """Return the models and the evaluation made small.

    Args:
        models: None for a shallow one, made on the spot.
        spec: of its data sets, the first samples are taken; drawn scenes where it names none.

    Raises:
        ValueError, OSError: if there is no data set where one is said to be.
    """
    folder = spec.output.with_name(f"{spec.output.name}-tiny")
    made = folder / "made"
    datasets: tuple[str, ...] = ()
    if spec.datasets or spec.data is not None:
        names = spec.datasets or SUITES[spec.suite]
        tasks = [task for task in (find_task(name, spec.data) for name in names) if task.opener is open_zero_shot]
        opened = [open_data_set(task.path, rows=spec.rows) for task in tasks]
        datasets = tuple(first_samples(one.source, made / "samples", one.name) for one in opened)
    if models is None or not datasets:
        own_models, own_data = write_tiny(made)
        models, datasets = models or own_models, datasets or own_data
    return models, attrs.evolve(spec, output=folder, datasets=datasets, data=None)


def write_tiny(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write a model and two data sets, one of classes and one of captions; return their paths.

    Args:
        folder: made where it is missing; what is there is left as it is.
    """
    model, shapes, captions = (
        folder / name for name in ("shallow_s0.safetensors", "wds_shapes_test", "wds_scenes_test")
    )
    if not (captions / "test" / "nshards.txt").exists():
        _write(model, shapes, captions)
    return (str(model),), (str(shapes), str(captions))


def _write(model: Path, shapes: Path, captions: Path) -> None:
    samples = scene_samples(_NUM_SCENES, seed=0)
    model.parent.mkdir(parents=True, exist_ok=True)
    images = [_image(sample) for sample in samples[:_NUM_KNOWN]]
    texts = [(*sample.captions, *sample.syn_captions["syn_text"]) for sample in samples[:_NUM_KNOWN]]
    spec = shallow(specs.mobileclip_s0())
    spec = attrs.evolve(spec, image=attrs.evolve(spec.image, projection_bias=True))
    save_model(fitted_model(spec, images, texts), model)
    write_benchmark(
        shapes,
        [BenchmarkSample(key=sample.key, image=_image(sample), label=_left_shape(sample)) for sample in samples],
        class_names=SHAPES,
        templates=_TEMPLATES,
    )
    write_benchmark(
        captions,
        [BenchmarkSample(key=sample.key, image=_image(sample), captions=_captions(sample)) for sample in samples],
    )


def _image(sample: ImageTextSample) -> bytes:
    assert sample.image is not None, "scenes are drawn"
    return sample.image


def _captions(sample: ImageTextSample) -> tuple[str, ...]:
    return (*sample.captions, *sample.syn_captions["syn_text"][:2])


def _left_shape(sample: ImageTextSample) -> int:
    """Return which shape is at the left, from a caption that begins `a SIZE COLOUR SHAPE and`."""
    return SHAPES.index(sample.captions[0].split()[3])
