"""A page for each named model, and an overview.

`count_models.py` writes `models.json`. Published accuracies and latencies come from the files that evaluation reports
use.
"""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[2]
# Sizes as the papers write them; other sizes are in capitals.
_TITLES = {"blt": "B (LT)", "l14": "L-14"}
_IMAGENET = "imagenet1k"
_RETRIEVAL = {
    "Flickr30k": "retrieval/flickr_1k_test_image_text_retrieval",
    "MSCOCO": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
}
# Models for which open_clip's tags and the release's README give different filters.
_TWO_FILTERS = tuple(f"mobileclip{size}" for size in ("_s3", "_s4", "2_s0", "2_s2", "2_b", "2_s3", "2_s4"))
_COUNTED = (
    "Multiply-accumulates (GMACs) are for one image and one text of full length in the folded model. "
    "`mobileclip info` counts them. The papers' tables call them FLOPs."
)


def model_names() -> tuple[str, ...]:
    """Return the models that have a page."""
    return tuple(_models())


def title_of(name: str) -> str:
    """Return a model's name as the papers write it: `MobileCLIP2-S0` of `mobileclip2_s0`."""
    family, _, size = name.partition("_")
    return f"{family.replace('mobileclip', 'MobileCLIP')}-{_TITLES.get(size, size.upper())}"


def model_pages() -> dict[str, str]:
    """Return the pages by path below `docs/`, overview first."""
    return {"models/index.md": _overview()} | {f"models/{name}.md": _page(name) for name in model_names()}


def average(name: str) -> float:
    """Return the mean of the published main metrics of the 38 data sets, in per cent."""
    results = _published(name)
    return 100 * fmean(results[entry.key]["main_metric"] for entry in _suite())


def _overview() -> str:
    rows = "\n".join(_row(name) for name in model_names())
    titles = ("model", "parameters, millions", "MB in float16", "image", "GMACs", "ImageNet-1k", "mean of 38")
    return f"""# Models

```
mobileclip list                  # models and towers by name
mobileclip info mobileclip_s2    # a model's spec, parameters and input
```

| {" | ".join(titles)} | iPhone, ms | licence of the weights |
|---|---|---|---|---|---:|---:|---|---|
{rows}

- Sums are image tower + text tower.
- Parameters are those of the folded model; in float16, each takes two bytes.
- The column `image` is the side in pixels. Pixels are in [0, 1]; "normalised" models use CLIP's mean and std.
- {_COUNTED}
- Accuracies are published, in per cent: zero-shot top-1 on ImageNet-1k, and the mean of the main metrics of the papers'
  38 data sets. [Evaluation](../evaluation.md) measures them.
- Latencies are published: {_latencies()["device"]}. [Latency in Python](../latency.md) has our measurements.
- The code is MIT. The weights have Apple's licence: read it first.
"""


def _row(name: str) -> str:
    towers = _models()[name]["towers"]
    latency = _latencies()["models"][name]
    parameters = " + ".join(f"{tower['parameters']['folded'] / 1e6:.1f}" for tower in towers.values())
    megabytes = " + ".join(f"{2 * tower['parameters']['folded'] / 1e6:.0f}" for tower in towers.values())
    image = towers["image"]["input"]
    pixels = f"{image['size']}{', normalised' if any(image['mean']) else ''}"
    macs = " + ".join(f"{tower['macs'] / 1e9:.1f}" for tower in towers.values())
    return (
        f"| [{title_of(name)}]({name}.md) | {parameters} | {megabytes} | {pixels} | {macs} "
        f"| {100 * _published(name)[_IMAGENET]['acc1']:.1f} | {average(name):.1f} "
        f"| {latency['image_ms']} + {latency['text_ms']} | `apple-amlr` |"
    )


def _page(name: str) -> str:
    model = _models()[name]
    parts = [f"# {title_of(name)}", _use(name), _input(name, model["towers"]), _size(model["towers"])]
    return "\n\n".join([*parts, _accuracy(name), _latency(name), _training(name)]) + "\n"


def _use(name: str) -> str:
    model = _models()[name]
    return f"""```
mobileclip classify photo.jpg "a cat" "a dog" -m {name}
```

```python
clip = mobileclip.load("{name}")  # downloads the published weights once (extra `hub`)
print(clip.classify("photo.jpg", ["a cat", "a dog"]))
```

For your own weights file, in any layout, use `-m NAME=FILE` or `checkpoint="FILE"`.

The published weights are `{model["weights"].partition("#")[0]}`. Their licence is Apple's (`{model["licence"]}`), for
research only."""


_FILTERS = """

The filter of the published figures is unknown: open_clip's tags specify bilinear, the release's README bicubic.
`--interpolation bicubic` evaluates with bicubic; you can also evaluate [both](../evaluation.md#the-resize-filter)."""


def _input(name: str, towers: dict[str, Any]) -> str:
    image, text = towers["image"]["input"], towers["text"]["input"]
    size = f"{image['size']} x {image['size']} pixels"
    return f"""## Input

| input | value |
|---|---|
| image | {size}, RGB; resize the shorter side ({image["interpolation"]}, antialiased), crop the centre |
| mean | {_triple(image["mean"])} of pixels in [0, 1] |
| std | {_triple(image["std"])} |
| text | {text["context_length"]} ids, including start and end token, padded with {text["pad_id"]} |
| tokenizer | CLIP's byte pairs, {text["vocab_size"]:,} ids |
| embedding | {towers["image"]["embedding_dim"]} numbers, of unit length |

`clip.transform` and `clip.tokenizer` do this; exports store the values.{_FILTERS if name in _TWO_FILTERS else ""}"""


def _triple(values: list[float]) -> str:
    return ", ".join(f"{value:g}" if value in (0, 1) else str(value) for value in values)


def _size(towers: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | `{tower['kind']}` | {tower['parameters']['training']:,} | {tower['parameters']['folded']:,} "
        f"| {tower['macs'] / 1e9:.2f} |"
        for name, tower in towers.items()
    )
    return f"""## Size

| tower | kind | parameters, training | folded | GMACs |
|---|---|---:|---:|---:|
{rows}

{_COUNTED}"""


def _accuracy(name: str) -> str:
    results = _published(name)
    rows = "\n".join(
        f"| {title} | {100 * results[key]['text_retrieval_recall@1']:.1f} "
        f"| {100 * results[key]['image_retrieval_recall@1']:.1f} |"
        for title, key in _RETRIEVAL.items()
    )
    sets = "\n".join(
        f"    | {entry.name} | `{entry.main_metric}` | {100 * results[entry.key]['main_metric']:.1f} |"
        for entry in _suite()
    )
    return f"""## Accuracy, as published

```
mobileclip eval {name} --suite quick
```

Zero-shot, in per cent: {100 * results[_IMAGENET]["acc1"]:.2f} top-1 on ImageNet-1k, and {average(name):.2f} as the mean
of 38 data sets.

| retrieval, R@1 | image → text | text → image |
|---|---:|---:|
{rows}

??? note "All 38 data sets"

    | data set | metric | per cent |
    |---|---|---:|
{sets}"""


def _latency(name: str) -> str:
    latency = _latencies()["models"][name]
    published = f"{latency['image_ms']} ms for an image and {latency['text_ms']} ms for a text"
    return f"## Latency\n\nPublished: {published} ({_latencies()['device']})."


def _training(name: str) -> str:
    recipe = (
        Path("recipes") / f"{name.replace('mobileclip_', 'train_').replace('mobileclip2_', 'train_mobileclip2_')}.py"
    )
    recipe = recipe.with_name(recipe.name.replace("blt", "b_lt"))
    if not (ROOT / recipe).is_file():
        return (
            "## Train it\n\nThere is no recipe for this model; [training](../training.md) explains how to define a run."
        )
    return f"""## Train it

```
python {recipe.as_posix()} --tiny    # a test run in a minute, without data
python {recipe.as_posix()} --show    # the published settings as JSON
```

[Training](../training.md) lists the requirements; [fine-tuning](../finetuning.md) starts from trained weights."""


def _published(name: str) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, dict[str, float]]] = _json("mobileclip/evaluation/published.json")
    return figures[name]


def _latencies() -> dict[str, Any]:
    latencies: dict[str, Any] = _json("mobileclip/evaluation/latencies.json")
    return latencies


def _models() -> dict[str, Any]:
    models: dict[str, Any] = _json("docs/site/models.json")
    return models


@cache
def _json(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


@cache
def _suite() -> tuple[Any, ...]:
    """Return the suite's entries, without importing the library, which needs PyTorch."""
    suite: tuple[Any, ...] = runpy.run_path(str(ROOT / "mobileclip" / "evaluation" / "suite.py"))["SUITE"]
    return suite
