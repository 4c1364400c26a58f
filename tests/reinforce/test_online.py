"""Teachers that look at batches while a student trains say what they would have stored."""

import attrs
import pytest
import torch

from mobileclip.data import ReinforcedPipelineSpec, StreamPosition, Tokenizer, datacompdr_augmentation, write_shards
from mobileclip.inputs import ImageInput
from mobileclip.recipes.tiny import scene_samples
from mobileclip.reinforce import OnlineTeachers, ReinforcementSpec, build_ensemble, reinforce
from tests.errors import fails


@pytest.fixture(scope="module")
def shards(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    (source,) = write_shards(folder / "scenes", scene_samples(12, seed=0))
    spec = ReinforcementSpec(
        source=str(source),
        output=str(folder / "reinforced"),
        teachers=tiny.teachers,
        captioner=attrs.evolve(tiny.captioner, num_captions=2),
        augmentation=datacompdr_augmentation(64),
        num_augmentations=3,
        layout="npz",
    )
    reinforce(spec)
    return sorted(str(path) for path in (folder / "reinforced").glob("*.tar"))


@pytest.fixture(scope="module")
def teachers(tiny):
    return build_ensemble(tiny.teachers, "cpu")


def batches(shards, **changes):
    return ReinforcedPipelineSpec(shards=shards, batch_size=4, image=ImageInput(size=64), **changes).build()


def test_what_they_say_is_what_is_stored(teachers, shards):
    source = batches(shards, online=teachers.image_sizes, reinforced=True)
    online = OnlineTeachers(batches=source, teachers=teachers)
    stored = next(source.stream(StreamPosition()))
    batch = next(online.stream(StreamPosition()))
    assert batch.keys == stored.keys
    assert batch.teacher_image.shape == (4, sum(teachers.dims))
    # Stored translations are in pixels of the 64-pixel image, and the smaller teacher saw its own; the rest is equal.
    for name in ("teacher_image", "teacher_text", "teacher_syn_text"):
        torch.testing.assert_close(getattr(batch, name), getattr(stored, name), rtol=0, atol=1e-5)
    assert online.position(1).first_batch == 1


def test_a_captioner_writes_what_the_student_reads(tiny, teachers, shards):
    source = batches(shards, online=teachers.image_sizes, reinforced=False, captions="real")
    tokenizer = Tokenizer(source.spec.text)
    captioner = attrs.evolve(tiny.captioner, num_captions=1).build("cpu")
    online = OnlineTeachers(batches=source, teachers=teachers, captioner=captioner, tokenizer=tokenizer)
    batch = next(online.stream(StreamPosition()))
    assert len(batch.syn_captions) == 4
    assert all(caption.strip() for caption in batch.syn_captions)
    assert torch.equal(batch.syn_text, tokenizer(batch.syn_captions))
    assert batch.teacher_syn_text.shape == (4, sum(teachers.dims))
    assert next(online.stream(StreamPosition())).syn_captions == batch.syn_captions
    other = next(attrs.evolve(online, seed=1).stream(StreamPosition()))
    assert other.keys == batch.keys
    assert other.syn_captions != batch.syn_captions


def test_what_is_missing_is_named(tiny, teachers, shards):
    for changes, named in (({"online": (32,), "reinforced": False}, "(32, 64)"), ({}, "")):
        online = OnlineTeachers(batches=batches(shards, **changes), teachers=teachers)
        with fails(ValueError, named):
            next(online.stream(StreamPosition()))
    with fails(ValueError):
        OnlineTeachers(batches=batches(shards), teachers=teachers, captioner=tiny.captioner.build("cpu"))
