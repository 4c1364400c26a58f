"""Logit scales are found again that pairs were drawn by."""

import numpy as np
import pytest
import torch

from mobileclip.data import ReinforcementCard, TeacherEntry, write_card, write_shard
from mobileclip.datasets.curation.logit_scales import SCALES, LogitScaleSpec, tune_scales
from mobileclip.inputs import ImageInput
from mobileclip.losses import ContrastiveLoss
from tests.build.commands import worked
from tests.data.made_samples import make_sample
from tests.errors import fails

NUM_PAIRS, DIM = 256, 8
PLANTED = {"sharp": 8.0, "soft": 4.0}


def matched(scale, rng):
    """Return images and texts, matched as a softmax at this scale has it: by exchanges that it accepts."""
    rows = rng.standard_normal((2, NUM_PAIRS, DIM))
    images, texts = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    order, similarity = np.arange(NUM_PAIRS), images @ texts.T
    for pair in rng.integers(NUM_PAIRS, size=(20_000, 2)):
        own, exchanged = order[pair], order[pair[::-1]]
        gain = scale * (similarity[pair, exchanged].sum() - similarity[pair, own].sum())
        if gain >= 0 or rng.random() < np.exp(gain):
            order[pair] = exchanged
    return images, texts[order]


def entry(name):
    return TeacherEntry(name=name, weights_sha256="0" * 64, dim=DIM, logit_scale=100.0, image=ImageInput(size=32))


def write_pairs(path, images, texts, captions):
    """Write a shard of images and texts, whose synthetic captions are the opposite of the real ones."""
    samples = [
        make_sample(
            number,
            dim=len(image),
            captions=(caption,),
            image_emb=np.stack([image] * 3),
            text_emb=text[None],
            syn_text_emb={"syn_text": np.stack([-text, -text])},
        )
        for number, (image, text, caption) in enumerate(zip(images, texts, captions, strict=True))
    ]
    return str(write_shard(path, samples, layout="npz"))


def tuned(shard, **choices):
    return tune_scales(LogitScaleSpec(shards=shard, **choices))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("held-out"), np.random.default_rng(0)
    sides = [matched(scale, rng) for scale in PLANTED.values()]
    images, texts = (np.concatenate(rows, axis=1) for rows in zip(*sides, strict=True))
    write_card(folder, ReinforcementCard(teachers=tuple(map(entry, PLANTED)), layout="npz"))
    return write_pairs(folder / "000.tar", images, texts, [f"caption {number}" for number in range(NUM_PAIRS)])


def test_planted_scales_are_found(shard):
    report = tuned(shard)
    assert (report.num_pairs, report.batch_size) == (NUM_PAIRS, NUM_PAIRS)
    for teacher, (name, planted) in zip(report.teachers, PLANTED.items(), strict=True):
        assert (teacher.name, teacher.own, teacher.is_found) == (name, 100.0, True)
        assert teacher.low < planted < teacher.high
        assert teacher.low < teacher.best < teacher.high < 1.4 * teacher.low
        assert teacher.loss_at(teacher.best) < min(teacher.loss_at(by * teacher.best) for by in (0.5, 2))
    assert tuned(shard).teachers[0].low == report.teachers[0].low


def losses_of(folder, images, texts, captions):
    """Return the loss of pairs at every scale."""
    (teacher,) = tuned(write_pairs(folder / "a.tar", images.numpy(), texts.numpy(), captions)).teachers
    return teacher.losses


def test_the_loss_is_the_contrastive_one(tmp_path):
    images, texts = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    found = losses_of(tmp_path, images, texts, "abcdefghi")
    one, other = torch.nn.functional.normalize(images), torch.nn.functional.normalize(texts)
    for place in (0, 20, 60):
        expected = ContrastiveLoss()(image=one, text=other, logit_scale=SCALES[place]).total
        assert float(found[place]) == pytest.approx(float(expected), rel=1e-5)


def test_a_caption_that_comes_twice_is_no_wrong_answer(tmp_path):
    images, texts = torch.eye(4), torch.eye(4)[[0, 0, 2, 3]]
    apart, alike = (losses_of(tmp_path, images, texts, names) for names in ("abcd", "aacd"))
    assert (alike < apart).all()
    assert np.isfinite(alike).all()


def test_pairs_that_tell_no_scale(shard):
    report = tuned(shard, caption="synthetic")
    # Captions that are the opposite of their pictures fit best where nothing is told apart.
    assert [teacher.best for teacher in report.teachers] == [SCALES[0]] * 2
    assert not report.teachers[0].is_found


def test_the_command_prints_interval_and_flag(shard, capsys):
    printed = worked(capsys, "data", "tune-scale", shard, "--batch-size", "64")
    report = tuned(shard, batch_size=64)
    for one in report.teachers:
        assert f"{one.name}: best {one.best:.4g} (95 % from {one.low:.4g} to {one.high:.4g})" in printed
    best = " ".join(f"{teacher.best:.4g}" for teacher in report.teachers)
    assert f"--training.loss.teacher-logit-scales {best}" in printed
    report = tuned(shard, num_pairs=200, batch_size=64)
    assert (report.num_pairs, report.batch_size) == (192, 64)


def test_mistakes(shard, tmp_path):
    with fails(ValueError, "num_pairs"):
        LogitScaleSpec(shards=shard, num_pairs=1)
    alone, other = (make_sample(number, dim=2 * DIM) for number in (1, 2))
    for others, named in (([], ("1", "real")), ([make_sample(2, dim=DIM)], ())):
        with fails(ValueError, *named):
            tuned(str(write_shard(tmp_path / f"{len(others)}.tar", [alone, *others], layout="npz")))
    two = str(write_shard(tmp_path / "c.tar", [alone, other], layout="npz"))
    (teacher,) = tuned(two).teachers
    assert (teacher.name, teacher.own) == ("teachers", None)
    write_card(tmp_path, ReinforcementCard(teachers=(entry("one"),), layout="npz"))
    with fails(ValueError, "16", "[8]"):
        tuned(two)
