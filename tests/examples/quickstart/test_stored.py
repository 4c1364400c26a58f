"""Batches from memory are the reinforced samples: every picture, embedding and caption belongs to its key."""

from itertools import islice

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from examples.quickstart.emoji import emoji_augmentation
from examples.quickstart.spec import student
from examples.quickstart.stored import StoredBatches, store_samples
from mobileclip.data import (
    ReinforcedSample,
    StreamPosition,
    Tokenizer,
    augmentation_rng,
    decode_image,
    read_reinforced_samples,
    write_shard,
)

NUM_SAMPLES, NUM_VIEWS, DIM = 10, 3, 8


def samples():
    import io

    augmentation = emoji_augmentation(128)
    for index in range(NUM_SAMPLES):
        rng = np.random.default_rng(index)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(buffer, "PNG")
        real = tuple(f"thing {index} kind {number}" for number in range(1 + index % 3))
        synthetic = tuple(f"a picture of thing {index} by {number}" for number in range(1 + index % 4))
        key = f"sample{index}"
        yield ReinforcedSample(
            key=key,
            captions=real,
            image=buffer.getvalue(),
            image_extension="png",
            augmentations=[
                augmentation.sample(augmentation_rng(0, key, number), (128, 128)) for number in range(NUM_VIEWS)
            ],
            image_emb=rng.normal(size=(NUM_VIEWS, DIM)).astype(np.float32),
            text_emb=rng.normal(size=(len(real), DIM)).astype(np.float32),
            syn_captions={"syn_text": synthetic},
            syn_text_emb={"syn_text": rng.normal(size=(len(synthetic), DIM)).astype(np.float32)},
        )


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "00000.tar"
    write_shard(path, samples())
    return path


@pytest.fixture(scope="module")
def stored(shard):
    return store_samples([shard], augmentation=emoji_augmentation(48), student=student())


def batches(stored, *, batch_size, seed, **choices):
    return StoredBatches(samples=stored, batch_size=batch_size, seed=seed, **choices)


def stream(stored, first=0, **choices):
    return batches(stored, **choices).stream(StreamPosition(first_batch=first))


@pytest.mark.parametrize("choices", [{"interpolation": "bilinear"}, {"size": 64}])
def test_a_student_sees_pictures_as_it_learned_them(shard, choices):
    other = attrs.evolve(emoji_augmentation(48), **choices)
    with pytest.raises(ValueError, match=r"the student learns from .* and its spec says bicubic and 48; give both"):
        store_samples([shard], augmentation=other, student=student())


def test_what_belongs_together_stays_together(shard, stored):
    model = student()
    known = {sample.key: sample for sample in read_reinforced_samples([str(shard)])}
    tokenizer = Tokenizer(model.text.input)
    policy = emoji_augmentation(48)
    views, captions = set(), set()
    for batch in islice(stream(stored, batch_size=5, seed=3), 40):
        for index, key in enumerate(batch.keys):
            sample = known[key]
            view = int(np.abs(sample.image_emb - batch.teacher_image[index].numpy()).sum(1).argmin())
            np.testing.assert_array_equal(batch.teacher_image[index].numpy(), sample.image_emb[view])
            pixels = np.array(policy.apply(decode_image(sample.image), sample.augmentations[view]))
            assert torch.equal(batch.image[index], torch.from_numpy(pixels).permute(2, 0, 1))
            for ids, embedding, texts, embeddings in (
                (batch.text, batch.teacher_text, sample.captions, sample.text_emb),
                (
                    batch.syn_text,
                    batch.teacher_syn_text,
                    sample.syn_captions["syn_text"],
                    sample.syn_text_emb["syn_text"],
                ),
            ):
                which = int(np.abs(embeddings - embedding[index].numpy()).sum(1).argmin())
                np.testing.assert_array_equal(embedding[index].numpy(), embeddings[which])
                assert torch.equal(ids[index], tokenizer([texts[which]])[0])
                captions.add(texts[which])
            views.add((key, view))
    assert len(views) == NUM_SAMPLES * NUM_VIEWS
    assert captions == {
        text for sample in known.values() for text in (*sample.captions, *sample.syn_captions["syn_text"])
    }


@pytest.mark.parametrize(("synthetic", "teachers"), [(False, ()), (True, ()), (True, (1,)), (True, (1, 0))])
def test_a_training_sees_its_part_of_the_same_batches(stored, synthetic, teachers):
    other = attrs.evolve(
        stored.teachers[0], **{name: -value for name, value in attrs.asdict(stored.teachers[0]).items()}
    )
    two = attrs.evolve(stored, teachers=(stored.teachers[0], other))
    source = batches(two, batch_size=4, seed=3, synthetic_captions=synthetic, teachers=teachers)
    position = source.position(2)
    assert position == StreamPosition(first_batch=2)
    whole_stream = stream(stored, 2, batch_size=4, seed=3)
    for whole, part in zip(whole_stream, islice(source.stream(position), 5), strict=False):
        assert part.keys == whole.keys
        assert torch.equal(part.image, whole.image)
        assert torch.equal(part.text, whole.text)
        if synthetic:
            assert torch.equal(part.syn_text, whole.syn_text)
        else:
            assert part.syn_text is part.teacher_syn_text is None
        for name in ("teacher_image", "teacher_text", "teacher_syn_text"):
            expected = [getattr(whole, name) * (1, -1)[index] for index in teachers]
            found = getattr(part, name)
            assert found is None if not teachers else torch.equal(found, torch.cat(expected, -1))


def test_fewer_views_and_captions_are_the_first_ones(stored):
    for batch in islice(stream(stored, batch_size=5, seed=1, num_views=1, num_captions=1), 8):
        rows = [stored.keys.index(key) for key in batch.keys]
        assert torch.equal(batch.image, stored.pixels[rows, 0].permute(0, 3, 1, 2))
        assert torch.equal(batch.syn_text, stored.synthetic.tokens[stored.synthetic.rows[rows, 0]])
        assert torch.equal(batch.teacher_syn_text, stored.teachers[0].synthetic[rows, 0])


def test_without_matching_the_teachers_saw_other_views_and_all_else_is_the_same(stored):
    num_same = num_pairs = 0
    apart = stream(stored, batch_size=10, seed=1, matched=False)
    for matched, batch in zip(stream(stored, batch_size=10, seed=1), islice(apart, 40), strict=False):
        assert torch.equal(batch.image, matched.image)
        assert torch.equal(batch.teacher_text, matched.teacher_text)
        num_same += int((batch.teacher_image == matched.teacher_image).all(1).sum())
        num_pairs += 10
    # One in three by chance.
    assert num_same / num_pairs == pytest.approx(1 / NUM_VIEWS, abs=0.1)


def test_members_alone_are_seen(stored):
    members = torch.tensor([1, 4, 7, 8])
    seen = {key for batch in islice(stream(stored, batch_size=2, seed=1, members=members), 4) for key in batch.keys}
    assert seen == {stored.keys[index] for index in members.tolist()}
    with pytest.raises(ValueError, match="4 samples do not fill a batch of 5"):
        next(stream(stored, batch_size=5, seed=1, members=members))


def test_an_epoch_has_every_sample_once_and_the_next_another_order(stored):
    first, second = (
        [key for batch in part for key in batch.keys]
        for part in (
            islice(stream(stored, batch_size=5, seed=0), 2),
            islice(stream(stored, 2, batch_size=5, seed=0), 2),
        )
    )
    assert sorted(first) == sorted(second) == sorted(stored.keys)
    assert first != second


@pytest.mark.parametrize("first", [1, 3, 4, 9])
def test_a_resumed_stream_goes_on_to_the_bit(stored, first):
    whole = list(islice(stream(stored, batch_size=3, seed=7), 12))
    for expected, found in zip(whole[first:], stream(stored, first, batch_size=3, seed=7), strict=False):
        assert expected.keys == found.keys
        for name, value in expected.as_dict().items():
            assert name == "keys" or torch.equal(value, found.as_dict()[name])


def test_another_seed_is_another_order(stored):
    one, other = (next(stream(stored, batch_size=9, seed=seed)).keys for seed in (0, 1))
    assert one != other


def test_too_few_samples_are_an_error(stored):
    with pytest.raises(ValueError, match="10 samples do not fill a batch of 11"):
        next(stream(stored, batch_size=11, seed=0))
