"""One training: batches, student, and scores on held-out drawings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from examples.quickstart.stored import StoredSamples
from mobileclip.encoders import DualEncoder, save_model
from mobileclip.training import train
from studies.learning_efficiency.results import Result
from studies.learning_efficiency.scoring import HeldOut, score_student
from studies.learning_efficiency.spec import Cell, EfficiencySpec
from studies.learning_efficiency.stores import card_of, cell_batches, load_store, store_of
from studies.learning_efficiency.variants import VARIANTS

MODEL = "model.safetensors"


def train_cell(spec: EfficiencySpec, cell: Cell, folder: Path) -> DualEncoder:
    """Train a student, or resume from its last checkpoint.

    Args:
        spec: settings of the study.
        cell: which training.
        folder: folder for metrics and checkpoints.

    Raises:
        FloatingPointError: if the loss is not finite; the message names the step and the images.
    """
    variant, store = VARIANTS[cell.variant], store_of(cell, spec)
    return train_student(spec, cell, load_store(spec, store, variant), folder)


def train_student(spec: EfficiencySpec, cell: Cell, samples: StoredSamples, folder: Path) -> DualEncoder:
    """Train a student on samples; see `train_cell`."""
    variant, store = VARIANTS[cell.variant], store_of(cell, spec)
    cards = [card_of(spec, store, name) for name in variant.teachers]
    loss = spec.loss(
        variant,
        dims=tuple(dim for card in cards for dim in card.teacher_dims),
        logit_scales=tuple(scale for card in cards for scale in card.teacher_logit_scales),
    )
    torch.manual_seed(cell.seed)
    trained = train(
        spec.training(loss, budget=cell.budget, seed=cell.seed, learning_rate=cell.learning_rate),
        model=spec.student.build(),
        batches=cell_batches(spec, cell, samples),
        output=folder,
    ).model
    assert isinstance(trained, DualEncoder), "a dual encoder was given"
    return trained


def measure_cell(spec: EfficiencySpec, cell: Cell, parts: Mapping[str, HeldOut], folder: Path) -> Result:
    """Train a student, write the model to its folder, and return its scores.

    Args:
        spec: settings of the study.
        cell: which training.
        parts: the held-out drawings.
        folder: folder for model, metrics and checkpoints.
    """
    started, processor = time.monotonic(), time.process_time()
    model = train_cell(spec, cell, folder)
    save_model(model, folder / MODEL)
    return Result(
        study=spec.study,
        cell=cell,
        scores=score_student(model, parts),
        seconds=round(time.monotonic() - started, 1),
        processor_seconds=round(time.process_time() - processor, 1),
    )
