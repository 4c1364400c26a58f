"""What a query of an index with two spaces has encoded anew: proposed by both queries, and by nothing twice."""

import numpy as np

from mobileclip.collections.searching.two_spaces import depth, query_map, shortlisted


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_a_mapped_query_finds_in_the_old_space_what_the_new_one_would_find():
    draw = np.random.default_rng(0)
    latent = draw.normal(size=(600, 12))
    old, new = (unit(latent @ draw.normal(size=(12, dim)) + 0.05 * draw.normal(size=(600, dim))) for dim in (24, 16))
    matrix = query_map(old[:300], new[:300])
    assert matrix.shape == (24, 16)
    overlaps = []
    for query in new[300:340]:
        wanted = np.argsort(-(new[340:] @ query))[:10]
        overlaps.append(len(np.intersect1d(wanted, np.argsort(-(old[340:] @ (matrix @ query)))[:10])))
    assert np.mean(overlaps) > 5, "chance has 0.4 of ten"


def test_a_shortlist_is_of_what_is_not_encoded_yet_and_both_rankings_count():
    done = np.zeros(100, bool)
    done[[3, 7]] = True
    found = shortlisted([np.array([3, 1, 2, 7, 9]), np.array([9, 3, 5, 1])], done, 3)
    assert found.tolist() == [9, 1, 2]
    assert shortlisted([np.arange(100)], np.ones(100, bool), 3).tolist() == []


def test_the_old_space_is_asked_for_more_the_fewer_are_left():
    shares = [np.arange(1000) < 1000 * share for share in (0, 0.5, 0.9, 1)]
    assert [depth(10, done) for done in shares] == [20, 40, 200, 400]
    assert depth(50, np.ones(8, bool)) == 8
