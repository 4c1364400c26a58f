"""Long captions in their published files: found for their pictures and back."""

from __future__ import annotations

import json

import pytest

from mobileclip.evaluation import Session, TaskOptions, find_task, published_results
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, tokenize
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor

NAME = "share-captioner_coco_lcs_sam_1246k_1107.json"


def evaluated(key, data):
    session = Session(ColourModel(), transform=to_tensor, tokenize=tokenize, show_progress=False, batch_size=3)
    return find_task(key, str(data)).open(TaskOptions()).evaluate(session)


@pytest.fixture
def urban(tmp_path):
    root = tmp_path / "urban1k"
    (root / "image").mkdir(parents=True)
    (root / "caption").mkdir()
    # The captions of blue and yellow are each other's; what stands in a second line is not read.
    for number, (shown, said) in enumerate(zip(COLOURS, ("red", "green", "yellow", "blue"), strict=True), 1):
        (root / "image" / f"{number}.jpg").write_bytes(encoded(COLOURS[shown]))
        (root / "caption" / f"{number}.txt").write_text(f"A long text about something {said}.\nand {shown}")
    return tmp_path


def entry(number, name):
    return {
        "id": str(number),
        "image": f"sam/images/sa_{number}.jpg",
        "conversations": [{"from": "human", "value": "What do you see?"}, {"from": "gpt", "value": f"It is\n{name}."}],
    }


@pytest.fixture
def shared(tmp_path):
    root = tmp_path / "sharegpt4v"
    (root / "sam" / "images").mkdir(parents=True)
    for number, name in enumerate(COLOURS):
        (root / "sam" / "images" / f"sa_{number}.jpg").write_bytes(encoded(COLOURS[name]))
    entries = [entry(number, name) for number, name in enumerate(COLOURS)]
    (root / NAME).write_text(json.dumps(entries, indent=1))
    return tmp_path


def test_urban1k(urban):
    evaluation = evaluated("longclip/urban1k", urban)
    metrics = evaluation.result.metrics
    assert metrics["text_retrieval_recall@1"] == metrics["image_retrieval_recall@1"] == pytest.approx(2 / 4)
    assert metrics["mean_recall@1"] == metrics["main_metric"] == pytest.approx(2 / 4)
    assert float(evaluation.outcomes.values.mean()) == pytest.approx(2 / 4)
    assert set(published_results("mobileclip2_b")["longclip/urban1k"].metrics) <= set(metrics)
    (urban / "urban1k" / "image" / "3.jpg").write_bytes(b"no picture")
    evaluation = evaluated("longclip/urban1k", urban)
    assert (evaluation.result.num_images, evaluation.result.num_skipped) == (3, 1)
    (urban / "urban1k" / "image" / "1.jpg").unlink()
    with fails("evaluation.picture-beside-image-jpg", "1.txt", "1"):
        evaluated("longclip/urban1k", urban)


def test_sharegpt4v(shared):
    evaluation = evaluated("longclip/sharegpt4v-1k", shared)
    assert evaluation.result.main_metric == 1.0
    assert evaluation.result.num_images == 4
    (shared / "sharegpt4v" / "sam" / "images" / "sa_2.jpg").unlink()
    evaluation = evaluated("longclip/sharegpt4v-1k", shared)
    assert evaluation.report.counts == {"image_missing": 1}


def test_of_a_large_file_the_first_thousand_are_read(shared):
    path = shared / "sharegpt4v" / NAME
    entries = [entry(number % 4, list(COLOURS)[number % 4]) for number in range(1000)]
    path.write_text(json.dumps(entries)[:-1] + ', {"image": "what follows is not looked at')
    assert len(find_task("longclip/sharegpt4v-1k", str(shared)).open(TaskOptions()).pairs) == 1000


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{}", ("evaluation.holds-list-entries",)),
        ("[]", ("evaluation.caption",)),
        ('[{"image": "a.jpg"}]', ("evaluation.entry-image-below-folder", "0")),
        ('[{"image": "../a.jpg", "conversations": [{}, {"value": "b"}]}]', ("evaluation.entry-image-below-folder",)),
        ('[{"image": "/a.jpg", "conversations": [{}, {"value": "b"}]}]', ("evaluation.entry-image-below-folder",)),
        ('[{"image": ', ("evaluation.entry-json", "0")),
        ("[" * 100_000, ("evaluation.entry-json", "0")),
        ("[3]", ("evaluation.entry-object", "0", "3")),
    ],
)
def test_a_file_that_is_something_else_is_refused(shared, content, error):
    (shared / "sharegpt4v" / NAME).write_text(content)
    with fails(*error):
        find_task("longclip/sharegpt4v-1k", str(shared)).open(TaskOptions())
