"""Compares the teachers' image embeddings to find near duplicates, and samples that contain test images.

Source: SemDeDup (arXiv 2303.09540) searches for near duplicates within k-means clusters. Here, every vector belongs to
its two nearest clusters, so the search also compares pairs across a cluster border.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
import torch
from attrs import validators
from torch import Tensor
from torch.nn import functional as F

from mobileclip import storage
from mobileclip.data.buckets import Buckets, num_buckets_for
from mobileclip.data.loading.uids import UidList, write_uids
from mobileclip.datasets.curation.scores import Scores, ShardScores
from mobileclip.progress import track
from mobileclip.strict import strict

Vectors = npt.NDArray[np.float16]

NUM_NEAREST = 2
_ITERATIONS = 10
# Maximum number of vectors per cluster for k-means, and maximum memory for the vectors of all clusters, in bytes.
_TRAINED_ON, _TRAINED_BYTES = 256, 2**32
_ROWS = 4096
_MEMBER = np.dtype([("cluster", "i4"), ("index", "i8")])


class VectorTable:
    """A table of the vectors in several arrays, which may be memory-mapped.

    Args:
        parts: arrays, each (rows, D).
    """

    def __init__(self, parts: Sequence[Vectors]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self._starts[-1])

    @property
    def dim(self) -> int:
        """Dimension of a vector."""
        return int(self._parts[0].shape[1])

    def rows(self, indices: npt.NDArray[np.int64], device: torch.device) -> Tensor:
        """Return the vectors at the given indices.

        Shape:
            (indices, D), float32.

        Args:
            indices: indices of the vectors, in ascending order.
            device: device of the returned tensor.
        """
        places = np.searchsorted(self._starts, indices, side="right") - 1
        found = [self._parts[place][indices[places == place] - self._starts[place]] for place in np.unique(places)]
        return torch.from_numpy(np.concatenate(found)).to(device).float()

    def blocks(self, device: torch.device, *, title: str) -> Iterator[Tensor]:
        """Yield all vectors in order, in blocks of a few thousand, and show progress."""
        for part in track(self._parts, total=len(self._parts), title=title, unit="shards"):
            for start in range(0, len(part), _ROWS):
                yield torch.from_numpy(np.array(part[start : start + _ROWS])).to(device).float()


def find_centres(
    table: VectorTable, *, num_clusters: int, device: torch.device, seed: int, most_bytes: int = _TRAINED_BYTES
) -> Tensor:
    """Return the k-means centres of the vectors, as unit vectors.

    Shape:
        (clusters, D).

    Args:
        table: the vectors.
        num_clusters: number of clusters, at most the number of vectors.
        device: device of the computation.
        seed: random seed for the choice of vectors to cluster and of initial centres.
        most_bytes: memory limit for the vectors to cluster, in bytes. The function always uses at least one vector per
            cluster.
    """
    generator = np.random.default_rng(seed)
    held = max(num_clusters, most_bytes // (4 * table.dim))
    count = min(len(table), _TRAINED_ON * num_clusters, held)
    chosen = np.sort(generator.choice(len(table), size=count, replace=False)).astype(np.int64)
    vectors = table.rows(chosen, device)
    centres = vectors[torch.from_numpy(generator.choice(count, size=num_clusters, replace=False)).to(device)]
    for _ in track(range(_ITERATIONS), total=_ITERATIONS, title="clustering", unit="rounds"):
        nearest = torch.cat([(block @ centres.T).argmax(1) for block in torch.split(vectors, _ROWS)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        is_empty = torch.bincount(nearest, minlength=num_clusters) == 0
        # An empty cluster restarts at a random vector.
        sums[is_empty] = vectors[torch.from_numpy(generator.integers(count, size=int(is_empty.sum()))).to(device)]
        centres = F.normalize(sums, dim=1)
    return centres


def members_of_clusters(
    table: VectorTable, centres: Tensor, *, device: torch.device
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the ascending vector indices of each cluster; every vector belongs to its two nearest clusters.

    Args:
        table: the vectors.
        centres: centres of the clusters, (clusters, D).
        device: device of the computation.
    """
    num_nearest = min(NUM_NEAREST, len(centres))
    num_buckets = num_buckets_for(num_nearest * len(table), _MEMBER.itemsize)
    per_bucket = -(-len(centres) // num_buckets)
    with Buckets(_MEMBER, num_buckets) as buckets:
        start = 0
        for block in table.blocks(device, title="assigning"):
            nearest = (block @ centres.T).topk(num_nearest, dim=1).indices.cpu().numpy().astype(np.int32).reshape(-1)
            members = np.empty(len(nearest), _MEMBER)
            members["cluster"], members["index"] = nearest, start + np.arange(len(nearest)) // num_nearest
            buckets.add(members, nearest // per_bucket)
            start += len(block)
        for number, bucket in enumerate(buckets.drain()):
            ordered = bucket[np.argsort(bucket["cluster"], kind="stable")]
            clusters = np.arange(number * per_bucket, min((number + 1) * per_bucket, len(centres)) + 1)
            for first, last in pairwise(np.searchsorted(ordered["cluster"], clusters)):
                yield ordered["index"][first:last]


# Average number of vectors per cluster: comparing all pairs of a cluster takes as long as reading its vectors.
_CLUSTER_SIZE = 1000
# As in SemDeDup for 440 million images; each additional cluster makes the assignment slower.
_MOST_CLUSTERS = 50_000
# Maximum number of better near neighbours to compare with a sample; a placeholder image may have a million neighbours.
_MOST_NEIGHBOURS = 32


@attrs.frozen(kw_only=True, field_transformer=strict)
class DuplicatesSpec:
    """The settings of near-duplicate removal: thresholds, test sets and output lists.

    Args:
        scores: folder of scores with image vectors, written by `score_shards`.
        output: `.npy` file to write, with the uids of the kept samples.
        keep: list of uids of the samples to consider, see `UidList`; None for all samples.
        pairs: text file to write, with one line per removed sample: reason, key and shard of the sample, key and shard
            of the near duplicate, and cosine similarity; None for no file.
        threshold: minimum cosine similarity of near duplicates, as the mean over the teachers.
        exclude_test_scores: score folders of test sets, from the same teachers. Samples that contain a test image are
            also removed.
        leak_threshold: minimum cosine similarity to a test image at which a sample counts as containing the test image.
        num_clusters: number of clusters; None for one per thousand samples, at most 50,000.
        device: device of the computation.
        seed: random seed of the clustering.
    """

    scores: Path
    output: Path
    keep: Path | None = None
    pairs: Path | None = None
    threshold: float = attrs.field(default=0.95, validator=[validators.gt(0), validators.le(1)])
    exclude_test_scores: tuple[Path, ...] = ()
    leak_threshold: float = attrs.field(default=0.95, validator=[validators.gt(0), validators.le(1)])
    num_clusters: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    device: str = "cpu"
    seed: int = 0


@attrs.frozen(kw_only=True)
class DuplicatesReport:
    """The result of near-duplicate removal: numbers of compared, kept and removed samples.

    Args:
        num_samples: number of compared samples.
        num_kept: number of kept samples.
        num_duplicates: number of samples removed as near duplicates of better samples.
        num_leaks: number of samples removed because they contain a test image.
        num_leaked: number of test images found in samples, by score folder of the test set.
    """

    num_samples: int
    num_kept: int
    num_duplicates: int
    num_leaks: int
    num_leaked: Mapping[str, int]

    def __str__(self) -> str:
        """Return the report as text, one count per line."""
        lines = [
            f"{self.num_kept:,} of {self.num_samples:,} samples kept",
            f"{self.num_duplicates:,} are near duplicates of a better sample",
        ]
        if self.num_leaked:
            lines.append(f"{self.num_leaks:,} show test images")
        lines += [f"  {count:,} images of {name} occur in samples" for name, count in self.num_leaked.items()]
        return "\n".join(lines)


@attrs.frozen(eq=False)
class _Likeness:
    """Pairs of similar samples: index, index of the other sample, and cosine similarity, each (pairs,)."""

    index: npt.NDArray[np.int64]
    other: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32]

    @staticmethod
    def joined(parts: Sequence[_Likeness]) -> _Likeness:
        """Concatenate the pairs of several parts."""
        parts = parts or [_Likeness(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        names = ("index", "other", "similarity")
        return _Likeness(*(np.concatenate([getattr(one, name) for one in parts]) for name in names))


def find_duplicates(spec: DuplicatesSpec) -> DuplicatesReport:
    """Write the list of kept samples: among near duplicates, keep the sample with the best-matching caption.

    The function removes only near duplicates of kept samples, and compares only samples in the same cluster. About one
    near-duplicate pair in a thousand shares no cluster, so both samples stay.

    Args:
        spec: the options.

    Raises:
        ValueError: if the scores have no vectors, or the scores of a test set come from different teachers.
        OSError: if the list cannot be written.
    """
    scores, device = Scores.open(spec.scores), torch.device(spec.device)
    tests = [Scores.open(folder) for folder in spec.exclude_test_scores]
    other = next((test for test in tests if test.teachers != scores.teachers), None)
    if other is not None:
        raise ValueError(
            f"{other.folder} has scores of the teachers {other.teachers}, but {scores.folder} has scores of "
            f"{scores.teachers}; compare embeddings of the same teachers"
        )
    table = VectorTable([one.vectors for one in scores.shards])
    leaks = {str(test.folder): _leaks(table, test, spec, device) for test in tests}
    kept = _listed(scores, spec.keep)
    num_samples = int(kept.sum())
    for one in leaks.values():
        kept[one.index] = False
    num_leaks = num_samples - int(kept.sum())
    worth = np.concatenate([one.similarity("real") for one in scores.shards])
    duplicates = _without_followers(_near_pairs(table, worth, kept, spec), worth, kept)
    kept[duplicates.index] = False
    num_kept = write_uids(spec.output, (one.uids[kept[start:end]] for one, start, end in _extents(scores)))
    if spec.pairs is not None:
        _write_pairs(spec.pairs, scores, duplicates, list(zip(leaks.values(), tests, strict=True)))
    return DuplicatesReport(
        num_samples=num_samples,
        num_kept=num_kept,
        num_duplicates=len(duplicates.index),
        num_leaks=num_leaks,
        num_leaked={name: len(np.unique(one.other)) for name, one in leaks.items()},
    )


def _leaks(table: VectorTable, test: Scores, spec: DuplicatesSpec, device: torch.device) -> _Likeness:
    """Return the samples that contain a test image, each with its nearest test image."""
    pictures = torch.cat([torch.from_numpy(np.array(one.vectors)) for one in test.shards]).to(device).float()
    found, start = list[_Likeness](), 0
    for block in table.blocks(device, title=f"comparing with {test.folder.name}"):
        values, places = (block @ pictures.T).max(1)
        near = torch.nonzero(values >= spec.leak_threshold)[:, 0]
        found.append(_Likeness(near.cpu().numpy() + start, places[near].cpu().numpy(), values[near].cpu().numpy()))
        start += len(block)
    return _Likeness.joined(found)


def _near_pairs(
    table: VectorTable, worth: npt.NDArray[np.float32], available: npt.NDArray[np.bool_], spec: DuplicatesSpec
) -> _Likeness:
    """Return pairs of near duplicates among the available samples; the worse caption is first in each pair."""
    device = torch.device(spec.device)
    wanted = spec.num_clusters or min(_MOST_CLUSTERS, max(1, len(table) // _CLUSTER_SIZE))
    centres = find_centres(table, num_clusters=min(wanted, len(table)), device=device, seed=spec.seed)
    # The best samples come first; equally good samples keep their order in the table.
    rank = np.empty(len(worth), np.int64)
    rank[np.argsort(-worth, kind="stable")] = np.arange(len(worth))
    found = []
    clusters = members_of_clusters(table, centres, device=device)
    for members in track(clusters, total=len(centres), title="comparing", unit="clusters"):
        members = members[available[members]]  # noqa: PLW2901  unavailable samples would use up the neighbour limit
        if len(members) < 2:
            continue
        vectors = table.rows(members, device)
        order = np.argsort(rank[members])
        found.append(_pairs_of_cluster(vectors[torch.from_numpy(order).to(device)], members[order], spec.threshold))
    return _Likeness.joined(found)


def _pairs_of_cluster(vectors: torch.Tensor, members: npt.NDArray[np.int64], threshold: float) -> _Likeness:
    """Return the pairs of near vectors, best captions first, with only the best neighbours of each vector."""
    found = []
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        similarity = block @ vectors[: start + len(block)].T
        is_near = (similarity >= threshold).tril(start - 1)
        is_near &= is_near.cumsum(1) <= _MOST_NEIGHBOURS
        row, column = torch.nonzero(is_near, as_tuple=True)
        values = similarity[row, column].cpu().numpy()
        found.append(_Likeness(members[row.cpu().numpy() + start], members[column.cpu().numpy()], values))
    return _Likeness.joined(found)


def _without_followers(pairs: _Likeness, worth: npt.NDArray[np.float32], available: npt.NDArray[np.bool_]) -> _Likeness:
    """Return each removed sample with its kept near duplicate, best captions first.

    Args:
        pairs: pairs of near duplicates.
        worth: similarity of caption and image, for all samples.
        available: mask of the samples that the output may list.
    """
    order = np.lexsort((pairs.other, -worth[pairs.other], pairs.index, -worth[pairs.index]))
    left_out, chosen = ~available, list[int]()
    for place in order.tolist():
        index, other = pairs.index[place], pairs.other[place]
        if not left_out[index] and not left_out[other]:
            left_out[index] = True
            chosen.append(place)
    found = np.array(chosen, np.int64)
    return _Likeness(pairs.index[found], pairs.other[found], pairs.similarity[found])


def _listed(scores: Scores, keep: Path | None) -> npt.NDArray[np.bool_]:
    if keep is None:
        return np.ones(sum(map(len, scores.shards)), dtype=bool)
    listed = UidList(keep)
    return np.concatenate([listed.contains(one.uids) for one in scores.shards])


def _extents(scores: Scores) -> Iterator[tuple[ShardScores, int, int]]:
    """Yield the scores of every shard, with the start and end of its samples in the table of all samples."""
    for one, (start, end) in zip(
        scores.shards, pairwise(np.cumsum([0, *map(len, scores.shards)]).tolist()), strict=True
    ):
        yield one, start, end


def _write_pairs(path: Path, scores: Scores, duplicates: _Likeness, leaks: Sequence[tuple[_Likeness, Scores]]) -> None:
    """Write the removed samples, each with the reason, as tab-separated lines."""
    with storage.atomic_write(path) as stream:
        stream.write(b"why\tkey\tshard\tlike key\tlike shard\tsimilarity\n")
        for why, found, others in [("duplicate", duplicates, scores), *(("test picture", *leak) for leak in leaks)]:
            names = zip(_names(scores, found.index), _names(others, found.other), found.similarity, strict=True)
            for own, other, similarity in names:
                fields = (why, *own, *other, f"{similarity:.4f}")
                stream.write(("\t".join(map(storage.printable, fields)) + "\n").encode())


def _names(scores: Scores, indices: npt.NDArray[np.int64]) -> list[tuple[str, str]]:
    """Return the key and shard of the sample at each index; read the keys of each shard once."""
    names: dict[int, tuple[str, str]] = {}
    for one, start, end in _extents(scores):
        if len(own := np.unique(indices[(indices >= start) & (indices < end)])):
            keys = one.keys
            names |= {index: (keys[index - start], one.shard) for index in own.tolist()}
    return [names[index] for index in indices.tolist()]
