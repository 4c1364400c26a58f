"""Data sets of coloured pictures with names that nobody should trust, and what a small real model makes of them."""

from __future__ import annotations

from datetime import datetime, timezone

import attrs
import numpy as np

from mobileclip.evaluation import Session, open_benchmark, score
from mobileclip.evaluation.report import (
    Coverage,
    Latency,
    ModelResults,
    Provenance,
    dataset_details,
    published_model,
    write_report,
)
from tests.evaluation.datasets.test_benchmark import write_shard
from tests.evaluation.models import COLOURS, ColourModel, tokenize
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor

# Each holds the colour that the small model knows, and something that must only ever be shown.
CLASS_NAMES = (
    'red <script>alert("class")</script>',
    "green & $x^{2}$ \\frac",
    "blue \u65e5\u672c\u8a9e \U0001f600",
    "yellow" + "y" * 120,
)
TITLE = "<i>Title</i> & more"
WHEN = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)


def classification(folder, *, num_images=60, seed=0):
    """Write a data set in which some images have the colour of another class, and one is broken."""
    root = folder / "wds_colours_test"
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    members = {"00-broken.png": b"no image", "00-broken.cls": b"0"}
    for number in range(num_images):
        label = int(rng.integers(0, 3))
        shown = label if rng.random() < 0.6 else int(rng.integers(0, 4))
        picture = encoded(COLOURS[names[shown]], size=(40, 30), noise=40, seed=number)
        members |= {f"{number:03d}.png": picture, f"{number:03d}.cls": str(label).encode()}
    write_shard(root / "test" / "0.tar", members)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(CLASS_NAMES), encoding="utf-8")
    (root / "zeroshot_classification_templates.txt").write_text("a {c} thing\n{c}")
    return open_benchmark(root)


def retrieval(folder, *, num_images=14, seed=0):
    """Write a data set of mixed colours with captions, some of them wrong."""
    root = folder / "captions"
    rng = np.random.default_rng(seed)
    names, members = list(COLOURS), {}
    for number in range(num_images):
        mixture = rng.random(4)
        colour = sum(weight * np.array(COLOURS[name]) for weight, name in zip(mixture, names, strict=True))
        picture = encoded(colour / colour.max(), size=(300, 200), noise=30, seed=number)
        captions = [f"{names[int(mixture.argmax())]} <img src=x onerror=alert({number})>"]
        captions += [f"a {name} thing, number {number}" for name in names[: number % 3]]
        members |= {f"{number:03d}.png": picture, f"{number:03d}.txt": "\n".join(captions).encode()}
    write_shard(root / "test" / "0.tar", members)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("retrieval")
    return open_benchmark(root)


def features_of(benchmark):
    """Return what the small model makes of a data set, and what it cannot use."""
    session = Session(ColourModel(), transform=to_tensor, tokenize=tokenize, show_progress=False)
    return session.features(benchmark)


def measured(folder, *, name="<b>ours</b>", **options):
    """Return a model measured on both data sets, and the details of both."""
    results, coverage, details = {}, {}, []
    for benchmark in (classification(folder), retrieval(folder)):
        features, report = features_of(benchmark)
        result = score(benchmark, features).result
        results[result.key], coverage[result.key] = result, Coverage.of(report)
        details.append(dataset_details(benchmark, features, model=name))
    model = ModelResults(
        name=name,
        results=results,
        source="measured",
        coverage=coverage,
        num_parameters=12_345_678,
        provenance=Provenance(when=WHEN, version="9.8.7", weights_sha256="ab" * 32, device="a <small> machine"),
        latencies=(Latency(image_ms=12.0, text_ms=3.0, device="this <machine>", source="measured"),),
        **options,
    )
    return model, details


def several(folder):
    """Return published models, one compared with another, and a measured one; and the details of that one."""
    models = [published_model(name) for name in ("mobileclip_s0", "mobileclip2_s2", "mobileclip_b")]
    models[1] = attrs.evolve(models[1], reference="mobileclip_s0")
    ours, details = measured(folder)
    return [*models, ours], details


def written(folder):
    """Write a page with everything in it; return its path, the models and the details."""
    models, details = several(folder)
    path = folder / "report.html"
    write_report(path, models, details, title=TITLE, when=WHEN)
    return path, models, details
