"""Two small models and two data sets of drawn scenes, made once for all tests of evaluation."""

import shutil

import attrs
import pytest

from mobileclip.encoders import save_model
from mobileclip.evaluation import BenchmarkSample
from mobileclip.recipes.tiny import SHAPES
from tests.evaluation.fitted_model import fitted_model
from tests.evaluation.public_layout import write_benchmark
from tests.evaluation.reports import written
from tests.evaluation.scene_models import TEMPLATES, scene_images, scene_texts, small_spec

COUNT = 24
CAPTIONS = 2


@pytest.fixture(autouse=True)
def no_long_measurements(monkeypatch):
    """How long a model takes is asked of a few calls."""
    monkeypatch.setattr("mobileclip.evaluation.features._SECONDS", 0.0)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with two models and two data sets, in the layout of the suite: pictures of pets they are not."""
    root = tmp_path_factory.mktemp("made")
    samples, labels = scene_images(COUNT)
    spec = small_spec()
    spec = attrs.evolve(spec, image=attrs.evolve(spec.image, stages=spec.image.stages[:2]))
    for seed in (0, 1):
        model = fitted_model(spec, [one.image for one in samples], scene_texts(samples, labels), seed=seed)
        save_model(model, root / f"model{seed}.safetensors")
    pets, captioned = [], []
    for one, label in zip(samples, labels, strict=True):
        pets.append(BenchmarkSample(key=one.key, image=one.image, label=label % len(SHAPES)))
        captioned.append(BenchmarkSample(key=one.key, image=one.image, captions=one.captions[:CAPTIONS]))
    write_benchmark(root / "wds_vtab-pets_test", pets, class_names=SHAPES, templates=TEMPLATES, samples_per_shard=10)
    write_benchmark(root / "wds_flickr30k", captioned)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "data")


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The page of a report with everything in it, and the models it was made of."""
    return written(tmp_path_factory.mktemp("report"))
