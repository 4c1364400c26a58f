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

NAME = '<b>ours</b> <script>alert("name")</script> <img src=x onerror=alert(1)> \u65e5\u672c \u202eright to left'
TITLE = "Colours <i>up close</i>"
WHEN = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
EVALUATED = {"when": WHEN.isoformat(), "version": "9.8.7", "weights_sha256": "ab" * 32, "device": "a <small> machine"}
NAMES = list(COLOURS)


def picture(colour, seed):
    return encoded(colour, size=(210, 140), noise=30, seed=seed)


def classification(folder):
    """Noisy mixtures of colours, some of them taken for others; one that is broken, and one class without an image."""
    rng, samples = np.random.default_rng(0), {"00-broken": {"png": b"no image", "cls": b"0"}}
    for number in range(60):
        label = int(rng.integers(3))
        colour = 0.6 * np.array(COLOURS[NAMES[label]]) + 0.6 * rng.random(3)
        samples[f"{number:03d}"] = {"png": picture(colour, number), "cls": b"%d" % label}
    return write_layout(folder / "wds_colours_test", samples, classnames=NAMES, templates=("a {c} thing", "{c}"))


def retrieval(folder):
    """Mixtures of colours with one to three captions; the first names the strongest, others may be wrong."""
    rng, samples = np.random.default_rng(0), {}
    for number in range(14):
        mixture = rng.random(4)
        colour = mixture @ np.array(list(COLOURS.values()))
        captions = [f"{NAMES[int(mixture.argmax())]} <img src=x onerror=alert({number})>"]
        captions += [f"a {name} thing, number {number}" for name in NAMES[: number % 3]]
        shown = {"png": picture(colour / colour.max(), number), "txt": "\n".join(captions).encode()}
        samples[f"{number:03d}"] = shown
    return write_layout(folder / "wds_captions_test", samples, kind="retrieval")


def measured(folder):
    """Return two models, one of which takes little notice of green, measured on both data sets."""
    benchmarks = [open_benchmark(write(folder)) for write in (classification, retrieval)]
    latency = Latency(image_ms=12.0, text_ms=3.0, device="this <machine>", source="measured")
    models = []
    for name, weights in ((NAME, (3.0, 3.0, 3.0)), ("half blind", (3.0, 0.6, 3.0))):
        session = session_of(ColourModel(ColourTower(weights)))
        found = {one.name: attrs.evolve(evaluate_benchmark(session, one), evaluated=EVALUATED) for one in benchmarks}
        models.append(ModelResults(name=name, results=found, num_parameters=12_345_678, latencies=(latency,)))
    return models


def written(folder):
    """Write a page with everything in it; return its path and the models."""
    models = [published_model(name) for name in ("mobileclip_s0", "mobileclip2_s2", "mobileclip_b")]
    models[1] = attrs.evolve(models[1], reference="mobileclip_s0")
    models, path = [*measured(folder), *models], folder / "report.html"
    write_report(path, models, title=TITLE, when=WHEN)
    return path, models
