"""The model card of a folder: a `README.md` for the hub, generated from the model's spec."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from mobileclip.encoders import ClassifierSpec, CoCaSpec, DualEncoderSpec, ImageEncoderSpec
from mobileclip.encoders.checkpoints import ModelSpec
from mobileclip.encoders.checkpoints.layouts import Form, TowerSpec, towers
from mobileclip.encoders.checkpoints.saving import tokenizer_of
from mobileclip.encoders.families import TextEncoderSpec
from mobileclip.extras import install_library
from mobileclip.inference.catalogue import num_parameters, type_of
from mobileclip.inputs import HIDDEN, ImageInput, TextInput
from mobileclip.storage import printable

_MAIN, _COUNT = "main_metric", "count_"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$#!])")
_RESEARCH = "apple-amlr"


class Result(Protocol):
    """The result of a model on one data set, with the fields of `mobileclip.evaluation.DatasetResult`."""

    @property
    def key(self) -> str:
        """The key of the data set in results."""

    @property
    def dataset(self) -> str:
        """The name of the data set in tables."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics by name, as fractions of 1; `main_metric` repeats the value of the main metric."""

    @property
    def num_images(self) -> int | None:
        """The number of images in the evaluation; None if unknown."""


def model_card(
    spec: ModelSpec,
    form: Form,
    *,
    layout: str,
    why_not: str | None,
    for_transformers: bool,
    why_not_transformers: str | None,
    source: str,
    licence: str,
    base_model: str | None,
    results: Sequence[Result],
) -> str:
    """Return the text of a model card.

    Args:
        spec: spec of the model.
        form: form of the model's weights: `training`, `branches_folded` or `folded`.
        layout: name of the layout of the weights file.
        why_not: reason why neither open_clip nor timm can load the model; None if either library can load the model.
        for_transformers: whether transformers and sentence-transformers can load the model.
        why_not_transformers: reason why transformers cannot load an image-text model; None if transformers can load the
            model, or the model is not an image-text model.
        source: `hf-hub:owner/name` or `local-dir:folder`, in the notation of open_clip and timm.
        licence: licence of the weights, as the hub's identifier, such as `mit`.
        base_model: owner and name of the hub model that this model was trained or converted from; None if unknown.
        results: the model's results on data sets.
    """
    name = source.partition(":")[2].rpartition("/")[2]
    loading = _loading(spec, form, layout=layout, why_not=why_not, source=source)
    if for_transformers:
        loading += f"\n\n{_in_transformers(spec, source.partition(':')[2])}"
    if why_not_transformers is not None:
        loading += f"\n\ntransformers cannot load this model: {escaped(why_not_transformers)}."
    tags = ("transformers", "sentence-transformers") if for_transformers else ()
    parts = [
        _front_matter(spec, name, layout=layout, licence=licence, base_model=base_model, tags=tags, results=results),
        f"# {escaped(name)}\n\n{_described(spec, form)}",
        "## Inputs\n\n" + "\n\n".join(_contract(tower) for _, tower in towers(spec)),
        f"## How to load the model\n\n{loading}",
        f"## Licence\n\n{_licensed(licence)}",
    ]
    if results:
        parts.append(f"## Results\n\n{_table(results)}")
    return "\n\n".join(parts) + "\n"


def escaped(text: object) -> str:
    """Escape Markdown, so that a text appears literally in one line, without table cells, links, tags or headings."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def _front_matter(
    spec: ModelSpec,
    name: str,
    *,
    layout: str,
    licence: str,
    base_model: str | None,
    tags: Sequence[str],
    results: Sequence[Result],
) -> str:
    entries = [_entry(result, task_of(spec)) for result in results]
    index = {"model-index": [{"name": printable(name), "results": entries}]} if entries else {}
    return front_matter(spec, licence=licence, base_model=base_model, library=layout, tags=tags, more=index)


def front_matter(
    spec: ModelSpec,
    *,
    licence: str,
    base_model: str | None,
    library: str,
    tags: Sequence[str] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Return the YAML metadata at the top of a model card; the values are JSON, which is valid YAML.

    Args:
        spec: spec of the model.
        licence: licence of the weights, as the hub's identifier, such as `mit`.
        base_model: owner and name of the hub model that this model was trained or converted from; None if unknown.
        library: the hub's name of the library that loads the model.
        tags: tags in addition to the tags of every model.
        more: additional metadata fields, by name.
    """
    fields: dict[str, Any] = {
        "license": licence,
        **({} if base_model is None else {"base_model": base_model}),
        "library_name": library,
        "pipeline_tag": task_of(spec),
        "tags": ["mobileclip", "clip", *tags],
        **more,
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def task_of(spec: ModelSpec) -> str:
    """Return the hub's `pipeline_tag` for the task of a model."""
    if isinstance(spec, DualEncoderSpec):
        return "zero-shot-image-classification"
    if isinstance(spec, ClassifierSpec):
        return "image-classification"
    if isinstance(spec, CoCaSpec):
        return "image-to-text"
    return "image-feature-extraction" if isinstance(spec, ImageEncoderSpec) else "feature-extraction"


def _entry(result: Result, task: str) -> dict[str, Any]:
    metrics = [{"type": printable(name), "value": value} for name, value in _shown(result)]
    dataset = {"type": printable(result.key), "name": printable(result.dataset)}
    return {"task": {"type": task}, "dataset": dataset, "metrics": metrics}


def _shown(result: Result) -> Iterator[tuple[str, float]]:
    """Yield the metrics by name, the main metric first under its own name."""
    named = [(name, value) for name, value in result.metrics.items() if name != _MAIN and not name.startswith(_COUNT)]
    main = result.metrics[_MAIN]
    first = next((pair for pair in named if pair[1] == main), (_MAIN, main))
    yield first
    yield from (pair for pair in named if pair != first)


def _described(spec: ModelSpec, form: Form) -> str:
    what = {
        "zero-shot-image-classification": "An image-text model with two towers that embed images and texts into one "
        "space of {dim} dimensions: the larger the cosine of two embeddings, the better the text describes the image.",
        "image-feature-extraction": "The image tower of an image-text model. It embeds images in {dim} dimensions.",
        "image-classification": "An image classifier: a linear layer on an image encoder with {dim} features.",
        "image-to-text": "A captioner. It writes captions of images, and embeds images and texts in {dim} dimensions.",
        "feature-extraction": "The text tower of an image-text model. It embeds texts in {dim} dimensions.",
    }[task_of(spec)]
    encoder = spec.image if isinstance(spec, (DualEncoderSpec, ClassifierSpec, CoCaSpec)) else spec
    folded = form != "training"
    rows = [
        f"| {type_of(tower)} | {_family(tower)} | {num_parameters(tower, folded=folded):,} |"
        for _, tower in towers(spec)
    ]
    if isinstance(spec, ClassifierSpec):
        rows.append(f"| {spec.num_classes:,} classes | Linear | {spec.num_classes * (encoder.embedding_dim + 1):,} |")
    head = f"| tower | kind | parameters{', folded' if folded else ''} |\n| --- | --- | ---: |"
    forms = {
        "training": "The weights are in training form, for further training or for reparameterization.",
        "folded": "The weights are reparameterized (folded) for inference, and can no longer be trained.",
        "branches_folded": "The branches are folded for inference, and the weights can no longer be trained.",
    }
    return "\n".join([what.format(dim=encoder.embedding_dim), "", head, *rows, "", forms[form]])


def _family(tower: TowerSpec) -> str:
    return escaped(type(tower).__name__.removesuffix("Spec"))


def _contract(tower: TowerSpec) -> str:
    rows = _image_rows(tower.input) if isinstance(tower, ImageEncoderSpec) else _text_rows(tower)
    head = f"| {'images' if isinstance(tower, ImageEncoderSpec) else 'texts'} | |\n| --- | --- |"
    return "\n".join([head, *(f"| {name} | {value} |" for name, value in rows)])


def _image_rows(image: ImageInput) -> Iterator[tuple[str, str]]:
    channels = "RGB" if image.channels == 3 else f"{image.channels} channels"
    fit = "stretched to this size" if image.fit == "stretch" else "the shorter side is resized, the center is cropped"
    yield "size", f"{image.size} x {image.size} pixels, {channels}: {fit}"
    yield "interpolation", f"{image.interpolation}, antialiased"
    if image.background != HIDDEN:
        yield "transparent images", f"composited on {image.background} first, which open_clip and timm do not do"
    yield "values", "pixels in [0, 1], then (pixel - mean) / std"
    yield "mean", ", ".join(map(str, image.mean))
    yield "std", ", ".join(map(str, image.std))


def _text_rows(tower: TextEncoderSpec) -> Iterator[tuple[str, str]]:
    text: TextInput = tower.input
    own = tokenizer_of(tower)
    yield "context", f"{text.context_length} tokens, including start and end; longer texts are truncated"
    yield "padding", f"token {text.pad_id}"
    yield (
        "tokenizer",
        f"CLIP's BPE, {text.vocab_size:,} tokens"
        if own is None
        else f"`tokenizer.json`, {text.vocab_size:,} tokens, SHA-256 `{own.sha256}`",
    )


def _loading(spec: ModelSpec, form: Form, *, layout: str, why_not: str | None, source: str) -> str:
    blocks = [_ours(spec, form, source.partition(":")[2])]
    quoted = json.dumps(source, ensure_ascii=False)
    if layout == "open_clip":
        blocks.append(
            "In open_clip:\n\n```python\n"
            "import open_clip\n\n"
            f"model, _, preprocess = open_clip.create_model_and_transforms({quoted})\n"
            f"tokenizer = open_clip.get_tokenizer({quoted})\n"
            "model.eval()\n```"
        )
    if layout == "timm":
        name = "classifier" if isinstance(spec, ClassifierSpec) else "encoder"
        blocks.append(
            "In timm (`num_classes=0` for features before the last layer, `features_only=True` for feature maps):\n\n"
            "```python\n"
            "import timm\n\n"
            f"{name} = timm.create_model({quoted}, pretrained=True).eval()\n"
            f"preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config({name}))\n```"
        )
    if why_not is not None:
        blocks.append(f"Neither open_clip nor timm can load this model: {escaped(why_not)}.")
    return "\n\n".join(blocks)


def _in_transformers(spec: ModelSpec, place: str) -> str:
    quoted = json.dumps(place, ensure_ascii=False)
    length = spec.text.input.context_length if isinstance(spec, DualEncoderSpec) else 0
    return f"""In transformers (5.6 or newer; older versions skip some weights) and timm, without remote code. Texts \
are padded to {length} tokens, as in training; padding to the longest text of a batch changes the embeddings.

```python
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained({quoted}), AutoProcessor.from_pretrained({quoted})
texts = {{"padding": "max_length", "max_length": {length}, "truncation": True}}
inputs = processor(text=["a cat", "a dog"], images=image, return_tensors="pt", **texts)
scores = model(**inputs).logits_per_image.softmax(-1)
```

Do not use `pipeline("zero-shot-image-classification")`, which ignores the padding. sentence-transformers reads the \
padding from the folder:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({quoted})
scores = model.similarity(model.encode([image]), model.encode(["a cat", "a dog"]))
```"""


def _ours(spec: ModelSpec, form: Form, place: str) -> str:
    quoted = json.dumps(place, ensure_ascii=False)
    train = ", fold=False" if form == "training" else ""
    again = f"\n# To continue training: from_pretrained({quoted}{train})" if train else ""
    if isinstance(spec, DualEncoderSpec):
        lines = (
            "from mobileclip import ImageTextModel\nfrom mobileclip.interop import from_pretrained\n\n"
            f"clip = ImageTextModel(from_pretrained({quoted}))\n"
            'scores = clip.classify("photo.jpg", ["a cat", "a dog"])'
        )
    else:
        name = "classifier" if isinstance(spec, ClassifierSpec) else "encoder"
        lines = f"from mobileclip.interop import from_pretrained\n\n{name} = from_pretrained({quoted})"
    return f"In mobileclip ({install_library('hub')}):\n\n```python\n{lines}{again}\n```"


def _licensed(licence: str) -> str:
    if licence == _RESEARCH:
        return (
            f"The weights are under Apple's model licence, `{licence}`, for research only. The MIT licence of "
            "mobileclip applies only to the code."
        )
    return f"The weights are under `{licence}`. The code of mobileclip is under the MIT licence."


def _table(results: Sequence[Result]) -> str:
    head = "| data set | images | main metric | | other metrics |\n| --- | ---: | --- | ---: | --- |"
    return "\n".join([head, *map(_row, results)])


def _row(result: Result) -> str:
    (name, value), *others = _shown(result)
    images = "" if result.num_images is None else f"{result.num_images:,}"
    more = ", ".join(f"{escaped(other)} {number:.2%}" for other, number in others)
    return f"| {escaped(result.dataset)} | {images} | {escaped(name)} | {value:.2%} | {more} |"
