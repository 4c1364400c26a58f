"""Pooling: over the feature map, or at the end of the text."""

import torch

from mobileclip.blocks import ConvPoolHead, EndTokenPool
from tests.blocks.filling import filled, noise


def test_conv_pool_head_formula():
    head, x = filled(ConvPoolHead(8, embedding_dim=5)), noise(2, 8, 4, 4)
    torch.testing.assert_close(head(x), head.conv(x).mean((2, 3)) @ head.project.weight.T)


def test_a_projection_bias_is_a_choice():
    assert ConvPoolHead(8, embedding_dim=5).project.bias is None
    assert ConvPoolHead(8, embedding_dim=5, bias=True).project.bias is not None


def test_end_token_pool_takes_the_highest_id():
    features = noise(3, 4, 2)
    ids = torch.tensor([[49406, 320, 49407, 0], [49406, 49407, 0, 0], [49406, 5, 6, 49407]])
    assert torch.equal(EndTokenPool()(features, ids), torch.stack([features[0, 2], features[1, 1], features[2, 3]]))


def test_of_several_end_tokens_the_first_counts():
    features = noise(1, 4, 2)
    assert torch.equal(EndTokenPool()(features, torch.tensor([[1, 9, 9, 9]])), features[:, 1])


def test_end_token_pool_takes_an_end_token_that_is_not_the_highest_id():
    features = noise(3, 4, 2)
    ids = torch.tensor([[2, 900, 3, 0], [2, 3, 0, 3], [700, 5, 6, 3]])
    pool = EndTokenPool(end_id=3)
    assert torch.equal(pool(features, ids), torch.stack([features[0, 2], features[1, 1], features[2, 3]]))
    assert not pool.state_dict()
