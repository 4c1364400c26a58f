"""WinoGAViL in its published form, against scikit-learn's Jaccard index of the same choices, made one by one."""

from __future__ import annotations

import csv
import io
import json
import zipfile

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.evaluation import Session, evaluate_winogavil, open_winogavil
from tests.encoders.small import SMALL_MCT
from tests.errors import fails
from tests.evaluation.models import ColourModel, tokenize
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor
from tests.stores import web_server

COLUMNS = ("", "candidates", "cue", "associations", "score_fool_the_ai", "num_associations", "num_candidates", "ID")
NAMES = (
    "dark red",
    "light red",
    "green",
    "pale green",
    "blue",
    "sky",
    "yellow",
    "gold",
    "black",
    "grey",
    "pink",
    "sea",
)
SHADES = (
    *((0.5, 0.0, 0.0), (1.0, 0.2, 0.2), (0.0, 0.8, 0.0), (0.4, 1.0, 0.4), (0.0, 0.0, 1.0), (0.4, 0.6, 1.0)),
    *((1.0, 1.0, 0.0), (0.9, 0.7, 0.1), (0.1, 0.1, 0.1), (0.5, 0.5, 0.5), (1.0, 0.6, 0.7), (0.0, 0.4, 0.5)),
)


def write_table(root, instances):
    """Write (cue, candidates, associations), as the published table has them."""
    root.mkdir(exist_ok=True)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    for number, (cue, candidates, associations) in enumerate(instances):
        lists = (json.dumps(list(candidates)), json.dumps(list(associations)))
        sizes = (len(associations), len(candidates))
        writer.writerow((number, lists[0], cue, lists[1], 67, *sizes, 100 + number))
    (root / "winogavil_dataset.csv").write_text(stream.getvalue(), encoding="utf-8")


def write_images(root, images):
    with zipfile.ZipFile(root / "winogavil_images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("winogavil_images/", "")
        archive.writestr("__MACOSX/winogavil_images/._green.jpg", b"attributes")
        for name, content in images.items():
            archive.writestr(f"winogavil_images/{name}.jpg", content)


INSTANCES = (
    ("red", NAMES[:5], ("dark red", "light red")),
    ("Green", NAMES[:6], ("green", "sky", "blue")),
    ("blue", NAMES[:10], ("sky", "black")),
    ("yellow", NAMES, ("gold", "yellow", "pink")),
    ("red yellow", NAMES[2:], ("gold", "pink")),
    ("blue green", NAMES[1:], ("sea", "sky")),
    ("yellow", NAMES[7:], ("sea",)),
)


@pytest.fixture
def images():
    return {name: encoded(shade) for name, shade in zip(NAMES, SHADES, strict=True)}


@pytest.fixture
def root(tmp_path, images):
    root = tmp_path / "winogavil"
    write_table(root, INSTANCES)
    write_images(root, images)
    return root


def evaluate(root, **options):
    return evaluate_winogavil(
        Session(ColourModel(), transform=to_tensor, tokenize=tokenize, show_progress=False, **options),
        open_winogavil(root),
    )


def scores_by_hand(model, transform, tokenizer, images, instances):
    """The Jaccard index of every instance with the number of its candidates: images and cues go in one by one."""
    scores = []
    with torch.inference_mode():
        embedded = {
            name: model.encode_image(
                transform(Image.open(io.BytesIO(images[name])).convert("RGB"))[None], normalize=True
            )
            for name in dict.fromkeys(name for _, candidates, _ in instances for name in candidates)
        }
        for cue, candidates, associations in instances:
            article = "An" if cue.lower().startswith(("a", "e", "i", "o", "u")) else "A"
            text = model.encode_text(tokenizer([f"{article} {cue.lower()}"]), normalize=True)
            similarity = np.array([float(text @ embedded[name].T) for name in candidates])
            true = np.isin(candidates, associations)
            chosen = np.isin(np.arange(len(candidates)), np.argsort(similarity)[-true.sum() :])
            scores.append((len(candidates), jaccard_score(true, chosen)))
    return scores


def test_opened(root):
    winogavil = open_winogavil(root)
    assert winogavil.images == str(root / "winogavil_images.zip")
    assert winogavil.names == NAMES
    first = winogavil.instances[0]
    assert (first.key, first.cue, first.candidates) == ("100", "red", NAMES[:5])
    assert first.associated == (True, True, False, False, False)


@pytest.mark.parametrize(
    ("cue", "prompt"), [("werewolf", "A werewolf"), ("Apple", "An apple"), ("USA", "An usa"), ("éclair", "A éclair")]
)
def test_prompts_are_those_of_the_public_evaluation(root, cue, prompt):
    write_table(root, [(cue, NAMES[:5], NAMES[:2])])
    assert open_winogavil(root).instances[0].prompt == prompt


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_metrics(root, images, batch_size):
    evaluation = evaluate(root, batch_size=batch_size)
    metrics = evaluation.result.metrics
    scores = scores_by_hand(ColourModel().eval(), to_tensor, tokenize, images, INSTANCES)
    assert len({score for _, score in scores}) > 2
    groups = {"5": (5,), "6": (6,), "10": (10,), "12": (12,), "5-6": (5, 6), "10-12": (10, 11, 12)}
    for name, sizes in groups.items():
        own = [score for size, score in scores if size in sizes]
        assert metrics.pop(f"jaccard_score_{name}") == pytest.approx(np.mean(own))
        assert metrics.pop(f"count_{name}") == len(own)
    assert metrics == {
        "avg_jaccard_score": pytest.approx(np.mean([score for _, score in scores])),
        "main_metric": evaluation.result.main_metric,
    }
    assert (evaluation.result.key, evaluation.result.dataset) == ("misc/winogavil", "WinoGAViL")
    assert (evaluation.result.num_images, evaluation.result.num_skipped) == (7, 0)
    assert (evaluation.report.num_read, evaluation.report.num_skipped) == (7, 0)
    assert evaluation.outcomes.values.tolist() == pytest.approx([score for size, score in scores if size >= 10])
    assert evaluation.outcomes.interval.low < evaluation.result.main_metric < evaluation.outcomes.interval.high


def test_what_counts_is_ten_candidates_and_more(root):
    result = evaluate(root).result
    assert result.main_metric == result.metrics["jaccard_score_10-12"] != result.metrics["avg_jaccard_score"]
    # Between six and ten candidates, which the published data do not have, an instance counts in the mean alone.
    write_table(root, [*INSTANCES, ("green", NAMES[:8], NAMES[2:4])])
    more = evaluate(root).result
    assert more.metrics["jaccard_score_10-12"] == result.main_metric
    assert more.metrics["jaccard_score_5-6"] == result.metrics["jaccard_score_5-6"]
    assert more.metrics["avg_jaccard_score"] != result.metrics["avg_jaccard_score"]


def test_a_real_model_on_pictures_with_noise(root):
    spec = attrs.evolve(
        SMALL_MCT, text=attrs.evolve(SMALL_MCT.text, input=attrs.evolve(SMALL_MCT.text.input, vocab_size=49408))
    )
    torch.manual_seed(0)
    model = spec.build().eval()
    transform, tokenizer = ImageTransform(spec.image.input), Tokenizer(spec.text.input)
    pictures = {
        name: encoded(shade, size=(40, 50), noise=90, seed=seed)
        for seed, (name, shade) in enumerate(zip(NAMES, SHADES, strict=True))
    }
    write_images(root, pictures)
    session = Session(model, transform=transform, tokenize=tokenizer, batch_size=5, show_progress=False)
    evaluation = evaluate_winogavil(session, open_winogavil(root))
    scores = scores_by_hand(model, transform, tokenizer, pictures, INSTANCES)
    assert evaluation.result.main_metric == pytest.approx(np.mean([score for size, score in scores if size >= 10]))
    assert evaluation.result.metrics["avg_jaccard_score"] == pytest.approx(np.mean([score for _, score in scores]))


def test_every_image_is_read_once_wherever_it_is(root, images):
    packed = evaluate(root).result
    with web_server() as site:
        for path in root.iterdir():
            site.files[f"/winogavil/{path.name}"] = path.read_bytes()
        assert evaluate(f"{site.url}/winogavil").result == packed
    (root / "winogavil_images.zip").unlink()
    (root / "winogavil_images").mkdir()
    for name, content in images.items():
        (root / "winogavil_images" / f"{name}.{'png' if name == 'sea' else 'jpg'}").write_bytes(content)
    assert evaluate(root).result == packed


@pytest.mark.parametrize("unpacked", [False, True])
def test_images_that_cannot_be_used(root, images, unpacked):
    del images["sea"]
    images["pink"] = images["pink"][:-30]
    write_images(root, images)
    if unpacked:
        with zipfile.ZipFile(root / "winogavil_images.zip") as archive:
            archive.extractall(root)
        (root / "winogavil_images.zip").unlink()
    evaluation = evaluate(root)
    report = evaluation.report
    assert report.keys("image_missing") == ("sea",)
    assert report.keys("image_truncated") == ("pink",)
    assert report.keys("instance_incomplete") == ("103", "104", "105", "106")
    assert report.named["instance_incomplete"][0].detail == "it lacks the image of 'pink', 'sea'"
    assert report.num_read == 3
    assert (evaluation.result.num_images, evaluation.result.num_skipped) == (3, 4)
    scores = scores_by_hand(ColourModel().eval(), to_tensor, tokenize, images, INSTANCES[:3])
    assert evaluation.result.main_metric == pytest.approx(scores[2][1])
    assert evaluation.result.metrics["count_10-12"] == 1
    assert "jaccard_score_12" not in evaluation.result.metrics


def test_a_damaged_entry_of_the_zip_file(root):
    path = root / "winogavil_images.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("winogavil_images/pink.jpg").header_offset
    data = bytearray(path.read_bytes())
    data[start + 60 : start + 80] = bytes(20)
    path.write_bytes(data)
    evaluation = evaluate(root)
    assert evaluation.report.keys("image_unreadable") == ("pink",)
    assert evaluation.report.counts["instance_incomplete"] == 4


def test_nothing_left_that_counts(root, images):
    write_images(root, {name: images[name] for name in NAMES[:6]})
    with fails("evaluation.instance-winogavil-ten-candidates", "2 samples read, 11 skipped"):
        evaluate(root)
    (root / "winogavil_images.zip").write_bytes((root / "winogavil_images.zip").read_bytes()[:-100])
    with fails("evaluation.zip-file-whole-fetch", "winogavil_images.zip"):
        evaluate(root)
    (root / "winogavil_images.zip").unlink()
    with fails("evaluation.missing-images-winogavil-nor", "winogavil_images.zip"):
        open_winogavil(root)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('1,"[""a"", ""b""]", ,"[""a""]"', "line 3: there is no cue"),
        ('0,"[""a"", ""b""]",cue,"[""a""]"', "line 3: ID '0' comes twice"),
        ('1,"a, b",cue,"[""a""]"', "line 3: candidates holds 'a, b', expected a JSON list of names of images"),
        ('1,"[]",cue,"[""a""]"', "line 3: candidates holds '[]'"),
        (f'1,"{"[" * 50_000}",cue,"[""a""]"', "line 3: candidates holds '[[["),
        ('1,"[""a"", 2]",cue,"[""a""]"', "line 3: candidates holds"),
        ('1,"[""../a""]",cue,"[""../a""]"', "line 3: candidates holds '[\"../a\"]'"),
        ('1,"[""a""]",cue', "line 3: associations holds ''"),
        ('1,"[""a""]",cue,"[""b""]"', "line 3: none of the candidates is among the associations"),
    ],
)
def test_malformed_rows(root, row, message):
    table = f'ID,candidates,cue,associations\n0,"[""a"", ""b""]",cue,"[""a""]"\n{row}\n'
    (root / "winogavil_dataset.csv").write_text(table)
    with pytest.raises(ValueError, match=r"winogavil_dataset\.csv, line") as caught:
        open_winogavil(root)
    assert message in str(caught.value)


def test_malformed_tables(root):
    path = root / "winogavil_dataset.csv"
    path.write_text("ID,cue\n1,a\n")
    with fails("evaluation.column", "dataset.csv", "1", "candidates, associations"):
        open_winogavil(root)
    path.write_text("ID,candidates,cue,associations\n")
    with pytest.raises(ValueError, match="has no rows"):
        open_winogavil(root)
    path.write_text("ID,candidates,cue,associations\n0,[],a,[]\n".replace("[]", '"[""a""]"') + '1,"[""a""]"x,a,"[]"\n')
    with fails("evaluation.table-after-line", "dataset.csv", "2", "expected after"):
        open_winogavil(root)
    path.write_bytes(b"ID,cue\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        open_winogavil(root)
    path.unlink()
    with fails("evaluation.missing-instances-winogavil-row", "winogavil_dataset.csv"):
        open_winogavil(root)
