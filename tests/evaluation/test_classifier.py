"""A classifier on labelled images: its accuracies are those of its logits, and classes are matched by names."""

import attrs
import pytest
import torch
from PIL import Image

from mobileclip.data import ImageTransform, load_image
from mobileclip.encoders import ClassifierSpec
from mobileclip.evaluation import classifier_hook, evaluate_classifier
from tests.data.made_samples import encoded, write_raw
from tests.encoders.small import IMAGE, randomised
from tests.errors import fails
from tests.evaluation.tasks.choices.data import write
from tests.odd_images import drawing

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
SPEC = ClassifierSpec(image=IMAGE.without_projection(), num_classes=6, class_names=NAMES)
IMAGES = [encoded(70, 80, seed=number) for number in range(24)]
SAMPLES = {f"{number:02d}": {"png": image, "cls": b"%d" % (number % 6)} for number, image in enumerate(IMAGES)}


@pytest.fixture(scope="module")
def model():
    return randomised(SPEC)


@torch.inference_mode()
def accuracies(model, order=range(6)):
    """Return the shares of images whose label has the highest logit, and one of the five highest."""
    transform = ImageTransform(model.spec.image.input)
    labels = torch.tensor([list(order)[number % 6] for number in range(24)])
    logits = model(torch.stack([transform(load_image(image)) for image in IMAGES]))
    ranks = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
    return pytest.approx(((ranks == 0).double().mean().item(), (ranks < 5).double().mean().item()))


def test_accuracies_are_those_of_the_logits(tmp_path, model):
    shard, seen = write_raw(tmp_path / "a.tar", SAMPLES), []
    with model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0]))):
        found = evaluate_classifier(model, shard, batch_size=7)
    assert (seen, found.result.num_images, model.training) == ([7, 7, 7, 3], 24, False)
    assert (found.result.top1, found.result.top5) == accuracies(model)
    with fails(ValueError, "batch_size"):
        evaluate_classifier(model, shard, batch_size=0)


def test_photos_are_classified_upright(tmp_path, model):
    upright, seen, exif = drawing(size=(70, 80)), [], Image.Exif()
    (tmp_path / NAMES[0]).mkdir()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / NAMES[0] / "turned.png", exif=exif)
    with model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])):
        evaluate_classifier(model, tmp_path)
    assert torch.equal(seen[0][0], ImageTransform(model.spec.image.input)(upright))


def test_a_folder_of_some_classes_is_matched_by_names(tmp_path, model):
    write(tmp_path, {f"{NAMES[number % 3 + 3]}/{number}.png": image for number, image in enumerate(IMAGES)})
    found = evaluate_classifier(model, tmp_path).result
    assert (found.top1, found.top5) == accuracies(model, order=[3, 4, 5, 3, 4, 5])
    write(tmp_path, {"gnu/1.png": encoded(4, 4)})
    with fails(ValueError, "gnu"):
        evaluate_classifier(model, tmp_path)
    with fails(ValueError, "4", "6"):
        evaluate_classifier(randomised(attrs.evolve(SPEC, class_names=())), tmp_path)


def test_what_cannot_be_used_is_counted(tmp_path, model):
    broken = {"97": {"png": b"none", "cls": b"0"}, "98": {"cls": b"0"}, "99": {"png": encoded(4, 4), "cls": b"6"}}
    found = evaluate_classifier(model, write_raw(tmp_path / "b.tar", SAMPLES | broken))
    assert found.report.num_read == found.result.num_images == 24
    assert found.report.counts == {"image_not_an_image": 1, "no_image": 1, "bad_label": 1}
    with fails(ValueError):
        evaluate_classifier(model, write_raw(tmp_path / "c.tar", {"97": broken["97"]}))


def test_a_hook_leaves_no_trace_and_goes_on_where_data_is_gone(tmp_path, model, caplog):
    place = write_raw(tmp_path / "held-out.tar", SAMPLES)
    evaluate, before = classifier_hook([place]), torch.get_rng_state()
    values = evaluate(model, 3)
    assert torch.equal(torch.get_rng_state(), before)
    found = evaluate_classifier(model, place).result
    measures = {"acc1": found.top1, "acc5": found.top5, "mean_per_class_recall": found.mean_per_class, "num_skipped": 0}
    assert values == {f"held-out/{name}": value for name, value in measures.items()}
    (tmp_path / "held-out.tar").unlink()
    assert evaluate(model, 4) == {}
    assert "training continues" in caplog.text
    with fails(ValueError, "1"):
        classifier_hook([place])
