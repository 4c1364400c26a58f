"""Folders that sentence-transformers loads: images, texts, what it saves, and a step of its training."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from mobileclip import ImageTextModel
from mobileclip.interop import from_pretrained, save_pretrained
from tests.encoders.small import randomised
from tests.interop.models import PHOTO, WITH_TEXTS

sentence_transformers = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
TEXTS = ["a red bicycle in snow", "cat", "two dogs on a beach " * 40]


def pictures():
    photo = Image.open(PHOTO).convert("RGB")
    return [photo, photo.rotate(90, expand=True).crop((0, 0, 200, 150))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(randomised(WITH_TEXTS), tmp_path / "model", license="mit")


def cosines(model, clip):
    images = torch.cosine_similarity(torch.tensor(model.encode(pictures())), clip.encode_image(pictures()))
    texts = torch.cosine_similarity(torch.tensor(model.encode(TEXTS)), clip.encode_text(TEXTS))
    return torch.cat([images, texts])


def test_images_and_texts_have_equal_embeddings_before_and_after_it_saves(folder, tmp_path):
    clip = ImageTextModel(from_pretrained(folder))
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert cosines(model, clip).min() > 0.99995
    model.save(str(tmp_path / "theirs"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "theirs"), device="cpu")
    assert cosines(again, clip).min() > 0.99995
    assert cosines(again, ImageTextModel(from_pretrained(tmp_path / "theirs"))).min() > 0.99995


def test_a_step_of_training_runs_and_what_it_saves_comes_back(folder, tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    before = {name: one.clone() for name, one in model.state_dict().items()}
    options = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(output_dir=str(tmp_path / "run"), **options)
    data = datasets.Dataset.from_dict({"image": pictures(), "text": TEXTS[:2]})
    loss = losses.MultipleNegativesRankingLoss(model)
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=loss
    )
    assert math.isfinite(trainer.train().training_loss)
    changed = [name for name, one in model.state_dict().items() if not torch.equal(one, before[name])]
    assert len({name.partition("_model.")[2][:6] for name in changed}) > 1, changed
    model.save(str(tmp_path / "trained"))
    model.eval()
    assert cosines(model, ImageTextModel(from_pretrained(tmp_path / "trained"))).min() > 0.99995
