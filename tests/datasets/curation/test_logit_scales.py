"""Logit scales are found again that pairs were drawn by."""

import numpy as np
import pytest
import torch

from mobileclip.cli import main
from mobileclip.data import ReinforcementCard, TeacherEntry, write_card, write_shard
from mobileclip.datasets.curation.logit_scales import SCALES, LogitScaleSpec, tune_scales
from mobileclip.inputs import ImageInput
from mobileclip.losses import ContrastiveLoss
from tests.data.made_samples import make_sample
from tests.errors import fails

NUM_PAIRS, DIM = 256, 8
PLANTED = {"sharp": 8.0, "soft": 4.0}


def unit(rng):
    rows = rng.standard_normal((NUM_PAIRS, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def matched(scale, rng):
    """Return images and texts, matched as a softmax at this scale has it: by exchanges that it accepts."""
    images, texts, order = unit(rng), unit(rng), np.arange(NUM_PAIRS)
    similarity = images @ texts.T
    for one, other in rng.integers(NUM_PAIRS, size=(20_000, 2)):
        gain = scale * (
            similarity[one, order[other]]
            + similarity[other, order[one]]
            - similarity[one, order[one]]
            - similarity[other, order[other]]
        )
        if gain >= 0 or rng.random() < np.exp(gain):
            order[one], order[other] = order[other], order[one]
    return images, texts[order]


def entry(name):
    return TeacherEntry(name=name, weights_sha256="0" * 64, dim=DIM, logit_scale=100.0, image=ImageInput(size=32))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    rng = np.random.default_rng(0)
    sides = [matched(scale, rng) for scale in PLANTED.values()]
    images, texts = (np.concatenate([side[place] for side in sides], axis=1) for place in (0, 1))
    samples = [
        make_sample(
            number,
            dim=2 * DIM,
            captions=(f"caption {number}",),
            image_emb=np.stack([image] * 3),
            text_emb=text[None],
            syn_text_emb={"syn_text": np.stack([-text, -text])},
        )
        for number, (image, text) in enumerate(zip(images, texts, strict=True))
    ]
    write_card(folder, ReinforcementCard(teachers=tuple(map(entry, PLANTED)), layout="npz"))
    return str(write_shard(folder / "000.tar", samples, layout="npz"))


def test_planted_scales_are_found(shard):
    report = tune_scales(LogitScaleSpec(shards=shard))
    assert (report.num_pairs, report.batch_size) == (NUM_PAIRS, NUM_PAIRS)
    for teacher, (name, planted) in zip(report.teachers, PLANTED.items(), strict=True):
        assert (teacher.name, teacher.own) == (name, 100.0)
        assert teacher.low < planted < teacher.high
        assert teacher.low < teacher.best < teacher.high
        assert teacher.high < 1.4 * teacher.low
        assert teacher.is_found
        assert teacher.loss_at(teacher.best) < teacher.loss_at(2 * teacher.best)
        assert teacher.loss_at(teacher.best) < teacher.loss_at(teacher.best / 2)
    assert tune_scales(LogitScaleSpec(shards=shard)).teachers[0].low == report.teachers[0].low


def losses_of(folder, images, texts, captions):
    """Return the loss of pairs at every scale."""
    samples = [
        make_sample(
            number,
            dim=image.shape[0],
            captions=(caption,),
            image_emb=image.expand(3, -1).numpy(),
            text_emb=text[None].numpy(),
        )
        for number, (image, text, caption) in enumerate(zip(images, texts, captions, strict=True))
    ]
    shard = write_shard(folder / f"{'-'.join(captions)}.tar", samples, layout="npz")
    (teacher,) = tune_scales(LogitScaleSpec(shards=str(shard))).teachers
    return teacher.losses


def test_the_loss_is_the_contrastive_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 9, 5, generator=generator)
    found = losses_of(tmp_path, images, texts, [str(number) for number in range(9)])
    one, other = torch.nn.functional.normalize(images), torch.nn.functional.normalize(texts)
    for place in (0, 20, 60):
        expected = ContrastiveLoss()(image=one, text=other, logit_scale=SCALES[place]).total
        assert float(found[place]) == pytest.approx(float(expected), rel=1e-5)


def test_a_caption_that_comes_twice_is_no_wrong_answer(tmp_path):
    images = torch.eye(4)
    texts = torch.eye(4)[[0, 0, 2, 3]]
    apart, alike = (losses_of(tmp_path, images, texts, list(names)) for names in ("abcd", "aacd"))
    assert (alike < apart).all()
    assert np.isfinite(alike).all()


def test_pairs_that_tell_no_scale(shard):
    report = tune_scales(LogitScaleSpec(shards=shard, caption="synthetic"))
    # Captions that are the opposite of their pictures fit best where nothing is told apart.
    assert [teacher.best for teacher in report.teachers] == [SCALES[0]] * 2
    assert not report.teachers[0].is_found


def test_the_command_prints_interval_and_flag(shard, capsys):
    main(["data", "tune-scale", shard, "--batch-size", "64"])
    printed = capsys.readouterr().out
    report = tune_scales(LogitScaleSpec(shards=shard, batch_size=64))
    for teacher in report.teachers:
        assert f"{teacher.name}: best {teacher.best:.4g} (95 % from {teacher.low:.4g} to {teacher.high:.4g})" in printed
    best = " ".join(f"{teacher.best:.4g}" for teacher in report.teachers)
    assert f"--training.loss.teacher-logit-scales {best}" in printed
    report = tune_scales(LogitScaleSpec(shards=shard, num_pairs=200, batch_size=64))
    assert (report.num_pairs, report.batch_size) == (192, 64)


def test_mistakes(shard, tmp_path):
    with fails(ValueError, "num_pairs"):
        LogitScaleSpec(shards=shard, num_pairs=1)
    alone = make_sample(1, dim=2 * DIM)
    for others, named in (((), ("1", "real")), ((make_sample(2, dim=DIM),), ())):
        path = str(write_shard(tmp_path / f"{len(others)}.tar", [alone, *others], layout="npz"))
        with fails(ValueError, *named):
            tune_scales(LogitScaleSpec(shards=path))
    two = str(write_shard(tmp_path / "c.tar", [alone, make_sample(2, dim=2 * DIM)], layout="npz"))
    (teacher,) = tune_scales(LogitScaleSpec(shards=two)).teachers
    assert (teacher.name, teacher.own) == ("teachers", None)
    write_card(tmp_path, ReinforcementCard(teachers=(entry("one"),), layout="npz"))
    with fails(ValueError, "16", "[8]"):
        tune_scales(LogitScaleSpec(shards=two))
