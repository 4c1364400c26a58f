"""What a reinforcement will cost, by its beginning."""

from mobileclip import storage
from mobileclip.data import AugmentationSpec
from mobileclip.engines import InlineEngine
from mobileclip.reinforce import ReinforcementSpec, estimate, reinforce
from tests.reinforce.conftest import plain_shards, small_teacher_files


def test_one_shard_in_a_store_is_counted_by_reading_it(tmp_path):
    (path,) = plain_shards(tmp_path, 1, 5)
    with storage.atomic_write("memory://estimated/0.tar") as stream:
        stream.write(path.read_bytes())
    spec = ReinforcementSpec(
        source="memory://estimated/0.tar",
        output=tmp_path / "out",
        teachers=small_teacher_files(tmp_path)[:1],
        augmentation=AugmentationSpec(size=32, reference_size=32),
        num_augmentations=1,
        num_compared=0,
    )
    said = estimate(spec, num_samples=3, device="cpu")
    assert (said.num_shards, said.num_samples, said.num_measured) == (1, 5, 3)
    assert said.device.endswith(" CPU cores")
    assert said.num_bytes == round(5 * said.bytes_per_sample) > 0
    assert said.agreement is None
    assert not (tmp_path / "out").exists()


def test_it_says_how_far_the_teachers_recognise_the_views_that_would_be_stored(tmp_path):
    (path,) = plain_shards(tmp_path, 1, 5)
    spec = ReinforcementSpec(
        source=str(path),
        output=tmp_path / "out",
        teachers=small_teacher_files(tmp_path)[:1],
        augmentation=AugmentationSpec(size=32, reference_size=32),
        num_augmentations=3,
    )
    said = estimate(spec, device="cpu")
    assert said.agreement is not None
    assert (said.agreement.num_samples, said.agreement.num_views) == (5, 15)
    assert str(said.agreement) in str(said)
    assert "augmentation" in str(said)
    assert said.agreement == reinforce(spec, engine=InlineEngine(device="cpu"), show_progress=False).agreement
