"""Tiles: what they cover, what they hold at once, and numbers at the edge of what a tile can hold."""

import math

import pytest
import torch
from torch import Tensor

from mobileclip.losses import ContrastiveLoss, ReinforcedLossSpec, dense_loss, tiled as tiles
from mobileclip.losses.tiled import Similarity, Tiling, pair_terms
from tests.losses.embeddings import SPECS, operation_arguments, random_batch


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
        terms = ReinforcedLossSpec(teacher_dims=(6,), teacher_logit_scales=(1e4,)).build()(
            image=uniform, text=uniform, teacher_image=eye, teacher_text=eye, logit_scale=100.0
        )
        assert terms.distillation.item() == pytest.approx(math.log(6), rel=1e-5)

    @pytest.mark.usefixtures("each_backend")
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
        assert len(tiling.tiles) <= math.ceil(3 * rows * columns / 64)

    def test_the_diagonal_is_that_of_the_whole_batch(self, monkeypatch):
        monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 6)
        similarity = Similarity(torch.rand(5, 2), torch.rand(20, 2), 1.0, dtype=torch.float32)
        whole = torch.zeros(5, 20)
        for tile in Tiling([similarity], offset=10):
            tile.diagonal(whole[tile.rows, tile.columns]).fill_(1)
        assert torch.equal(whole, torch.eye(20)[10:15])


LARGE = ("reinforced, both terms", "reinforced_sigmoid, both terms", "reinforced_sigmoid, release")


@pytest.mark.parametrize("spec", [SPECS[name] for name in LARGE])
def test_memory_does_not_grow_with_the_square(spec, monkeypatch):
    """No tensor that is made on the way is larger than a tile or the embeddings."""
    monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 32 * 32)
    inputs = {name: value.detach() for name, value in random_batch(spec, 300).items()}
    largest, products = 0, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest, products
            result = func(*args, **(kwargs or {}))
            products += func is torch.ops.aten.mm.out
            for value in torch.utils._pytree.tree_leaves(result):
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return result

    arguments = operation_arguments(spec, inputs)
    with Watch():
        pair_terms(*arguments)
    assert largest <= max(8 * 32 * 32, *(value.untyped_storage().nbytes() for value in inputs.values()))
    assert products >= 2 * 3 * 10 * 10  # for two caption sets, of a student and two teachers
