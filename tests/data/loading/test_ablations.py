"""Pipelines for teachers that look on, and with some of the teachers alone."""

import io

import pytest
import torch
from PIL import Image

from mobileclip.data import AugmentationSpec, ImageTextSample, Tokenizer, decode_image, write_shard, write_shards
from tests.data.loading.test_pipeline import spec
from tests.data.made_samples import make_sample
from tests.errors import fails


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_are_the_stored_augmentation_at_the_teachers_sizes(tmp_path, num_workers):
    samples = {sample.key: sample for sample in map(make_sample, range(9))}
    shards = write_shards(tmp_path, samples.values(), samples_per_shard=5)
    pipeline = spec(shards, online=(24, 12), drop_last=False, num_workers=num_workers).build()
    for batch in pipeline:
        assert [(side, images.shape) for side, images in batch.online_images.items()] == [
            (24, (len(batch), 3, 24, 24)),
            (12, (len(batch), 3, 12, 12)),
        ]
        torch.testing.assert_close(Tokenizer()(batch.captions), batch.text)
        torch.testing.assert_close(Tokenizer()(batch.syn_captions), batch.syn_text)
        for row, key in enumerate(batch.keys):
            sample = samples[key]
            index = sample.image_emb.tolist().index(batch.teacher_image[row].tolist())
            for side, images in batch.online_images.items():
                assert images.dtype == torch.uint8
                replayed = AugmentationSpec(size=side).apply(decode_image(sample.image), sample.augmentations[index])
                assert images[row].permute(1, 2, 0).numpy().tobytes() == replayed.tobytes()


def test_images_of_sampled_augmentations_move_by_the_same_fraction(tmp_path):
    """At three times the side, an image that was moved has bands of black that are three times as broad."""
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    stream = io.BytesIO()
    white.save(stream, "PNG")
    many = [
        ImageTextSample(key=f"{n}", captions=("a",), image=stream.getvalue(), image_extension="png") for n in range(60)
    ]
    path = write_shard(tmp_path / "a.tar", many)
    (batch,) = spec(path, online=(48,), reinforced=False, batch_size=60).build()
    small = (batch.image == 0).all(dim=1)
    large = (batch.online_images[48] == 0).all(dim=1)
    # Translations alone give bands that reach from one side to the other.
    moved = [row for row in range(60) if 0 < (bands := small[row].all(dim=1).sum()) < 16 and bands < 8]
    assert len(moved) >= 3
    for row in moved:
        wide = large[row].all(dim=1).sum().item()
        assert abs(wide - 3 * small[row].all(dim=1).sum().item()) <= 3
    assert batch.syn_captions is None


def test_some_of_the_teachers_columns(tmp_path):
    paths = write_shards(tmp_path, [make_sample(number) for number in range(6)])
    whole = next(iter(spec(paths, batch_size=6, shuffle=False).build()))
    part = next(iter(spec(paths, batch_size=6, teacher_columns=(4, 6), shuffle=False).build()))
    for name in ("teacher_image", "teacher_text", "teacher_syn_text"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[:, 4:6], rtol=0, atol=0)
    pipeline = spec(paths, teacher_columns=(4, 8)).build()
    with fails(ValueError, "1"):
        next(iter(pipeline))
    assert pipeline.report.counts == {"wrong_dim": 6}
