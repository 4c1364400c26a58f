"""Evaluate a folder of `mobileclip convert --to transformers` in MTEB, on generated images of coloured shapes.

    pip install mteb sentence-transformers timm
    python examples/python/mteb_task.py FOLDER

For the leaderboard (MIEB has the image benchmarks):

1. `mobileclip hub push FILE OWNER/NAME --license ...` publishes the model with the files that MTEB loads.
2. In a clone of github.com/embeddings-benchmark/mteb, add a `ModelMeta` of the model below
   `mteb/models/model_implementations/`, with `SentenceTransformerEncoderWrapper` as loader and
   `modalities=["image", "text"]`, and open a pull request.
3. `mteb run -m OWNER/NAME -b "MIEB(lite)" --output-folder results` downloads the data sets and runs the benchmark.
4. A pull request to github.com/embeddings-benchmark/results adds the results of step 3.
"""

import argparse

import mteb
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image as ImageFeature
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb.models import SentenceTransformerEncoderWrapper
from PIL import Image, ImageDraw
from sentence_transformers import SentenceTransformer

COLORS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square")
CLASSES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]


def drawn(name: str, size: int) -> Image.Image:
    """Return an image of a shape of the given size on white."""
    color, shape = name.split()
    picture = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(picture)
    draw = pen.ellipse if shape == "circle" else pen.rectangle
    draw((64 - size, 64 - size, 64 + size, 64 + size), fill=color)
    return picture


class DrawnShapes(AbsTaskZeroShotClassification):
    """Zero-shot classification of drawn shapes by colour and kind."""

    metadata = TaskMetadata(
        name="DrawnShapesZeroShot",
        description="Coloured circles and squares on white, drawn when the task is loaded.",
        reference=None,
        dataset={"path": "drawn", "revision": "1"},
        type="ZeroShotClassification",
        category="i2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
        date=("2025-01-01", "2025-01-01"),
        domains=["Constructed"],
        task_subtypes=["Object recognition"],
        license="mit",
        annotations_creators="derived",
        dialect=[],
        modalities=["image", "text"],
        sample_creation="created",
        bibtex_citation="",
    )

    def load_data(self, *_: object, **__: object) -> None:
        """Draw the images of all classes."""
        pairs = [(drawn(name, size), label) for label, name in enumerate(CLASSES) for size in (16, 28, 40, 52)]
        pictures, labels = zip(*pairs, strict=True)
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)})
        made = Dataset.from_dict({"image": list(pictures), "label": list(labels)}, features=features)
        self.dataset, self.data_loaded = DatasetDict(test=made), True

    def get_candidate_labels(self) -> list[str]:
        """Return one prompt per class."""
        return [f"a picture of a {name}" for name in CLASSES]


def main() -> None:
    """Evaluate a model, and print its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder that sentence-transformers loads, or OWNER/NAME on the hub")
    model = SentenceTransformer(parser.parse_args().folder)
    encoder = SentenceTransformerEncoderWrapper(model)
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update={"modalities": ["image", "text"]})
    results = mteb.evaluate(encoder, tasks=[DrawnShapes()], cache=None)
    for result in results:
        print(f"{result.task_name}: accuracy {result.get_score():.3f}, by chance {1 / len(CLASSES):.3f}")


if __name__ == "__main__":
    main()
