"""A page for each model known by name, and one with all of them, from values that stand elsewhere.

`models.json` is written by `count_models.py`; accuracies and latencies are those that evaluation reports show beside
their own.
"""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[2]
# How the models of the papers are written; what is not here is written in capitals.
_TITLES = {"blt": "B (LT)", "l14": "L-14"}
_IMAGENET = "imagenet1k"
_RETRIEVAL = {
    "Flickr30k": "retrieval/flickr_1k_test_image_text_retrieval",
    "MSCOCO": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
}
# Open_clip's tags say one filter for them, and the release's README another one.
_TWO_FILTERS = tuple(f"mobileclip{size}" for size in ("_s3", "_s4", "2_s0", "2_s2", "2_b", "2_s3", "2_s4"))
_COUNTED = (
    "Multiply-accumulates (GMACs) are those of one image and of one text of full length, folded. "
    "They are counted, not measured, as `mobileclip info` does. The papers' tables call them FLOPs."
)


def model_names() -> tuple[str, ...]:
    """Return the models that have a page."""
    return tuple(_models())


def title_of(name: str) -> str:
    """Return a model's name as the papers write it: `MobileCLIP2-S0` of `mobileclip2_s0`."""
    family, _, size = name.partition("_")
    return f"{family.replace('mobileclip', 'MobileCLIP')}-{_TITLES.get(size, size.upper())}"


def model_pages() -> dict[str, str]:
    """Return the pages by their paths below `docs/`, the overview first."""
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
mobileclip list                  # models and towers known by name
mobileclip info mobileclip_s2    # one of them: spec, parameters, what it expects as input
```

| {" | ".join(titles)} | iPhone, ms | licence of the weights |
|---|---|---|---|---|---:|---:|---|---|
{rows}

- Of two figures, the first is the image tower's and the second the text tower's.
- Parameters are those of the folded form; in float16 each takes two bytes.
- Images: pixels a side, values in [0, 1], normalised by CLIP's mean and std where the table says so.
- {_COUNTED}
- Accuracies are published, in per cent: zero-shot top-1 on ImageNet-1k, and the mean of the main metrics of the papers'
  38 data sets. [Evaluation](../evaluation.md) measures them.
- Latencies are published: {_latencies()["device"]}. [Latency in Python](../latency.md) has what was measured here.
- The code is MIT. The weights' licence is Apple's: read it first.
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
clip = mobileclip.load("{name}")  # fetches the published weights once: the extra `hub`
print(clip.classify("photo.jpg", ["a cat", "a dog"]))
```

With a file of weights, `-c FILE` or `checkpoint="FILE"` takes it instead, in any layout.

The published weights are `{model["weights"].partition("#")[0]}`. Their licence is Apple's (`{model["licence"]}`), for
research only."""


_FILTERS = """

Which filter the published figures had is not known: open_clip's tags of MobileCLIP2 say bilinear, the release's README
bicubic. `--interpolation bicubic` evaluates with the other one,
[or both](../evaluation.md#the-resize-filter)."""


def _input(name: str, towers: dict[str, Any]) -> str:
    image, text = towers["image"]["input"], towers["text"]["input"]
    size = f"{image['size']} x {image['size']} pixels"
    return f"""## What it expects

| input | what it is |
|---|---|
| image | {size}, RGB: the shorter side resized, {image["interpolation"]}, antialiased; the centre cropped |
| mean | {_triple(image["mean"])} of pixels in [0, 1] |
| std | {_triple(image["std"])} |
| text | {text["context_length"]} ids, start and end token included, filled up with {text["pad_id"]} |
| tokenizer | CLIP's byte pairs, {text["vocab_size"]:,} ids |
| embedding | {towers["image"]["embedding_dim"]} numbers, of unit length |

`clip.transform` and `clip.tokenizer` do this, and an export carries it.{_FILTERS if name in _TWO_FILTERS else ""}"""


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
            "## Train it\n\nThere is no recipe of it; [training](../training.md) says how to make a run of one's own."
        )
    return f"""## Train it

```
python {recipe.as_posix()} --tiny    # the whole path in a minute, without data
python {recipe.as_posix()} --show    # the published run, as JSON
```

[Training](../training.md) says what it needs, and [fine-tuning](../finetuning.md) how to go on from the weights."""


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
    """Return the suite's entries; its file alone is run, since the library would need PyTorch."""
    suite: tuple[Any, ...] = runpy.run_path(str(ROOT / "mobileclip" / "evaluation" / "suite.py"))["SUITE"]
    return suite
