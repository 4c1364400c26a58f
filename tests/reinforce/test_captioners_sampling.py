import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mobileclip.reinforce.captioners import caption_streams, nucleus_ids


def logits_of(rows, vocab, seed, spread=3.0):
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def exact_probabilities(logits, top_p, temperature):
    """What nucleus sampling is, written plainly: sort, cut, sharpen, divide."""
    logits = logits.double().numpy()
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    before = np.cumsum(probs[order]) - probs[order]
    kept = order[before < top_p]
    weights = np.zeros_like(probs)
    weights[kept] = probs[kept] ** (1 / temperature)
    return weights / weights.sum()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 40, 256, 257, 1000, 5000]),
    st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.sampled_from([0.3, 3.0, 10.0]),
)
def test_evenly_spread_draws_give_exactly_the_distribution(seed, vocab, top_p, temperature, spread):
    logits = logits_of(1, vocab, seed, spread)
    num_draws = 300
    draws = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    ids = nucleus_ids(logits.expand(num_draws, -1), draws, top_p=top_p, temperature=temperature)
    counts = np.bincount(ids.numpy(), minlength=vocab)
    # The inverse of a cumulated probability hits an id as often as its probability says, to within one at either end;
    # whether the last id still belongs to the nucleus may hang on the last bit.
    expected = exact_probabilities(logits[0], top_p, temperature) * num_draws
    assert np.abs(counts - expected).max() < 1.01


def test_equal_ids_come_in_their_order_and_all_may_be_equal():
    logits = torch.zeros(4, 10)
    draws = torch.tensor([0.0, 0.25, 0.6, 0.999], dtype=torch.float64)
    assert nucleus_ids(logits, draws, top_p=1.0, temperature=1.0).tolist() == [0, 2, 6, 9]
    assert nucleus_ids(logits, draws, top_p=0.45, temperature=1.0).tolist() == [0, 1, 3, 4]
    # More equal ids than are sorted at first, beside a better one.
    logits = torch.zeros(1, 3000)
    logits[0, 2000] = 1e-3
    ids = [
        nucleus_ids(logits, torch.tensor([draw], dtype=torch.float64), top_p=0.5, temperature=1.0).item()
        for draw in (0.0, 0.4, 0.9999)
    ]
    assert ids == [2000, 598, 1498]


def test_a_small_nucleus_is_the_most_probable_id():
    logits = logits_of(50, 3000, 0)
    draws = torch.rand(50, dtype=torch.float64)
    assert torch.equal(nucleus_ids(logits, draws, top_p=1e-9, temperature=1.0), logits.argmax(-1))
    assert torch.equal(nucleus_ids(logits, draws, top_p=1.0, temperature=1e-3), logits.argmax(-1))


def test_what_is_out_of_the_question_is_never_drawn():
    logits = torch.full((200, 600), -torch.inf)
    logits[:, 17] = 0.0
    logits[:, 400] = 0.0
    draws = torch.linspace(0, 1 - 1e-12, 200, dtype=torch.float64)
    assert nucleus_ids(logits, draws, top_p=1.0, temperature=2.0).tolist() == [17] * 100 + [400] * 100


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_rows_do_not_see_each_other(top_p):
    # Rows of every kind, so that some are decided at once and others after sorting more.
    logits = torch.cat([logits_of(6, 6000, seed, spread) for seed, spread in enumerate((0.01, 1.0, 4.0, 20.0))])
    draws = torch.rand(len(logits), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = nucleus_ids(logits, draws, top_p=top_p, temperature=1.0)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(2))
    assert torch.equal(nucleus_ids(logits[order], draws[order], top_p=top_p, temperature=1.0), together[order])
    alone = [nucleus_ids(logits[i : i + 1], draws[i : i + 1], top_p=top_p, temperature=1.0) for i in range(len(logits))]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("top_p", [0.1, 0.6, 0.9])
def test_the_nucleus_is_that_of_transformers(top_p):
    import transformers as generation

    logits = logits_of(4, 500, 3)
    warped = generation.TopPLogitsWarper(top_p)(None, logits.clone())
    draws = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for row, kept in zip(logits, warped.isfinite(), strict=True):
        ids = nucleus_ids(row.expand(len(draws), -1), draws, top_p=top_p, temperature=1.0)
        # Ids too rare to be hit by any of the draws are not missed.
        likely = kept & (torch.where(kept, row, -torch.inf).softmax(-1) > 1 / len(draws))
        drawn = torch.zeros_like(kept)
        drawn[ids] = True
        assert not (drawn & ~kept).any()
        assert not (likely & ~drawn).any()


def test_streams_depend_on_the_seed_and_the_caption_alone():
    streams = caption_streams([5, -3, 2**70], num_captions=4, num_steps=6)
    assert streams.shape == (12, 6)
    assert streams.dtype == torch.float64
    assert len(set(streams.flatten().tolist())) == 72
    assert torch.equal(caption_streams([2**70, 5], num_captions=4, num_steps=6), streams[[*range(8, 12), *range(4)]])
    assert torch.equal(caption_streams([5], num_captions=2, num_steps=3), streams[:2, :3])
    assert caption_streams([], num_captions=2, num_steps=3).shape == (0, 3)


def test_streams_are_the_same_forever():
    # Recorded when first written: another number here is another data set from the same seed.
    first = caption_streams([0], num_captions=2, num_steps=2)
    torch.testing.assert_close(first, torch.tensor(RECORDED, dtype=torch.float64), rtol=0, atol=0)


RECORDED = [[0.8343992450464119, 0.6720611014428126], [0.43198699409582453, 0.23829435332351878]]
