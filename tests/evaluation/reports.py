"""What tests of the report are about: two small models measured on data with everything in it that could go wrong."""

from datetime import datetime, timezone

import attrs
import numpy as np

from mobileclip.evaluation import evaluate_benchmark, open_benchmark
from mobileclip.evaluation.report import write_report
from mobileclip.evaluation.results import Latency, ModelResults, published_model
from tests.data.made_samples import write_layout
from tests.evaluation.models import COLOURS, ColourModel, ColourTower, session_of
from tests.evaluation.tasks.test_evaluate import encoded

CLASS_NAMES = ("red", "green", "blue", "yellow")
NAME = '<b>ours</b> <script>alert("name")</script> <img src=x onerror=alert(1)> \u65e5\u672c \u202eright to left'
TITLE = "Colours <i>up close</i>"
WHEN = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
EVALUATED = {"when": WHEN.isoformat(), "version": "9.8.7", "weights_sha256": "ab" * 32, "device": "a <small> machine"}


def classification(folder, *, num_images=60):
    """Noisy mixtures of colours, some of them taken for others; one that is broken, and one class without an image."""
    rng, root = np.random.default_rng(0), folder / "wds_colours_test"
    names, samples = list(COLOURS), {"00-broken": {"png": b"no image", "cls": b"0"}}
    for number in range(num_images):
        label = int(rng.integers(3))
        colour = 0.6 * np.array(COLOURS[names[label]]) + 0.6 * rng.random(3)
        picture = encoded(colour, size=(210, 140), noise=30, seed=number)
        samples[f"{number:03d}"] = {"png": picture, "cls": b"%d" % label}
    return open_benchmark(write_layout(root, samples, classnames=CLASS_NAMES, templates=("a {c} thing", "{c}")))


def retrieval(folder, *, num_images=14, seed=0):
    """Mixtures of colours with one to three captions; the first names the strongest, others may be wrong."""
    rng, root = np.random.default_rng(seed), folder / "wds_captions_test"
    names, samples = list(COLOURS), {}
    for number in range(num_images):
        mixture = rng.random(4)
        colour = sum(weight * np.array(COLOURS[name]) for weight, name in zip(mixture, names, strict=True))
        picture = encoded(colour / colour.max(), size=(210, 140), noise=30, seed=number)
        captions = [f"{names[int(mixture.argmax())]} <img src=x onerror=alert({number})>"]
        captions += [f"a {name} thing, number {number}" for name in names[: number % 3]]
        samples[f"{number:03d}"] = {"png": picture, "txt": "\n".join(captions).encode()}
    return open_benchmark(write_layout(root, samples, kind="retrieval"))


class HalfBlind(ColourModel):
    """Takes little notice of green."""

    def __init__(self):
        super().__init__(ColourTower((3.0, 0.6, 3.0)))


def evaluated(model, benchmark):
    return evaluate_benchmark(session_of(model), benchmark)


def measured(folder, models=None, **options):
    """Return models measured on both data sets."""
    models = models or {NAME: ColourModel(), "half blind": HalfBlind()}
    found = {name: {} for name in models}
    for benchmark in (classification(folder), retrieval(folder)):
        for name, model in models.items():
            found[name][benchmark.name] = evaluated(model, benchmark)
    return [
        ModelResults(
            name=name,
            results={key: attrs.evolve(one, evaluated=EVALUATED) for key, one in own.items()},
            num_parameters=12_345_678,
            latencies=(Latency(image_ms=12.0, text_ms=3.0, device="this <machine>", source="measured"),),
            **options,
        )
        for name, own in found.items()
    ]


def written(folder):
    """Write a page with everything in it; return its path and the models."""
    models = [published_model(name) for name in ("mobileclip_s0", "mobileclip2_s2", "mobileclip_b")]
    models[1] = attrs.evolve(models[1], reference="mobileclip_s0")
    models, path = [*measured(folder), *models], folder / "report.html"
    write_report(path, models, title=TITLE, when=WHEN)
    return path, models
