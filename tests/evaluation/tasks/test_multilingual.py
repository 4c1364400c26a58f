"""Retrieval by language: XTD10 and Crossmodal-3600 as CLIP_benchmark reads the same files, and tables of one's own."""

import importlib
import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import nn

from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import (
    EvaluationSpec,
    TaskOptions,
    candidate_of,
    evaluate_models,
    find_task,
    read_results,
    summarize,
)
from mobileclip.evaluation.tables import results_table
from tests.contracts.tasks import check_task
from tests.encoders.small import SMALL, randomised
from tests.errors import fails
from tests.evaluation.models import image_spec_of, session_of, text_spec_of
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor
from tests.lazily import lazily

retrieval = lazily("clip_benchmark.metrics.zeroshot_retrieval")

LANGUAGES = ("de", "en", "ko")
COUNT = 30


def tokenize(texts):
    return torch.tensor([[byte - 128 for byte in sha256(text.encode()).digest()[:16]] for text in texts])


class ScatteringPictures(nn.Module):
    """Puts every picture somewhere else."""

    def __init__(self):
        super().__init__()
        self.spec = image_spec_of(16)
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(48, 16))

    def forward(self, images):
        return images.flatten(1) @ self.weight


class ScatteringTexts(nn.Module):
    """Puts every text somewhere else."""

    def __init__(self):
        super().__init__()
        self.spec = text_spec_of(16, 16)
        self.tokenizer = tokenize

    def forward(self, tokens):
        return tokens.float()


def scattering():
    """A model whose rankings have no ties."""
    return DualEncoder(ScatteringPictures(), ScatteringTexts()).eval()


def pictures():
    """Return noise, and a caption of it in every language."""
    for number in range(COUNT):
        image = encoded((0.5, 0.5, 0.5), noise=60, seed=number)
        yield f"{number:03d}", image, {language: f"{language} {number} \u00e9" for language in LANGUAGES}


def xtd10(data):
    folder = data / "xtd10"
    for name in ("XTD10", "MIC", "images"):
        (folder / name).mkdir(parents=True)
    made = list(pictures())
    for key, image, _ in made:
        (folder / "images" / f"{key}.jpg").write_bytes(image)
    (folder / "XTD10" / "test_image_names.txt").write_text("".join(f"{key}.jpg\n" for key, *_ in made))
    for language in LANGUAGES:
        path = folder / ("MIC" if language == "de" else "XTD10") / f"test_1kcaptions_{language}.txt"
        path.write_text("".join(f"{said[language]}\n" for *_, said in made))
    return folder


def crossmodal3600(data):
    folder = data / "xm3600"
    (folder / "images").mkdir(parents=True)
    lines = []
    for key, image, said in pictures():
        (folder / "images" / f"{key}.jpg").write_bytes(image)
        captions = {language: {"caption": [said[language], "a second one"]} for language in LANGUAGES}
        lines.append({"image/key": key, "image/locale": "de", **captions})
    (folder / "captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def theirs(name, folder, monkeypatch, language):
    """Return what CLIP_benchmark's own reading of a folder and its own metrics give."""
    module = importlib.import_module(f"clip_benchmark.datasets.{name}")
    if folder.name == "xtd10":
        found = {path.name: path for path in folder.rglob("*.txt")}
        monkeypatch.setattr(module, "_get_lines", lambda url: found[url.rpartition("/")[2]].read_text().splitlines())
    module.create_annotation_file(str(folder.parent), language)
    annotations = str(folder.parent / module.OUTPUT_FILENAME_TEMPLATE.format(language))
    kind = module.XTD10 if folder.name == "xtd10" else module.Crossmodal3600
    data = kind(root=str(folder.parent), ann_file=annotations, transform=to_tensor)
    batches = torch.utils.data.DataLoader(
        data,
        batch_size=8,
        collate_fn=lambda rows: (torch.stack([image for image, _ in rows]), [row[1] for row in rows]),
    )
    return retrieval.evaluate(scattering(), batches, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])


@pytest.fixture
def session():
    return session_of(scattering(), batch_size=8)


@pytest.mark.parametrize("written", [xtd10, crossmodal3600])
def test_each_language_has_the_numbers_of_clip_benchmark(written, session, tmp_path, monkeypatch):
    folder, key = written(tmp_path), f"multilingual/{written.__name__}"
    found = find_task(key, str(tmp_path)).open(TaskOptions()).evaluate(session)
    assert [part.key for part in found.parts] == [f"{key}/{language}" for language in LANGUAGES]
    for language, part in zip(LANGUAGES, found.parts, strict=True):
        expected = theirs(written.__name__, folder, monkeypatch, language)
        assert 0 < expected["image_retrieval_recall@10"] < 1
        assert {name: part.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert part.num_images == COUNT
    for name in found.metrics:
        mean = np.mean([part.metrics[name] for part in found.parts])
        assert found.metrics[name] == pytest.approx(mean)
    check_task(key, tmp_path, session, change=lambda: next(folder.rglob("*.jpg")).unlink())


def test_missing_pictures_are_counted_and_missing_captions_refused(session, tmp_path):
    folder = xtd10(tmp_path)
    (folder / "images" / "003.jpg").unlink()
    (folder / "images" / "004.jpg").write_bytes(b"no picture")
    task = find_task("multilingual/xtd10", str(tmp_path))
    found = task.open(TaskOptions()).evaluate(session)
    assert (found.num_images, found.num_skipped) == (COUNT - 2, 2)
    assert found.report.counts == {"missing_image": 1, "image_not_an_image": 1}
    (folder / "MIC" / "test_1kcaptions_de.txt").write_text("one alone")
    with fails(ValueError, "1", "de", "30"):
        task.open(TaskOptions())


def test_a_data_set_of_ones_own_has_a_row_for_each_language(tmp_path, monkeypatch):
    """Each picture is encoded once, however many rows name it, and each language is ranked by itself."""
    made = list(pictures())
    (tmp_path / "own").mkdir()
    for key, image, _ in made:
        (tmp_path / "own" / f"{key}.png").write_bytes(image)
    (tmp_path / "own" / "000.png").write_bytes(made[0][1][:60])
    rows = [
        {"image": f"{key}.png", "caption": said[language], "language": language}
        for key, _, said in made
        for language in LANGUAGES[: 1 + (int(key) % 2)]
    ]
    place = tmp_path / "own" / "own.jsonl"
    place.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    seen = []
    encode = DualEncoder.encode_image
    monkeypatch.setattr(
        DualEncoder, "encode_image", lambda self, batch, **options: seen.extend(batch) or encode(self, batch, **options)
    )
    spec = EvaluationSpec(datasets=(str(place),), output=tmp_path / "out", batch_size=8, device="cpu")
    run = evaluate_models([candidate_of(randomised(SMALL), name="small")], spec)
    assert run.failures == ()
    records = run.models[0].results
    assert list(records) == ["own", "own/de", "own/en"]
    assert [record.num_images for record in records.values()] == [COUNT - 1, COUNT - 1, COUNT // 2]
    assert len(seen) == COUNT - 1
    assert records["own"].left_out == {"image_truncated": 1}
    mean = (records["own/de"].main_metric + records["own/en"].main_metric) / 2
    assert records["own"].main_metric == pytest.approx(mean)
    assert read_results(run.models[0].path).keys() == records.keys()
    assert [row[0].text for row in results_table(summarize(run)).rows] == [
        "own, mean of 2 languages", "own, de", "own, en",
    ]  # fmt: skip
