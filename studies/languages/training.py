"""One training: a tokenizer for all languages, the teacher's embeddings of the English texts, and a bag of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mobileclip.data import TextPipelineSpec, read_text_input, train_tokenizer
from mobileclip.datasets.sources import TextPair
from mobileclip.encoders import TextTransformerSpec, load_model, save_model
from mobileclip.encoders.checkpoints import packaged
from mobileclip.inference import space_of
from mobileclip.losses import TextDistillationLossSpec
from mobileclip.reinforce import CheckpointTeacher, reinforce_texts
from mobileclip.storage import write_text
from mobileclip.training import AdamWSpec, CosineSchedule, RunSpec, TrainingSpec, run
from studies.languages.spec import LanguagesSpec
from studies.languages.texts import balanced, shares

TEACHER = "icons"


def rounded(tokenizer: str) -> str:
    """Return a unigram tokenizer whose scores have two decimal places, which halves the size of its file."""
    content = json.loads(tokenizer)
    content["model"]["vocab"] = [(piece, round(score, 2)) for piece, score in content["model"]["vocab"]]
    return json.dumps(content, ensure_ascii=False)


def train_tower(spec: LanguagesSpec, found: Sequence[TextPair], folder: Path, *, seed: int) -> Path:
    """Train a text tower unless its file exists, and return its file in half precision.

    Args:
        spec: settings of the study.
        found: the texts.
        folder: folder of the training.
        seed: seed of the weights and the order.
    """
    path = folder / "tower.safetensors"
    if path.exists():
        return path
    teacher = CheckpointTeacher(checkpoint=str(packaged(TEACHER))).build()
    reinforce_texts(found, teacher, folder / "texts", space=space_of(TEACHER).to_json())
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.exists():
        texts = balanced(found, spec.names, spec.texts_per_language)
        write_text(tokenizer, rounded(train_tokenizer(texts, vocab_size=spec.vocab_size, kind="unigram")))
    text = read_text_input(tokenizer, context_length=spec.context_length)
    data = TextPipelineSpec(
        texts=folder / "texts", batch_size=spec.batch_size, text=text, shares=shares(found, spec.names), seed=seed
    )
    student = TextTransformerSpec(
        width=spec.width, num_heads=1, depth=0, pool="mean", embedding_dim=teacher.dim, input=text
    )
    training = TrainingSpec(
        loss=TextDistillationLossSpec(relation_weight=0),
        schedule=CosineSchedule(peak=spec.learning_rate, warmup_steps=spec.steps // 80, total_steps=spec.steps),
        optimizer=AdamWSpec(weight_decay=0.01),
        ema_decay=None,
        seed=seed,
        checkpoint_every_steps=spec.steps,
    )
    trained = run(RunSpec(model=student, data=data, training=training), folder / "run")
    save_model(load_model(Path(trained), fold=False).half(), path)
    return path
