"""How far teachers recognise the stored views: counted by hand, and on the first shard alone."""

from __future__ import annotations

import json
import logging
import re

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobileclip.data import (
    AugmentationSpec,
    ImageTransform,
    ViewAgreement,
    decode_image,
    find_card,
    read_card,
    read_reinforced_samples,
)
from mobileclip.engines import InlineEngine
from mobileclip.inputs import ImageInput
from mobileclip.reinforce import (
    Manifest,
    ModelTeacher,
    ReinforcementSpec,
    TeacherEnsemble,
    measure_agreement,
    reinforce,
)
from tests.errors import fails
from tests.reinforce.conftest import TinyImageSpec, tiny_model

PLAIN = AugmentationSpec(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), num_operations=0)
STRONG = AugmentationSpec(size=32, reference_size=32, scale=(0.02, 0.1), magnitude=30)


class Thumbnails(nn.Module):
    """A tower that sees where a picture is light and where it is dark."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, image):
        cells = F.adaptive_avg_pool2d(image, 2).flatten(1)
        return cells - cells.mean(1, keepdim=True)


def teacher(name, *, size, seed):
    """One that tells pictures of noise, and bags of words, apart."""
    torch.manual_seed(seed)
    image = ImageInput(size=size)
    tower = Thumbnails(TinyImageSpec(embedding_dim=12, input=image))
    return ModelTeacher(name=name, clip=tiny_model(dim=12, image=image, tower=tower), logit_scale=10.0)


def make_spec(shards, output, **choices) -> ReinforcementSpec:
    choices = {"augmentation": STRONG, "num_augmentations": 3, "layout": "npz", "batch_size": 2, **choices}
    return ReinforcementSpec(source=shards, output=output, **choices)


def run(spec, teachers, *, show_progress=False):
    return reinforce(spec, engine=InlineEngine(num_threads=1), teachers=teachers, show_progress=show_progress)


@pytest.fixture(scope="module")
def ensemble():
    """Two teachers that see images at different sizes."""
    return TeacherEnsemble([teacher("first", size=32, seed=1), teacher("second", size=24, seed=2)])


@pytest.fixture
def measured(make_shards, ensemble, tmp_path):
    return run(make_spec(make_shards(2, 8), tmp_path / "out"), ensemble), tmp_path / "out"


def taken_for(embedding, samples):
    """Return the key of the picture whose caption is the nearest, of the captions that one picture has."""
    pairs = [
        (text, row, sample.key)
        for sample in samples
        for texts, rows in (
            (sample.captions, sample.text_emb),
            (sample.syn_captions["syn_text"], sample.syn_text_emb["syn_text"]),
        )
        for text, row in zip(texts, rows, strict=True)
    ]
    texts = [text for text, _, _ in pairs]
    return max((one for one in pairs if texts.count(one[0]) == 1), key=lambda pair: float(embedding @ pair[1]))[2]


def test_it_is_what_counting_gives(measured, ensemble):
    report, _ = measured
    samples = list(read_reinforced_samples(report.shards[:1]))
    alike, plain_right, view_right = [], [], []
    transforms = {size: ImageTransform(ImageInput(size=size, interpolation="bicubic")) for size in ensemble.image_sizes}
    for sample in samples:
        image = decode_image(sample.image)
        pixels = {size: torch.from_numpy(one.pixels(image)).permute(2, 0, 1)[None] for size, one in transforms.items()}
        seen_as = taken_for(ensemble.encode_images(pixels)[0].numpy(), samples)
        plain_right.append(seen_as == sample.key)
        views = [taken_for(view, samples) for view in sample.image_emb]
        alike += [view == seen_as for view in views]
        view_right += [view == sample.key for view in views]
    found = report.agreement
    assert (found.num_samples, found.num_views) == (8, 24)
    shares = [found.agreement, found.plain_accuracy, found.view_accuracy]
    assert shares == pytest.approx([np.mean(alike), np.mean(plain_right), np.mean(view_right)])


def test_the_card_and_the_line_of_the_first_shard_hold_it_and_a_second_run_keeps_it_without_measuring(
    measured, tmp_path
):
    report, out = measured
    card = read_card(out)
    assert report.agreement is not None
    assert card.agreement == report.agreement
    lines = [json.loads(line)["agreement"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line is not None for line in lines] == [True, False]
    assert [entry.agreement for entry in Manifest(out).entries()] == [report.agreement, None]
    # A part of the teachers has no such figure.
    assert card.in_columns((0, 24)) == card
    assert card.in_columns((0, 12)).agreement is None
    before = (out / "reinforcement.json").read_bytes()
    others = TeacherEnsemble([teacher("not asked", size=24, seed=0)])
    again = run(make_spec(sorted((tmp_path / "plain").glob("*.tar")), out), others)
    assert (again.num_done_before, again.agreement) == (2, report.agreement)
    assert (out / "reinforcement.json").read_bytes() == before


@pytest.mark.parametrize(("most", "num_samples"), [(3, 3), (100, 8), (0, None), (1, None)])
def test_at_most_so_many_pictures_are_compared_and_of_fewer_than_two_nothing_is_said(
    make_shards, ensemble, tmp_path, most, num_samples
):
    report = run(make_spec(make_shards(1, 8), tmp_path / "out", num_compared=most), ensemble)
    assert (report.agreement and report.agreement.num_samples) == num_samples
    assert find_card(tmp_path / "out").agreement == report.agreement
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert (line["agreement"] is None) == (num_samples is None)


def test_a_plain_picture_without_finite_embeddings_stops_nothing(measured, ensemble, caplog, monkeypatch):
    report, out = measured
    samples = list(read_reinforced_samples(report.shards[:1]))
    monkeypatch.setattr(Thumbnails, "forward", lambda _, image: torch.full((len(image), 12), float("nan")))
    with caplog.at_level(logging.WARNING):
        assert measure_agreement(samples, ensemble, make_spec(report.shards, out / "other")) is None
    assert "was not measured" in caplog.text


def test_it_is_printed_a_low_one_is_warned_of_and_plain_views_are_recognised(
    make_shards, ensemble, tmp_path, capsys, caplog
):
    shards = make_shards(1, 8)
    report = run(make_spec(shards, tmp_path / "strong"), ensemble, show_progress=True)
    assert str(report.agreement) in capsys.readouterr().out
    assert report.agreement.agreement < 0.5
    assert "larger crops" in caplog.text
    caplog.clear()
    plain = run(make_spec(shards, tmp_path / "weak", augmentation=PLAIN), ensemble).agreement
    assert "larger crops" not in caplog.text
    assert not capsys.readouterr().out
    assert (plain.agreement, plain.view_accuracy) == (1, plain.plain_accuracy)
    assert plain.ratio in (1, None)


def test_a_share_is_one_also_of_teachers_that_know_nothing():
    """With 128 pictures one is recognised by guessing; of that, the views' share may be any, and says nothing."""
    found = ViewAgreement(
        num_samples=128, num_views=1280, agreement=0.02, plain_accuracy=0.009375, view_accuracy=0.0125
    )
    assert all(share in str(found) for share in ("0.9%", "1.2%", "0.8%"))
    assert max(float(share) for share in re.findall(r"([\d.]+)%", str(found))) <= 100
    assert attrs.evolve(found, plain_accuracy=0.0).ratio is None
    assert attrs.evolve(found, plain_accuracy=1.0, view_accuracy=0.5).ratio == 0.5
    with fails(ValueError, "agreement"):
        attrs.evolve(found, agreement=1.5)
