"""Items in random order, as far as a buffer allows."""

from collections import Counter
from itertools import permutations

from hypothesis import given, settings, strategies as st

from mobileclip.data.randomness import derived_seed, seeded_rng, shuffled


def test_neighbouring_seeds_share_no_stream():
    seeds = [derived_seed(seed, "training", rank) for seed in range(50) for rank in range(50)]
    assert len(set(seeds)) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "training", 1) == 3219475013771252736
    assert derived_seed(0, "training", 1) != derived_seed(0, "training", "1")


class TestShuffled:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 12), st.integers(1, 14))
    def test_every_item_comes_once(self, num_items, buffer_size):
        found = list(shuffled(range(num_items), buffer_size, seeded_rng(num_items)))
        assert sorted(found) == list(range(num_items))
        # An item waits in the buffer at most as long as it wishes, but none comes before it was read.
        assert all(item <= place + buffer_size for place, item in enumerate(found))

    def test_no_more_is_read_ahead_than_the_buffer_holds(self):
        items = iter(range(100))
        next(shuffled(items, 4, seeded_rng(0)))
        assert next(items) == 5  # four in the buffer, and the one that takes the place of what came out

    def test_every_order_is_as_likely(self):
        rng = seeded_rng(7)
        counts = Counter(tuple(shuffled("abc", 3, rng)) for _ in range(1200))
        assert set(counts) == set(permutations("abc"))
        assert max(abs(count - 200) for count in counts.values()) < 5 * 200**0.5
