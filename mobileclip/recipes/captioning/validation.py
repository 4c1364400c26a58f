"""How well a captioner in training foretells held-out captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.datasets import RowOptions
from mobileclip.encoders import CoCa, CoCaSpec
from mobileclip.inference.modes import evaluating
from mobileclip.losses import CaptionLossSpec
from mobileclip.recipes.training.validation import held_out_pairs
from mobileclip.training import Evaluate

_BATCH = 32


def captions_on(data: Sequence[str], rows: RowOptions, model: CoCaSpec) -> Evaluate:
    """Return what measures a captioner on held-out pairs, see `held_out_pairs`: nats per id, and ids foretold right.

    Args:
        data: places of the pairs.
        rows: how rows of lists and tables are read.
        model: whose inputs are made.
    """
    transform, tokenizer = ImageTransform(model.image.input), Tokenizer(model.text.input)
    pairs = [(sample.image, sample.captions[0]) for sample in held_out_pairs(data, rows)]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(pairs), _BATCH):
            images, texts = zip(*pairs[start : start + _BATCH], strict=True)
            yield torch.stack([transform(image) for image in images]), tokenizer(texts)

    @torch.no_grad()
    def evaluate(student: nn.Module, _num_steps: int) -> Mapping[str, float]:
        assert isinstance(student, CoCa), "a run trains a captioner"
        pad_id, device = model.text.input.pad_id, student.logit_scale.device
        loss = CaptionLossSpec(pad_id=pad_id).build()
        total = right = count = 0.0
        with evaluating(student):
            for images, texts in batches():
                out = student(images.to(device), texts.to(device))
                counted = out.labels != pad_id
                total += loss.sums(out.logits, out.labels).double().sum().item()
                right += (counted & (out.logits.argmax(dim=-1) == out.labels)).sum().item()
                count += counted.sum().item()
        return {"validation_nats_per_id": total / count, "validation_ids_right": right / count}

    return evaluate
