"""A model on a data set of the public layout, against the same metrics from embeddings that are made by hand."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.evaluation import evaluate_benchmark, open_benchmark
from tests.contracts.tasks import check_task
from tests.data.made_samples import write_layout, write_raw
from tests.errors import fails
from tests.evaluation.models import COLOURS, session_of


def encoded(colour, size=(5, 4), noise=0.0, seed=0):
    pixels = np.array(colour) * 255 + np.random.default_rng(seed).normal(0, noise, (size[1], size[0], 3))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def to_tensor(image):
    return torch.from_numpy(np.asarray(image.resize((4, 4))).copy()).permute(2, 0, 1).float() / 255


@pytest.fixture
def colours(tmp_path):
    """Twelve images of three of four colours; every third has the label of another."""
    names = list(COLOURS)
    shown = [names[1 if number % 3 == 0 else number % 3] for number in range(12)]
    members = {f"{i:02d}": {"png": encoded(COLOURS[name]), "cls": b"%d" % (i % 3)} for i, name in enumerate(shown)}
    return write_layout(tmp_path / "wds_colours_test", members, classnames=names, templates=("a {c} thing", "{c}"))


def evaluate(root, **options):
    return evaluate_benchmark(session_of(**options), open_benchmark(root))


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_classification(colours, batch_size):
    found = evaluate(colours, batch_size=batch_size)
    expected = dict.fromkeys(("acc1", "main_metric"), 8 / 12) | {"mean_per_class_recall": (0 + 1 + 1) / 3}
    assert found.metrics == pytest.approx(expected), "and no acc5 of four classes"
    assert found.absent_classes == ("yellow",)
    assert (found.report.num_read, found.report.num_skipped) == (12, 0)
    assert (found.key, found.dataset) == ("colours", "colours")


def test_the_suite_says_what_counts(colours):
    wildcam = colours.rename(colours.parent / "wds_wilds-iwildcam_test")
    # No image is taken for the first class, all of it for the second; the third is found, and nothing else for it.
    assert evaluate(wildcam).main_metric == pytest.approx((0 + 2 / 3 + 1) / 3)
    pets = wildcam.rename(colours.parent / "wds_vtab-pets_test")
    result = evaluate(pets)
    assert (result.key, result.dataset) == ("vtab/pets", "Oxford-IIIT Pet")
    assert result.main_metric == pytest.approx(2 / 3)
    images = [encoded(colour) for colour in COLOURS.values()]
    members = {f"{label}": {"png": image, "cls": b"%d" % label} for label, image in enumerate(images)}
    write_raw(pets / "test" / "0.tar", members)
    change = partial(write_raw, pets / "test" / "0.tar", {"0": members["0"]})
    check_task("vtab/pets", colours.parent, session_of(batch_size=4), change=change)


def test_broken_images_are_counted_and_named(colours, caplog):
    red, blue = encoded(COLOURS["red"]), encoded(COLOURS["blue"])
    shown = {"a": (red, b"0"), "b": (red[:-30], b"0"), "c": (b"no image", b"1"), "d": (blue, b"2")}
    write_raw(colours / "test" / "0.tar", {key: {"png": image, "cls": cls} for key, (image, cls) in shown.items()})
    found = evaluate(colours)
    assert found.metrics["acc1"] == 1.0
    assert found.report.keys("image_not_an_image") == ("c",)
    assert found.absent_classes == ("green", "yellow")
    assert "c of colours" in caplog.text
    assert (found.num_images, found.num_skipped) == (2, 2)
    write_raw(colours / "test" / "0.tar", {"a": {"png": b"no image", "cls": b"0"}})
    with fails(ValueError, "colours", "0 samples read, 1 skipped: 1 image_"):
        evaluate(colours)


def test_retrieval(tmp_path):
    texts = {"red": b"red\nsomething red", "green": b"green", "blue": b"yellow", "yellow": b"blue and green"}
    members = {name: {"png": encoded(COLOURS[name]), "txt": captions} for name, captions in texts.items()}
    metrics = evaluate(write_layout(tmp_path / "colours", members, kind="retrieval")).metrics
    # Captions: two of red and that of green are found; yellow's is nearest to blue or green, blue's to yellow.
    assert metrics["image_retrieval_recall@1"] == pytest.approx(3 / 5)
    assert metrics["text_retrieval_recall@1"] == pytest.approx(2 / 4)
    assert metrics["image_retrieval_recall@5"] == metrics["text_retrieval_recall@10"] == 1.0
    assert metrics["main_metric"] == metrics["mean_recall@1"] == pytest.approx((3 / 5 + 2 / 4) / 2)
