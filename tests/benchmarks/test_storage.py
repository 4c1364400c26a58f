"""The comparison of layouts: what it counts, what it compares, and that its scenes teach something."""

import attrs
import numpy as np
import pytest
import torch

from benchmarks import storage
from benchmarks.scene_teachers import SceneTeacherSpec
from benchmarks.storage import StorageBenchSpec, divergence, measure, plain, shard_bytes, stored_data, with_outliers
from mobileclip.data import (
    LAYOUTS,
    AugmentationSpec,
    ReinforcementCard,
    TeacherEntry,
    decode_image,
    write_card,
    write_shard,
)
from mobileclip.inputs import ImageInput
from mobileclip.recipes.tiny import scene_samples
from tests.data.made_samples import make_sample

TINY = StorageBenchSpec(num_samples=3, num_augmentations=(4, 2), steps=2, passes=1)
DIMS, SCALES = (200, 312), (100.0, 50.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("reinforced")
    write_shard(path / "0.tar", [make_sample(number, dim=512) for number in range(6)])
    return path


def stored(directory, **changes):
    return stored_data(attrs.evolve(TINY, teacher_dims=DIMS, teacher_logit_scales=SCALES, **changes), directory)


def test_a_scene_and_its_captions():
    samples = scene_samples(40, seed=3)
    assert len({sample.captions for sample in samples}) == 40
    for sample in samples:
        assert len(sample.syn_captions["syn_text"]) == 5
        assert decode_image(sample.image).size == (240, 180)
    assert [sample.image for sample in scene_samples(3, seed=3)] == [sample.image for sample in samples[:3]]


def test_divergence_is_of_what_a_layout_stores(directory):
    data = stored(directory)
    assert len(data.samples) == 3
    assert divergence(data, "npz").mean == 0
    assert 0 < divergence(data, "compact").mean == divergence(data, "pth.gz").mean
    assert divergence(data, "compact8").mean > 3 * divergence(data, "compact").mean
    assert len(divergence(data, "compact8").image_to_text) == 2


def test_outliers_are_hard_on_eight_bits(directory):
    data = stored(directory, num_samples=6)
    raised = with_outliers(data)
    for one in raised.samples:
        for start, stop in ((0, 200), (200, 512)):
            part = one.image_emb[:, start:stop]
            np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, rtol=1e-5)
            largest = np.sort(np.abs(part), axis=1)[:, -2:]
            assert (largest**2).sum(axis=1).min() > 0.15
            assert (largest**2).sum(axis=1).max() < 0.5
    assert divergence(raised, "compact8").mean > divergence(data, "compact8").mean


def test_knowledge_is_all_that_was_added(directory):
    samples = stored(directory).samples
    bare = shard_bytes(map(plain, samples), "npz")
    sizes = {layout: shard_bytes(samples, layout) - bare for layout in ("npz", "pth.gz", "compact", "compact8")}
    assert sizes["npz"] > sizes["pth.gz"] > sizes["compact"] > sizes["compact8"] > 6 * 512 * 0.8


def test_teachers_come_from_the_card(directory, tmp_path):
    write_shard(tmp_path / "0.tar", [make_sample(number, dim=8) for number in range(3)])
    entry = TeacherEntry(name="a", weights_sha256="0", dim=8, logit_scale=7.0, image=ImageInput(size=32))
    write_card(
        tmp_path,
        ReinforcementCard(
            teachers=(entry,), augmentation=AugmentationSpec(size=32), num_augmentations=3, seed=0, layout="npz"
        ),
    )
    data = stored_data(TINY, tmp_path)
    assert (data.teacher_dims, data.teacher_logit_scales) == ((8,), (7.0,))
    with pytest.raises(ValueError, match=r"reinforcement\.json"):
        stored_data(TINY, directory)
    write_shard(tmp_path / "0.tar", [make_sample(0, dim=8)])
    with pytest.raises(ValueError, match="holds 1 usable samples; at least 2 are needed"):
        stored_data(TINY, tmp_path)


def test_a_directory_s_own_samples_are_measured(directory):
    spec = attrs.evolve(TINY, reinforced=str(directory), teacher_dims=DIMS, teacher_logit_scales=SCALES)
    rows = list(measure(spec))
    assert {row.notes["measured on"] for row in rows} == {f"3 samples of {directory}, unknown layout"}
    assert [row.case["layout"] for row in rows] == [*LAYOUTS, "compact8, outliers", "another augmentation"]
    assert {row.case.get("augmentations") for row in rows[:-2]} == {"2"}


def test_the_paper_s_numbers():
    added = {count: one.added_bytes / one.num_samples for count, one in storage.PUBLISHED.items()}
    assert added == {30: 78125.0, 10: 39062.5}


@pytest.mark.slow
def test_teachers_learn():
    """A batch's pictures find their captions far more often than by chance."""
    teacher = SceneTeacherSpec(steps=300).build()
    samples = scene_samples(64, seed=99)
    policy = AugmentationSpec(size=64, scale=(1.0, 1.0), num_operations=0)
    rng = np.random.default_rng(0)
    images = [decode_image(sample.image) for sample in samples]
    pixels = np.stack([np.asarray(policy.apply(image, policy.sample(rng, image.size))) for image in images])
    image = teacher.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    text = teacher.encode_texts([sample.captions[0] for sample in samples])
    similarity = torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(text, dim=1).T
    assert (similarity.argmax(1) == torch.arange(64)).float().mean() > 0.15
