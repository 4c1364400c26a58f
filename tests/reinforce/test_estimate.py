"""What a reinforcement will cost, by its beginning."""

import attrs
import pytest

from mobileclip import storage
from mobileclip.data import AugmentationSpec
from mobileclip.engines import InlineEngine
from mobileclip.reinforce import ReinforcementSpec, estimate, reinforce
from tests.reinforce.conftest import plain_shards, small_teacher_files


@pytest.fixture
def spec(tmp_path):
    (path,) = plain_shards(tmp_path, 1, 5)
    return ReinforcementSpec(
        source=str(path),
        output=tmp_path / "out",
        teachers=small_teacher_files(tmp_path)[:1],
        augmentation=AugmentationSpec(size=32, reference_size=32),
        num_augmentations=3,
    )


def test_one_shard_in_a_store_is_counted_by_reading_it(spec, tmp_path):
    with storage.atomic_write("memory://estimated/0.tar") as stream:
        stream.write((tmp_path / "00000000.tar").read_bytes())
    said = estimate(attrs.evolve(spec, source="memory://estimated/0.tar", num_compared=0), num_samples=3, device="cpu")
    assert (said.num_shards, said.num_samples, said.num_measured) == (1, 5, 3)
    assert said.device.endswith(" CPU cores")
    assert said.num_bytes == round(5 * said.bytes_per_sample) > 0
    assert said.agreement is None
    assert not (tmp_path / "out").exists()


def test_it_says_how_far_the_teachers_recognise_the_views_that_would_be_stored(spec):
    said = estimate(spec, device="cpu")
    assert (said.agreement.num_samples, said.agreement.num_views) == (5, 15)
    assert str(said.agreement) in str(said)
    assert "augmentation" in str(said)
    assert said.agreement == reinforce(spec, engine=InlineEngine(device="cpu"), show_progress=False).agreement
