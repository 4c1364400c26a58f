"""What is kept of words has a budget in bytes, and words that are asked for again and again stay."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mobileclip.data.text.tokenizer import TokenCache

MAX_BYTES = 2**18


class Made(list):
    """Makes the ids of words, and notes them."""

    def __call__(self, word):
        self.append(word)
        return tuple(1000 + ord(letter) for letter in word)


def bytes_of(memory):
    """What two generations hold, by Python's own measure."""
    held = {**memory._before, **memory}
    return sys.getsizeof(memory) + sum(
        sys.getsizeof(word) + sys.getsizeof(ids) + sum(map(sys.getsizeof, ids)) for word, ids in held.items()
    )


def test_known_words_are_not_made_again():
    made = Made()
    memory = TokenCache(made, max_bytes=MAX_BYTES)
    assert [memory[word] for word in ("ab", "b", "ab")] == [(1097, 1098), (1098,), (1097, 1098)]
    assert made == ["ab", "b"]


@pytest.mark.parametrize("letters", ["a", "a" * 30, "一" * 20])
def test_however_many_words_come_the_budget_holds_and_those_in_use_stay(letters):
    made = Made()
    memory = TokenCache(made, max_bytes=MAX_BYTES)
    for number in range(20_000):
        assert memory[f"{letters}{number}"][-1] == 1000 + ord(str(number)[-1])
        _ = memory["in use"]
        if number % 500 == 0:
            assert bytes_of(memory) <= MAX_BYTES
    assert made.count("in use") == 1
    assert len(made) == 20_001
    assert len({**memory._before, **memory}) > 100


def test_long_words_are_made_and_not_kept():
    made = Made()
    memory = TokenCache(made, max_bytes=MAX_BYTES)
    for _ in range(2):
        assert len(memory["a" * 10_000]) == 10_000
    assert len(made) == 2
    assert bytes_of(memory) < 1000


def test_threads_get_their_own_words_ids():
    memory = TokenCache(Made(), max_bytes=2**14)

    def ask(start):
        return all(memory[f"{number % 700}"] == Made()(f"{number % 700}") for number in range(start, start + 5000))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))
