"""The divergence of stored targets from exact ones: by hand, per teacher, in both directions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mobileclip.losses import distillation_target_kl
from tests.errors import fails

DIMS, SCALES = (6, 10), (30.0, 100.0)


def embeddings(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, noise = (torch.randn(5, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    return image, image + 0.5 * noise


def divergence(stored, exact, **changes):
    choices = {"teacher_dims": DIMS, "teacher_logit_scales": SCALES} | changes
    return distillation_target_kl(*stored, exact_image=exact[0], exact_text=exact[1], **choices)


def test_no_graph_is_kept_for_gradients_that_nobody_can_ask_for():
    stored, kept = [value.requires_grad_() for value in embeddings(1)], []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        assert divergence(stored, embeddings(0)).mean > 0
    assert kept == []


def test_by_hand():
    exact, stored = embeddings(0), tuple(value.bfloat16() for value in embeddings(0))
    result = divergence(stored, exact)
    start = 0
    for index, (dim, scale) in enumerate(zip(DIMS, SCALES, strict=True)):
        p, q = (
            scale
            * F.normalize(image[:, start : start + dim].double(), dim=1)
            @ F.normalize(text[:, start : start + dim].double(), dim=1).T
            for image, text in (exact, stored)
        )
        for found, axis in ((result.image_to_text, 1), (result.text_to_image, 0)):
            target, approximation = p.softmax(axis), q.softmax(axis)
            expected = float((target * (target / approximation).log()).sum(axis).mean())
            assert found[index] == pytest.approx(expected, rel=1e-9)
            assert 0 < expected < 0.1
        start += dim
    assert result.mean == pytest.approx(sum(result.image_to_text + result.text_to_image) / 4)


def test_only_the_teacher_that_was_rounded_has_some():
    image, text = embeddings(1)
    assert divergence((image, text), (image, text)).mean == 0
    stored = image.clone()
    stored[:, :6] += 0.1
    result = divergence((stored, text), (image, text))
    assert min(result.image_to_text[0], result.text_to_image[0]) > 1e-6
    assert result.image_to_text[1] == result.text_to_image[1] == 0
    scaled = tuple(torch.cat([2 * value[:, :6], 3 * value[:, 6:]], dim=1) for value in (image, text))
    assert divergence(scaled, (image, text)).mean < 1e-12, "length does not count"


@pytest.mark.parametrize(
    ("stored", "changes", "named"),
    [
        ((torch.ones(4, 16), torch.ones(4, 16)), {}, ("stored_image", "4", "exact_image", "5")),
        ((torch.ones(5, 16), torch.ones(5, 15)), {}, ("stored_text", "15")),
        (None, {"teacher_dims": (8, 9)}, ("16",)),
        (None, {"teacher_logit_scales": (1.0,)}, ()),
    ],
)
def test_mistakes(stored, changes, named):
    with fails(ValueError, *named):
        divergence(stored or embeddings(0), embeddings(0), **changes)
