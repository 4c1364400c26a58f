"""Small pictures, each of its own content, a model that tells them apart, and what an index of them holds."""

import shutil
import tarfile

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


def pack(shard, *seeds):
    """Write a shard of pictures, whose keys are their seeds."""
    with tarfile.open(shard, "w") as tar:
        for seed in seeds:
            path = draw(shard.parent / "drawn" / f"{seed:04d}.png", seed)
            tar.add(path, path.name)
    shutil.rmtree(shard.parent / "drawn")


def rows_of(snapshot):
    """Return what is known of every picture of a snapshot."""
    return snapshot.rows(range(len(snapshot)))


def contents(collection):
    """Return the embedding of every picture of a collection by its name."""
    snapshot = collection.snapshot
    names = [(row["path"], row["part"]) for row in rows_of(snapshot)]
    assert len(set(names)) == len(names), "a picture is there twice"
    return dict(zip(names, snapshot.vectors, strict=True))


def index_of(folder, checkpoint, *inputs, **choices):
    """Return an index in a folder, by the model of a checkpoint, of these inputs."""
    from mobileclip.collections import Collection, IndexOptions, ModelSource

    index = Collection.create(folder, ModelSource(checkpoint=str(checkpoint)))
    if inputs:
        index.add(*inputs, options=IndexOptions(show_progress=False, **choices))
    return index


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
    table = [{name: value for name, value in row.items() if name != "id"} for row in rows_of(snapshot)]
    rows = {(row["path"], row["part"], row["time"]): row for row in table}
    assert len(rows) == len(table), "a picture is there twice"
    return {name: (row, vector) for (name, row), vector in zip(rows.items(), snapshot.vectors, strict=True)}


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
