"""Pooling: over the feature map, or at the end of the text."""

import pytest
import torch

from mobileclip.blocks import ConvPoolHead, EndTokenPool
from tests.blocks.filling import filled, noise


def test_conv_pool_head_formula():
    head, x = filled(ConvPoolHead(8, embedding_dim=5)), noise(2, 8, 4, 4)
    torch.testing.assert_close(head(x), head.conv(x).mean((2, 3)) @ head.project.weight.T)
    assert ConvPoolHead(8, embedding_dim=5, bias=True).project.bias is not None


@pytest.mark.parametrize(
    ("end_id", "ids"),
    [
        (None, [[49406, 320, 49407, 0], [49406, 49407, 0, 0], [49406, 5, 6, 49407]]),
        (None, [[1, 5, 9, 9], [1, 9, 9, 9], [1, 5, 5, 9]]),
        (3, [[2, 900, 3, 0], [2, 3, 0, 3], [700, 5, 6, 3]]),
    ],
)
def test_end_token_pool_takes_the_first_of_its_end_tokens_or_of_the_highest_id(end_id, ids):
    features, pool = noise(3, 4, 2), EndTokenPool(end_id=end_id)
    assert torch.equal(pool(features, torch.tensor(ids)), features[[0, 1, 2], [2, 1, 3]])
    assert not pool.state_dict()
