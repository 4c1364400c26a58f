"""Pipelines and batches as torch, Accelerate, torchdata and Lightning Fabric take them."""

import io
import shutil
import traceback
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

from mobileclip.data import LabelledBatch, ReinforcedBatch, ReinforcedPipelineSpec, write_shards
from mobileclip.data.shards.sidecars import write_sizes
from mobileclip.inputs import ImageInput
from tests.data.made_samples import encoded, make_sample
from tests.errors import fails


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Some of whose samples cannot be used."""
    folder = tmp_path_factory.mktemp("shards")
    many = [make_sample(n, image=b"broken" if n in (3, 11) else encoded(20, 15, n)) for n in range(18)]
    return [str(path) for path in write_shards(folder, many, samples_per_shard=3)]


def pipeline(shards, **changes):
    choices = {"batch_size": 4, "image": ImageInput(size=16), "num_readers": 6, "epochs": 2, "reinforced": False}
    return ReinforcedPipelineSpec(shards=shards, **(choices | changes)).build()


def keys(batches):
    return [batch.keys for batch in batches]


def resumed(shards, first, **choices):
    """Return a pipeline to which the state of another was given, as torch saves it."""
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    stream.seek(0)
    made = pipeline(shards, **choices)
    made.load_state_dict(torch.load(stream, weights_only=True))
    assert made.state_dict() == first.state_dict()
    return made


@pytest.mark.parametrize(
    ("choices", "num_workers"),
    [({}, 0), ({"drop_last": False}, 0), ({"sampling": "endless"}, 0), ({"drop_last": False}, 2)],
)
def test_iterating_goes_on_from_any_batch(shards, choices, num_workers):
    whole = keys(pipeline(shards, **choices))
    for stop in range(0, len(whole) + 1, 1 if num_workers == 0 else 3):
        first = pipeline(shards, num_workers=num_workers, **choices)
        assert keys(islice(first, stop)) == whole[:stop]
        second = resumed(shards, first, **choices)
        assert keys(second) == whole[stop:]
        assert keys(islice(second, 2)) == whole[:2]  # what was loaded is for one iteration


def test_iterating_goes_on_without_what_was_dead_when_it_began(shards, tmp_path):
    paths = [Path(shutil.copy(path, tmp_path)) for path in shards]
    write_sizes(tmp_path, {path.name: 3 for path in paths})
    paths[2].write_bytes(b"no tar")
    whole, first = keys(pipeline(paths)), pipeline(paths)
    assert keys(islice(first, 2)) == whole[:2]
    assert keys(resumed(paths, first)) == whole[2:]


def test_epochs_are_those_that_are_set(shards):
    one = pipeline(shards, epochs=1)
    one.set_epoch(1)
    assert keys(one) == keys(pipeline(shards).epoch(1))


def test_in_torchs_loader(shards):
    assert isinstance(pipeline(shards), IterableDataset)
    whole = keys(pipeline(shards))
    for num_workers in (0, 1):
        loader = DataLoader(pipeline(shards), batch_size=None, num_workers=num_workers)
        assert keys(loader) == whole
    with fails(ValueError, "2") as raised:
        next(iter(DataLoader(pipeline(shards), batch_size=None, num_workers=2)))
    # Torch ends the workers with the iterator, at once unless the garbage collector finds it in a cycle.
    traceback.clear_frames(raised.tb)


IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    "made",
    [
        LabelledBatch(keys=("a", "b"), image=IMAGES, label=torch.arange(2)),
        ReinforcedBatch(
            keys=("a", "b"), image=IMAGES, text=torch.ones(2, 5), captions=("1", "2"), online_images={8: IMAGES}
        ),
    ],
)
def test_a_batch_is_a_pytree_of_its_tensors(made):
    leaves = [leaf for leaf in pytree.tree_leaves(made) if leaf is not None]
    assert [id(leaf) for leaf in leaves] == [id(tensor) for tensor in made.tensors()]
    doubled = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor * 2, made)
    assert type(doubled) is type(made)
    assert doubled.keys == made.keys
    assert doubled.as_dict().keys() == made.as_dict().keys()
    assert all(torch.equal(one, other * 2) for one, other in zip(doubled.tensors(), made.tensors(), strict=True))
    assert pytree.keystr(pytree.tree_flatten_with_path(made)[0][0][0]) == ".image"


def by_accelerate(loader):
    import accelerate

    configuration = accelerate.utils.DataLoaderConfiguration(dispatch_batches=False)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration)
    return accelerator.prepare(loader), accelerate.utils.send_to_device


def by_fabric(loader):
    import lightning_fabric as fabric

    made = fabric.Fabric(accelerator="cpu", devices=1)
    return made.setup_dataloaders(loader), fabric.utilities.apply_func.move_data_to_device


@pytest.mark.parametrize("prepare", [by_accelerate, by_fabric])
def test_accelerate_and_fabric(shards, prepare):
    loader, move = prepare(DataLoader(pipeline(shards), batch_size=None))
    batches = list(loader)
    assert keys(batches) == keys(pipeline(shards))
    moved = move(batches[0], torch.device("meta"))
    assert type(moved) is ReinforcedBatch
    assert {tensor.device.type for tensor in moved.tensors()} == {"meta"}
    assert moved.keys == batches[0].keys


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("sampling", ["epoch", "endless"])
def test_torchdata(shards, sampling, num_workers):
    import torchdata.stateful_dataloader as stateful

    def made():
        dataset = pipeline(shards, sampling=sampling)
        return stateful.StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)

    whole = keys(pipeline(shards, sampling=sampling))
    for stop in (1, 5, len(whole)) if num_workers == 0 else (5,):
        loader, other = made(), made()
        batches = iter(loader)
        assert keys(islice(batches, stop)) == whole[:stop]
        other.load_state_dict(loader.state_dict())
        assert keys(other) == whole[stop:]
