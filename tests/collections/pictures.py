"""Small pictures, each of its own content, a model that tells them apart, and what an index of them holds."""

import shutil
import tarfile
import tempfile
from functools import cache

import numpy as np
import torch
from PIL import Image

from tests.encoders.small import SMALL, randomised


def draw(path, seed, size=(96, 80)):
    """Write a picture whose content its seed decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 64, (5, 6, 3)) + draw.integers(0, 190, 3)
    Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def draw_all(folder, seeds, *, digits=1):
    """Write a picture for every seed, which is its name, and return their folder."""
    for seed in seeds:
        draw(folder / f"{seed:0{digits}d}.png", seed)
    return folder


def pack(shard, *seeds):
    """Write a shard of pictures, whose keys are their seeds."""
    drawn = draw_all(shard.parent / "drawn", seeds, digits=4)
    with tarfile.open(shard, "w") as tar:
        for seed in seeds:
            tar.add(drawn / f"{seed:04d}.png", f"{seed:04d}.png")
    shutil.rmtree(drawn)


def rows_of(snapshot):
    """Return what is known of every picture of a snapshot."""
    return snapshot.rows(range(len(snapshot)))


def contents(collection):
    """Return the embedding of every picture of a collection by its name."""
    return {(path, part): vector for (path, part, _), (_, vector) in _rows(collection.snapshot).items()}


def names(matches):
    """Return the names of the files that were found."""
    return [match.path.rsplit("/", 1)[1] for match in matches]


def index_of(folder, checkpoint, *inputs, **choices):
    """Return an index in a folder, by the model of a checkpoint that nobody changes, of these inputs."""
    from mobileclip.collections import Collection, Store

    clip, about = _loaded(str(checkpoint))
    index = Collection(Store.create(folder, about), clip=clip)
    if inputs:
        add(index, *inputs, **choices)
    return index


@cache
def _loaded(checkpoint):
    """Return a model with what an index says of it: to load one takes longer than to use it."""
    from mobileclip.collections import Collection, ModelSource

    with tempfile.TemporaryDirectory() as folder:
        index = Collection.create(folder, ModelSource(checkpoint=checkpoint))
    return index.clip, index.store.about


def add(index, *inputs, engine=None, **choices):
    """Bring an index up to date with inputs, in silence, and return the report."""
    from mobileclip.collections import IndexOptions

    return index.add(*inputs, options=IndexOptions(show_progress=False, **choices), engine=engine)


def counts(report):
    """Return how many pictures were encoded, known, as before and removed."""
    return report.num_encoded, report.num_known, report.num_unchanged, report.num_removed


def assert_same_rows(one, other):
    """Check that two collections hold the same: all that is known of the pictures, and their embeddings."""
    rows, others = (_rows(collection.snapshot) for collection in (one, other))
    assert rows.keys() == others.keys()
    for name, (row, vector) in rows.items():
        expected, wanted = others[name]
        assert row == expected
        # The same pictures in another batch differ in their last digits.
        np.testing.assert_allclose(vector.astype(np.float32), wanted.astype(np.float32), atol=1e-3)


def _rows(snapshot):
    rows = {}
    for row, vector in zip(rows_of(snapshot), snapshot.vectors, strict=True):
        name = row["path"], row["part"], row["time"]
        assert name not in rows, "a picture is there twice"
        rows[name] = {key: value for key, value in row.items() if key != "id"}, vector
    return rows


def telling(seed=16):
    """A small model whose weights are so large that it tells pictures apart, and not their copies; few seeds do."""
    # What `build` draws would differ from one process to the next, and with it what is alike.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = randomised(SMALL, seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(10)
    return model
