"""Makes the packaged model: a student of the study in half precision, and a card with its scores.

Command:   python -m studies.learning_efficiency.model    (with the extra `quickstart` installed)
Hardware:  2 CPU cores, about 8 GiB of memory, no GPU
Time:      about three hours, or seconds if the study has already trained the model; the same command resumes an
           interrupted run
Result:    in --output: icons.safetensors for mobileclip.load, and its card, icons.md

The program trains the student with all images, one teacher, weak views and the longest budget, like the study. The
scores in the card are measured on the written file.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import torch

import mobileclip
from examples.icons import IconDataSpec
from examples.icons.reading import read_sets
from examples.icons.sets import ALL_SETS, EMOJI_SETS
from examples.icons.splits import TEST_PICTURES, TITLES
from examples.quickstart.emoji.on_disk import DrawnDataset, load_finished
from examples.quickstart.emoji.rendering import render_all
from examples.quickstart.emoji.sources import download
from mobileclip.data import ImageTransform
from mobileclip.encoders import load_model, save_model
from mobileclip.inputs import ImageInput
from mobileclip.storage import write_text
from mobileclip.terminal import say
from studies.learning_efficiency.run import run
from studies.learning_efficiency.scoring import HeldOut, held_out, pixels_of, score_student
from studies.learning_efficiency.spec import Cell, EfficiencySpec
from studies.learning_efficiency.strict import STRICT, read_strict, stricter
from studies.learning_efficiency.students import MODEL
from studies.learning_efficiency.variants import VARIANTS

NAME = "icons"
VARIANT = "distillation"
_STRANGER = "openmoji"
# What is made of drawings under these may be given to everyone, as long as their authors are named.
_FREE = ("MIT", "ISC", "Apache-2.0", "CC-BY-3.0", "CC-BY-4.0")

_CARD = """# {name}

A small image-text model of drawings: {parameters:.1f} million parameters, {size:.1f} MB, image size of {pixels} pixels.
The model comes with the package and needs no download.

```python
clip = mobileclip.load("{name}")
clip.classify("drawing.png", ["a heart", "a tree", "an arrow"])
```

**Good for** icons of user interfaces, with English names of one to four words: to try the library, to test a program,
to search a folder of icons. The model composites transparent images onto white, as in training.

**Less good for** emoji in an unseen style (OpenMoji in the table), worse for clip art and cartoons. **Not for**
photographs, faces, texts in images or sentences: the training data contains none of these.

## How good it is

Measured on unseen drawings. Some of these drawings repeat a training glyph with another stroke or margin (ink
correlation of at least 0.95).

| drawings | number | classes to choose from | top-1 | top-5 | name to picture, R@1 |
|---|---|---|---|---|---|
{rows}

## How it was made

`python -m studies.learning_efficiency.model`. Multi-modal reinforced training on {num_pictures:,} drawings, for
{steps:,} steps of {batch} pairs, with {views} augmentations per drawing and stored embeddings of one teacher. The
teacher is EfficientNet-Lite0 with ImageNet weights, fine-tuned on the same drawings, and projected
MiniLM sentence embeddings.
Captions are the icons' names and keywords, and sentences made from names and keywords.

## Whose drawings it learned from

Weights and code are under the MIT licence. Authors of the drawings:

| set | author | licence | package |
|---|---|---|---|
{sources}
"""


def make_model(spec: EfficiencySpec, output: Path) -> Path:
    """Train the student, or use the student that the study has trained, and write it with its card.

    Args:
        spec: settings of the study.
        output: folder for both files.

    Returns:
        The file of the model.

    Raises:
        ValueError: if a drawing's licence restricts the distribution of derived models.
    """
    spec = attrs.evolve(spec, parts=("long",), variants=(VARIANT,), num_seeds=1).resolved
    run(spec)
    (cell,) = spec.cells()
    dataset = load_finished(spec.output / "data", TITLES)
    if bound := [one["title"] for one in dataset.card["sources"] if one["licence"].get("spdx") not in _FREE]:
        raise ValueError(
            f"the licence of {', '.join(bound)} requires more than the names of authors; leave these sets out of "
            "--study.data.sets"
        )
    path = output / f"{NAME}.safetensors"
    output.mkdir(parents=True, exist_ok=True)
    save_model(load_model(spec.output / "runs" / cell.name / MODEL, fold=False).half(), path)
    write_text(path.with_suffix(".md"), _card(spec, cell, path, dataset))
    return path


def _card(spec: EfficiencySpec, cell: Cell, path: Path, dataset: DrawnDataset) -> str:
    """Measure a model's file, and return its card."""
    model = mobileclip.load(path).model
    parts = _measured_parts(spec, model.spec.image.input, dataset, path.parent)
    titles = {**TITLES, _STRANGER: "OpenMoji's emoji of seen names, none of which it saw"}
    scores = score_student(model, parts)
    rows = [
        f"| {titles.get(name, name)} | {len(part.labels):,} | {len(part.class_names):,} "
        f"| {scores[name].top1:.1f} | {scores[name].top5:.1f} | {scores[name].retrieval:.1f} |"
        for name, part in parts.items()
    ]
    drawn = [
        f"| {one['title']} | {_author(**one['author'])} | {one['licence']['title']} | `{one['package']}` |"
        for one in dataset.card["sources"]
    ]
    return _CARD.format(
        name=NAME,
        parameters=sum(parameter.numel() for parameter in load_model(path, fold=False).parameters()) / 1e6,
        size=path.stat().st_size / 1e6,
        pixels=spec.image_size,
        rows="\n".join(rows),
        num_pictures=dataset.train.num_samples,
        steps=cell.budget,
        batch=spec.batch_size,
        views=VARIANTS[cell.variant].num_views,
        sources="\n".join(drawn),
    )


def _measured_parts(
    spec: EfficiencySpec, contract: ImageInput, dataset: DrawnDataset, folder: Path
) -> dict[str, HeldOut]:
    """Return the held-out parts, the stricter parts, and OpenMoji's drawings, which are downloaded to a folder."""
    parts = held_out(dataset, [contract])
    parts |= stricter(parts, read_strict(spec.output / STRICT, dataset))
    if not spec.tiny:
        parts[_STRANGER] = _strangers(contract, parts[TEST_PICTURES].class_names, folder)
    return parts


def _strangers(contract: ImageInput, class_names: tuple[str, ...], folder: Path) -> HeldOut:
    """Return OpenMoji's drawings of known names, which the model does not learn because of their licence."""
    styles = [one for one in ALL_SETS if one in EMOJI_SETS]
    sets = read_sets(download(folder / "download", styles), styles, max_words=4, seed=0)
    (drawn,) = (one for one in sets if one.style.name == _STRANGER)
    numbers = {name: number for number, name in enumerate(class_names)}
    icons = [icon for icon in drawn.icons if icon.name in numbers]
    renderings = render_all([icon.svg for icon in icons], IconDataSpec().image_size, num_processes=2)
    seen = [(icon, one.png) for icon, one in zip(icons, renderings, strict=True) if one is not None]
    return HeldOut(
        pixels={contract: pixels_of([png for _, png in seen], ImageTransform(contract))},
        labels=torch.tensor([numbers[icon.name] for icon, _ in seen]),
        class_names=class_names,
    )


def _author(name: str, url: str | None = None) -> str:
    return f"[{name}]({url})" if url else name


def main(study: EfficiencySpec = EfficiencySpec(), output: Path = Path("outputs/icon_model")) -> None:  # noqa: B008
    """Make the model.

    Args:
        study: settings of the study, whose folder stores intermediate results.
        output: folder for the model and its card.
    """
    say(f"The model and its card are {make_model(study, output)} and {NAME}.md beside it.")


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(main, "learning_efficiency.model", __doc__):
        pass  # `main` has run
