"""SugarCrepe and Winoground in their published files, against comparisons that are made one by one."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from mobileclip.evaluation import SUITES, Session, TaskOptions, find_task, published_results
from mobileclip.evaluation.tasks import matches
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, tokenize
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor

CASES = (
    ("000000000001.jpg", "a red thing", "a blue thing"),
    ("000000000002.jpg", "a green thing", "a red thing"),
    ("000000000002.jpg", "green", "not blue, not yellow"),
    ("000000000003.jpg", "a red thing", "a blue thing"),
    ("000000000003.jpg", "blue and green", "green and blue"),
)
SHOWN = {"000000000001": "red", "000000000002": "green", "000000000003": "blue"}


def picture(name):
    stream = io.BytesIO()
    Image.open(io.BytesIO(encoded(COLOURS[name], size=(20, 20)))).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "sugarcrepe"
    (root / "val2017").mkdir(parents=True)
    for stem, name in SHOWN.items():
        (root / "val2017" / f"{stem}.jpg").write_bytes(picture(name))
    cases = {
        str(number): {"filename": file, "caption": true, "negative_caption": false}
        for number, (file, true, false) in enumerate(CASES)
    }
    (root / "swap_att.json").write_text(json.dumps(cases))
    ground = tmp_path / "winoground"
    ground.mkdir()
    lines = [
        {"id": 0, "caption_0": "red", "caption_1": "blue", "image_0": "ex_0_img_0", "image_1": "ex_0_img_1"},
        {"id": 1, "caption_0": "green", "caption_1": "red", "image_0": "ex_1_img_0", "image_1": "ex_1_img_1"},
        {"id": 2, "caption_0": "red", "caption_1": "a red", "image_0": "ex_0_img_0", "image_1": "ex_1_img_0"},
    ]
    (ground / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with zipfile.ZipFile(ground / "images.zip", "w") as archive:
        for name, colour in (("0_img_0", "red"), ("0_img_1", "blue"), ("1_img_0", "red"), ("1_img_1", "green")):
            archive.writestr(f"images/ex_{name}.png", encoded(COLOURS[colour]))
    return tmp_path


def evaluated(key, data):
    session = Session(ColourModel(), transform=to_tensor, tokenize=tokenize, show_progress=False, batch_size=2)
    return find_task(key, str(data)).open(TaskOptions()).evaluate(session)


def test_sugarcrepe(data):
    evaluation = evaluated("comp/sugarcrepe_swap_att", data)
    # Right, right, right, wrong, and two captions that are one text to the model.
    assert evaluation.result.metrics == pytest.approx({"accuracy": 3 / 5, "main_metric": 3 / 5})
    assert (evaluation.result.num_images, evaluation.result.num_skipped) == (5, 0)
    assert len(evaluation.outcomes.values) == 3, "questions about one picture are not independent"
    assert float(evaluation.outcomes.values.mean()) == pytest.approx(3 / 5)
    assert set(SUITES["sugarcrepe"]) <= set(published_results("mobileclip2_s0"))


def test_a_lost_picture_costs_its_cases(data):
    (data / "sugarcrepe" / "val2017" / "000000000002.jpg").unlink()
    evaluation = evaluated("comp/sugarcrepe_swap_att", data)
    assert (evaluation.result.num_images, evaluation.result.num_skipped) == (3, 2)
    assert evaluation.report.counts == {"image_missing": 1, "case_incomplete": 2}
    assert evaluation.result.main_metric == pytest.approx(1 / 3)


def test_winoground(data):
    evaluation = evaluated("comp/winoground", data)
    metrics = evaluation.result.metrics
    # All right; all wrong; and one picture twice with one text twice, which nothing can tell apart.
    assert metrics == pytest.approx(
        {"text_score": 1 / 3, "image_score": 1 / 3, "group_score": 1 / 3, "main_metric": 1 / 3}
    )
    with zipfile.ZipFile(data / "winoground" / "images.zip", "w") as archive:
        archive.writestr("images/ex_0_img_0.png", encoded(COLOURS["red"]))
        archive.writestr("images/ex_0_img_1.png", encoded(COLOURS["blue"]))
    evaluation = evaluated("comp/winoground", data)
    assert (evaluation.result.num_images, evaluation.result.num_skipped) == (1, 2)
    assert evaluation.report.keys("example_incomplete") == ("1", "2")


@given(st.integers(0, 10_000))
def test_matches_one_by_one(seed):
    generator = torch.Generator().manual_seed(seed)
    pictures, captions = torch.randn(2, 5, 2, 3, generator=generator)
    by_text, by_image = matches(pictures, captions)
    for number in range(5):
        score = [
            [float(torch.cosine_similarity(pictures[number, one], captions[number, two], dim=0)) for two in (0, 1)]
            for one in (0, 1)
        ]
        assert bool(by_text[number]) == (score[0][0] > score[0][1] and score[1][1] > score[1][0])
        assert bool(by_image[number]) == (score[0][0] > score[1][0] and score[1][1] > score[0][1])


def test_what_is_wrong_with_the_files_is_said(data):
    with fails("evaluation.missing-annotations", "add_att.json", "SugarCrepe Add Attribute"):
        evaluated("comp/sugarcrepe_add_att", data)
    path = data / "sugarcrepe" / "add_att.json"
    path.write_text('{"0": {"filename": "../secret.jpg", "caption": "a", "negative_caption": "b"}}')
    with fails("evaluation.name-file", "entry '0'", "filename", "/secret.jpg"):
        evaluated("comp/sugarcrepe_add_att", data)
    path.write_text('{"0": {"filename": "a.jpg", "caption": "a"}}')
    with fails("evaluation.text", "negative_caption", "nothing"):
        evaluated("comp/sugarcrepe_add_att", data)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no JSON"):
        evaluated("comp/sugarcrepe_add_att", data)
    (data / "winoground" / "examples.jsonl").write_text('{"id": 0}\n')
    with pytest.raises(ValueError, match="line 1: image_0 is nothing"):
        evaluated("comp/winoground", data)
    (data / "winoground" / "images.zip").unlink()
    (data / "winoground" / "examples.jsonl").write_text(
        '{"caption_0": "a", "caption_1": "b", "image_0": "c", "image_1": "d"}'
    )
    with fails("evaluation.missing-folder-images", "Winoground"):
        evaluated("comp/winoground", data)
    with fails("evaluation.read-hub-give-folder", "winoground", "its data are given out on asking"):
        find_task("comp/winoground")
