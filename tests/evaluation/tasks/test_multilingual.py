"""Retrieval by language: XTD10 and Crossmodal-3600 as CLIP_benchmark reads the same files, and tables of one's own."""

import importlib
import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import nn

from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import EvaluationSpec, TaskOptions, candidate_of, evaluate_models, find_task, summarize
from mobileclip.evaluation.results import read_results
from mobileclip.evaluation.tables import results_table
from tests.contracts.tasks import check_task
from tests.encoders.small import SMALL, randomised
from tests.errors import fails
from tests.evaluation.models import NameTower, image_spec_of, session_of, text_spec_of
from tests.evaluation.tasks.choices.data import write
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor
from tests.lazily import lazily

retrieval = lazily("clip_benchmark.metrics.zeroshot_retrieval")

LANGUAGES = ("de", "en", "ko")
COUNT = 30
KEYS = [f"{number:03d}" for number in range(COUNT)]


def tokenize(texts):
    return torch.tensor([[byte - 128 for byte in sha256(text.encode()).digest()[:16]] for text in texts])


class Pictures(nn.Module):
    """Puts every picture somewhere else."""

    def __init__(self):
        super().__init__()
        self.spec = image_spec_of(16)
        self.weight = nn.Parameter(torch.randn(48, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return images.flatten(1) @ self.weight


class Texts(NameTower):
    """Puts every text somewhere else."""

    def __init__(self):
        super().__init__(tokenize)
        self.spec = text_spec_of(16, 16)

    def forward(self, tokens):
        return tokens.float()


def scattering():
    """A model whose rankings have no ties."""
    return DualEncoder(Pictures(), Texts()).eval()


def caption(key, language):
    return f"{language} {int(key)} \u00e9"


def pictures(ending):
    """Noise, by the names of files."""
    return {f"{key}.{ending}": encoded((0.5, 0.5, 0.5), noise=60, seed=int(key)) for key in KEYS}


def json_lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def xtd10(data):
    folders = {"de": "MIC", "en": "XTD10", "ko": "XTD10"}
    names = {f"{folder}/test_1kcaptions_{language}.txt": language for language, folder in folders.items()}
    files = {name: "".join(f"{caption(key, language)}\n" for key in KEYS) for name, language in names.items()}
    files["XTD10/test_image_names.txt"] = "".join(f"{key}.jpg\n" for key in KEYS)
    return write(data / "xtd10", files | {f"images/{name}": image for name, image in pictures("jpg").items()})


def crossmodal3600(data):
    lines = [{"image/key": key, "image/locale": "de"} for key in KEYS]
    for line in lines:
        line |= {name: {"caption": [caption(line["image/key"], name), "a second one"]} for name in LANGUAGES}
    images = {f"images/{name}": image for name, image in pictures("jpg").items()}
    return write(data / "xm3600", {"captions.jsonl": json_lines(lines), **images})


def theirs(name, folder, monkeypatch, language):
    """Return what CLIP_benchmark's own reading of a folder and its own metrics give."""
    module = importlib.import_module(f"clip_benchmark.datasets.{name}")
    if name == "xtd10":
        found = {path.name: path for path in folder.rglob("*.txt")}
        monkeypatch.setattr(module, "_get_lines", lambda url: found[url.rpartition("/")[2]].read_text().splitlines())
    module.create_annotation_file(str(folder.parent), language)
    annotations = str(folder.parent / module.OUTPUT_FILENAME_TEMPLATE.format(language))
    kind = module.XTD10 if name == "xtd10" else module.Crossmodal3600
    rows = kind(root=str(folder.parent), ann_file=annotations, transform=to_tensor)
    batches = [(row[0][None], [row[1]]) for row in (rows[number] for number in range(COUNT))]
    return retrieval.evaluate(scattering(), batches, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])


@pytest.mark.parametrize("written", [xtd10, crossmodal3600])
def test_each_language_has_the_numbers_of_clip_benchmark(written, tmp_path, monkeypatch):
    folder, key, session = written(tmp_path), f"multilingual/{written.__name__}", session_of(scattering(), batch_size=8)
    found = find_task(key, str(tmp_path)).open(TaskOptions()).evaluate(session)
    assert [part.key for part in found.parts] == [f"{key}/{language}" for language in LANGUAGES]
    for language, part in zip(LANGUAGES, found.parts, strict=True):
        expected = theirs(written.__name__, folder, monkeypatch, language)
        assert 0 < expected["image_retrieval_recall@10"] < 1
        assert {name: part.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert part.num_images == COUNT
    means = {name: np.mean([part.metrics[name] for part in found.parts]) for name in found.metrics}
    assert found.metrics == pytest.approx(means)
    check_task(key, tmp_path, session, change=lambda: next(folder.rglob("*.jpg")).unlink())


def test_missing_pictures_are_counted_and_missing_captions_refused(tmp_path):
    folder = xtd10(tmp_path)
    (folder / "images" / "003.jpg").unlink()
    write(folder, {"images/004.jpg": b"no picture"})
    task = find_task("multilingual/xtd10", str(tmp_path))
    found = task.open(TaskOptions()).evaluate(session_of(scattering(), batch_size=8))
    assert (found.num_images, found.num_skipped) == (COUNT - 2, 2)
    assert found.report.counts == {"missing_image": 1, "image_not_an_image": 1}
    write(folder, {"MIC/test_1kcaptions_de.txt": "one alone"})
    with fails(ValueError, "1", "de", "30"):
        task.open(TaskOptions())


def test_a_data_set_of_ones_own_has_a_row_for_each_language(tmp_path, monkeypatch):
    """Each picture is encoded once, however many rows name it, and each language is ranked by itself."""
    images = pictures("png")
    spoken = [(key, language) for key in KEYS for language in LANGUAGES[: 1 + int(key) % 2]]
    rows = [{"image": f"{key}.png", "caption": caption(key, name), "language": name} for key, name in spoken]
    rows.append({"image": "001.png", "caption": "of no language", "language": ""})
    write(tmp_path, images | {"000.png": images["000.png"][:60], "own.jsonl": json_lines(rows)})
    seen, real = [], DualEncoder.encode_image

    def encode(self, batch, **options):
        seen.extend(batch)
        return real(self, batch, **options)

    monkeypatch.setattr(DualEncoder, "encode_image", encode)
    spec = EvaluationSpec(datasets=(str(tmp_path / "own.jsonl"),), output=tmp_path / "out", batch_size=8, device="cpu")
    run = evaluate_models([candidate_of(randomised(SMALL), name="small")], spec)
    assert run.failures == ()
    records = run.models[0].results
    assert list(records) == ["own", "own/de", "own/en"]
    assert [record.num_images for record in records.values()] == [COUNT - 1, COUNT - 1, COUNT // 2]
    assert len(seen) == COUNT - 1
    assert records["own"].left_out == {"image_truncated": 1, "no_language": 1}
    mean = (records["own/de"].main_metric + records["own/en"].main_metric) / 2
    assert records["own"].main_metric == pytest.approx(mean)
    assert read_results(run.models[0].path).keys() == records.keys()
    named = [row[0].text for row in results_table(summarize(run)).rows]
    assert named == ["own, mean of 2 languages", "own, de", "own, en"]
