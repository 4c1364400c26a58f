"""The losses tile by tile against the matrices held whole: values, every gradient, extremes, memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mobileclip.losses import (
    ContrastiveLoss,
    LossSpec,
    LossTerms,
    ReinforcedLoss,
    ReinforcedLossSpec,
    dense_loss,
)
from mobileclip.losses.tiled import tiles
from mobileclip.losses.tiled.tiles import Similarity, Tiling
from tests.losses.embeddings import SPECS, STUDENT, random_batch

# Bytes that make tiles of 4 x 4, 3 x 3 and one float64; and the library's own, in which small batches are one tile.
TILE_BYTES = [8 * 16, 8 * 9, 8, tiles.TILE_BYTES]
TERMS = ("contrastive", "distillation", "total")

each_loss = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@pytest.fixture(params=TILE_BYTES, ids=lambda size: f"{size}bytes")
def each_size(request, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", request.param)


def evaluate(loss: torch.nn.Module, inputs: dict[str, Tensor], scale: float, term: str) -> tuple[LossTerms, list]:
    return _gradients(loss, loss, inputs, scale, term)


def evaluate_dense(spec: LossSpec, loss: torch.nn.Module, inputs: dict[str, Tensor], scale: float, term: str):
    bias = getattr(loss, "logit_bias", None)
    more = {} if bias is None else {"logit_bias": bias}
    return _gradients(lambda **given: dense_loss(spec, **given, **more), loss, inputs, scale, term)


def _gradients(call, loss, inputs, scale, term):
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    terms = call(**inputs, logit_scale=logit_scale)
    wanted = [value for value in inputs.values() if value.requires_grad] + [logit_scale, *loss.parameters()]
    value = getattr(terms, term)
    return terms, torch.autograd.grad(value, wanted) if value.requires_grad else []


def assert_equal(spec, batch, scale, *, syn=True, seed=0, tolerance=1e-12):
    inputs = random_batch(spec, batch, syn=syn, seed=seed)
    loss = spec.build().double()
    for term in TERMS:
        ours, gradients = evaluate(loss, inputs, scale, term)
        dense, expected = evaluate_dense(spec, loss, inputs, scale, term)
        for name in TERMS:
            torch.testing.assert_close(getattr(ours, name), getattr(dense, name), rtol=tolerance, atol=tolerance)
        assert len(gradients) == len(expected)
        assert len(gradients) >= 3 or term != "total"
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@each_loss
class TestAgainstDense:
    @pytest.mark.usefixtures("each_size")
    def test_values_and_gradients(self, spec):
        assert_equal(spec, 7, 9.0)

    @pytest.mark.usefixtures("each_size")
    def test_without_synthetic_captions(self, spec):
        assert_equal(spec, 6, 9.0, syn=False)

    @pytest.mark.parametrize("batch", [1, 2, 9])
    def test_batches(self, spec, batch, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 16)
        assert_equal(spec, batch, 20.0)

    @pytest.mark.parametrize("scale", [0.0, 1e-3, 100.0, 5000.0])
    def test_scales(self, spec, scale, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 9)
        assert_equal(spec, 7, scale, tolerance=1e-11 if scale > 1000 else 1e-12)

    def test_gradcheck(self, spec, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 4)
        inputs = random_batch(spec, 3)
        loss = spec.build().double()
        fixed = {name: value for name, value in inputs.items() if not value.requires_grad}

        def terms(image, text, syn_text, logit_scale, *bias):
            found = loss(image=image, text=text, syn_text=syn_text, logit_scale=logit_scale, **fixed)
            return found.contrastive, found.distillation, found.total

        scale = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
        student = [inputs[name] for name in STUDENT]
        assert torch.autograd.gradcheck(terms, (*student, scale, *loss.parameters()))


@each_loss
class TestCalls:
    def test_the_scale_may_be_a_number(self, spec):
        inputs = random_batch(spec, 4)
        loss = spec.build().double()
        by_tensor = loss(**inputs, logit_scale=torch.tensor([0.1], dtype=torch.float64)).total
        assert loss(**inputs, logit_scale=0.1).total.item() == by_tensor.item()

    def test_a_scale_of_one_dim_gets_its_gradient(self, spec):
        scale = torch.tensor([9.0], requires_grad=True)
        spec.build()(**random_batch(spec, 4), logit_scale=scale).total.backward()
        assert scale.grad.shape == (1,)
        assert scale.grad.dtype == torch.float32

    def test_two_scales_are_refused(self, spec):
        with pytest.raises(ValueError, match=r"logit_scale must be one number, but its shape is \(2,\)"):
            spec.build()(**random_batch(spec, 4), logit_scale=torch.ones(2))

    def test_backward_twice(self, spec):
        inputs = random_batch(spec, 5)
        total = spec.build()(**inputs, logit_scale=9.0).total
        total.backward(retain_graph=True)
        once = inputs["image"].grad.clone()
        (2 * total).backward()
        torch.testing.assert_close(inputs["image"].grad, 3 * once)

    def test_without_gradients_the_value_is_the_same(self, spec):
        inputs = random_batch(spec, 5)
        loss = spec.build()
        expected = loss(**inputs, logit_scale=9.0).total
        with torch.no_grad():
            value = loss(**inputs, logit_scale=9.0).total
        assert value.item() == expected.item()
        assert not value.requires_grad

    def test_only_some_gradients(self, spec):
        inputs = random_batch(spec, 5)
        spec.build()(**inputs, logit_scale=9.0).total.backward()
        expected = inputs["text"].grad
        alone = {name: value.detach() for name, value in inputs.items()}
        alone["text"].requires_grad_()
        spec.build()(**alone, logit_scale=9.0).total.backward()
        torch.testing.assert_close(alone["text"].grad, expected, rtol=0, atol=0)
        assert alone["image"].grad is None

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_is_widened(self, spec, dtype, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 9)
        inputs = random_batch(spec, 7, dtype=dtype)
        loss = spec.build()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = loss(**inputs, logit_scale=torch.tensor(50.0, dtype=dtype)).total
        exact = {name: value.detach().double() for name, value in inputs.items()}
        assert total.dtype == torch.float32
        assert total.item() == pytest.approx(spec.build().double()(**exact, logit_scale=50.0).total.item(), rel=1e-5)
        total.backward()
        assert inputs["text"].grad.dtype == dtype

    def test_float32_at_a_scale_of_100(self, spec, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 100)
        inputs = random_batch(spec, 33, dim=16, dtype=torch.float32)
        loss = spec.build()
        exact = {name: value.detach().double().requires_grad_(value.requires_grad) for name, value in inputs.items()}
        total, expected = (
            loss(**inputs, logit_scale=100.0).total,
            dense_loss(spec, **exact, logit_scale=100.0, logit_bias=-3).total,
        )
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
        total.backward()
        expected.backward()
        for name in STUDENT:
            torch.testing.assert_close(inputs[name].grad.double(), exact[name].grad, rtol=1e-3, atol=2e-5)


class TestExtremes:
    @pytest.mark.usefixtures("each_size")
    @pytest.mark.parametrize("scale", [100.0, 1e4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_very_negative_logits_are_uniform(self, scale, dtype):
        """Every image is opposite to every text: all logits are minus the scale."""
        image = torch.zeros(8, 4, dtype=dtype)
        image[:, 0] = 1
        image.requires_grad_()
        total = ContrastiveLoss()(image=image, text=-image.detach(), logit_scale=scale).total
        assert total.item() == pytest.approx(math.log(8), abs=scale * torch.finfo(dtype).eps)
        total.backward()
        assert image.grad.abs().max() < 3 * scale**2 * torch.finfo(dtype).eps

    @pytest.mark.usefixtures("each_size")
    def test_a_scale_beyond_reason_stays_finite(self):
        inputs = random_batch(SPECS["reinforced, both terms"], 8, dtype=torch.float32)
        assert math.isfinite(SPECS["reinforced, both terms"].build()(**inputs, logit_scale=1e30).total.item())

    @pytest.mark.usefixtures("each_size")
    def test_a_row_far_below_the_others(self):
        """The second image's logits all lie 2e4 below the first's, and the third is in between."""
        image = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
        text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0]], dtype=torch.float64, requires_grad=True)
        spec = ReinforcedLossSpec(
            teacher_dims=(2,), teacher_logit_scales=(1e4,), contrastive_weight=1.0, distill_weight=1.0
        )
        inputs = {"image": image, "text": text, "teacher_image": image.detach(), "teacher_text": text.detach()}
        ours = spec.build()(**inputs, logit_scale=1e4)
        dense = dense_loss(spec, **inputs, logit_scale=1e4)
        assert ours.contrastive.item() == pytest.approx(dense.contrastive.item(), rel=1e-11)
        assert ours.distillation.item() == pytest.approx(0.0, abs=1e-11)
        for one, other in zip(
            torch.autograd.grad(ours.total, (image, text)), torch.autograd.grad(dense.total, (image, text)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-7)

    @pytest.mark.usefixtures("each_size")
    def test_a_sure_teacher_of_an_unsure_student(self):
        eye = torch.eye(6)
        uniform = torch.ones(6, 3).div(3**0.5).requires_grad_()
        terms = ReinforcedLoss(teacher_dims=(6,), teacher_logit_scales=(1e4,))(
            image=uniform, text=uniform, teacher_image=eye, teacher_text=eye, logit_scale=100.0
        )
        assert terms.distillation.item() == pytest.approx(math.log(6), rel=1e-5)

    def test_nan_stays_nan(self):
        inputs = random_batch(SPECS["reinforced"], 4)
        inputs["image"] = inputs["image"].detach().clone()
        inputs["image"][1, 1] = torch.nan
        assert math.isnan(SPECS["reinforced"].build()(**inputs, logit_scale=9.0).total.item())


class TestTiling:
    @pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 5), (3, 200), (200, 3), (101, 67)])
    def test_tiles_cover_each_pair_once_and_stay_within_the_budget(self, rows, columns, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 64)
        similarity = Similarity(
            torch.rand(rows, 2, dtype=torch.float64), torch.rand(columns, 2), 2.0, dtype=torch.float64
        )
        tiling = Tiling([similarity], offset=0)
        seen = torch.zeros(rows, columns)
        for tile in tiling:
            seen[tile.rows, tile.columns] += 1
            logits = tiling.logits(tile, 0, out=tiling.scratch())
            assert logits.numel() <= 64
            expected = 2 * similarity.image[tile.rows] @ similarity.text[tile.columns].double().mT
            torch.testing.assert_close(logits, expected)
        assert (seen == 1).all()
        assert len(tiling.rows) * len(tiling.columns) <= math.ceil(3 * rows * columns / 64)

    def test_the_diagonal_is_that_of_the_whole_batch(self, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 6)
        similarity = Similarity(torch.rand(5, 2), torch.rand(20, 2), 1.0, dtype=torch.float32)
        whole = torch.zeros(5, 20)
        for tile in Tiling([similarity], offset=10):
            tile.diagonal(whole[tile.rows, tile.columns]).fill_(1)
        assert torch.equal(whole, torch.eye(20)[10:15])


@pytest.mark.parametrize("spec", [SPECS["reinforced, both terms"], SPECS["reinforced_sigmoid, both terms"]])
def test_memory_does_not_grow_with_the_square(spec, monkeypatch):
    """No tensor that is made on the way is larger than a tile or the embeddings."""
    monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 32 * 32)
    inputs = random_batch(spec, 300)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in torch.utils._pytree.tree_leaves(result):
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return result

    with Watch():
        spec.build()(**inputs, logit_scale=9.0).total.backward()
    assert largest <= max(8 * 32 * 32, *(value.untyped_storage().nbytes() for value in inputs.values()))
