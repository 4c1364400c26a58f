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
        plain = ensemble.encode_images(pixels)[0].numpy()
        seen_as = taken_for(plain, samples)
        plain_right.append(seen_as == sample.key)
        for view in sample.image_emb:
            alike.append(taken_for(view, samples) == seen_as)
            view_right.append(taken_for(view, samples) == sample.key)
    found = report.agreement
    assert (found.num_samples, found.num_views) == (8, 24)
    assert found.agreement == pytest.approx(np.mean(alike))
    assert found.plain_accuracy == pytest.approx(np.mean(plain_right))
    assert found.view_accuracy == pytest.approx(np.mean(view_right))


def test_views_that_are_the_plain_picture_are_recognised(make_shards, ensemble, tmp_path):
    report = run(make_spec(make_shards(1, 8), tmp_path / "out", augmentation=PLAIN), ensemble)
    assert report.agreement.agreement == 1
    assert report.agreement.plain_accuracy == report.agreement.view_accuracy
    assert report.agreement.ratio in (1, None)


def test_the_card_and_the_line_of_the_first_shard_hold_it(measured):
    report, out = measured
    assert report.agreement is not None
    assert read_card(out).agreement == report.agreement
    manifest = Manifest(out)
    assert [manifest[name].agreement for name in ("00000000.tar", "00000001.tar")] == [report.agreement, None]
    assert [
        json.loads(line)["agreement"] is not None for line in (out / "manifest.jsonl").read_text().splitlines()
    ] == [True, False]


def test_a_second_run_keeps_it_without_measuring(measured, tmp_path):
    report, out = measured
    before = (out / "reinforcement.json").read_bytes()
    others = TeacherEnsemble([teacher("not asked", size=24, seed=0)])
    again = run(make_spec(sorted((tmp_path / "plain").glob("*.tar")), out), others)
    assert again.num_done_before == 2
    assert again.agreement == report.agreement
    assert (out / "reinforcement.json").read_bytes() == before


@pytest.mark.parametrize(("most", "num_samples"), [(3, 3), (100, 8)])
def test_at_most_so_many_pictures_are_compared(make_shards, ensemble, tmp_path, most, num_samples):
    report = run(make_spec(make_shards(2, 8), tmp_path / "out", num_compared=most), ensemble)
    assert report.agreement.num_samples == num_samples


@pytest.mark.parametrize("most", [0, 1])
def test_where_nothing_can_be_compared_nothing_is_said(make_shards, ensemble, tmp_path, most):
    report = run(make_spec(make_shards(1, 4), tmp_path / "out", num_compared=most), ensemble)
    assert report.agreement is None
    assert find_card(tmp_path / "out").agreement is None
    assert json.loads((tmp_path / "out" / "manifest.jsonl").read_text())["agreement"] is None


def test_a_plain_picture_without_finite_embeddings_stops_nothing(measured, ensemble, caplog, monkeypatch):
    report, out = measured
    samples = list(read_reinforced_samples(report.shards[:1]))
    monkeypatch.setattr(Thumbnails, "forward", lambda _, image: torch.full((len(image), 12), float("nan")))
    with caplog.at_level(logging.WARNING):
        found = measure_agreement(samples, ensemble, make_spec(report.shards, out / "other"))
    assert found is None
    assert "was not measured" in caplog.text


def test_it_is_printed_and_a_low_one_is_warned_of(make_shards, ensemble, tmp_path, capsys, caplog):
    shards = make_shards(1, 8)
    report = run(make_spec(shards, tmp_path / "strong"), ensemble, show_progress=True)
    assert str(report.agreement) in capsys.readouterr().out
    assert report.agreement.agreement < 0.5
    assert "larger crops" in caplog.text
    caplog.clear()
    run(make_spec(shards, tmp_path / "weak", augmentation=PLAIN), ensemble)
    assert "try larger crops" not in caplog.text
    assert not capsys.readouterr().out


def test_a_part_of_the_teachers_has_no_such_figure(measured):
    card = read_card(measured[1])
    assert card.in_columns((0, 24)) == card
    assert card.in_columns((0, 24)).agreement == card.agreement
    assert card.in_columns((0, 12)).agreement is None


def test_what_is_said_of_teachers_that_know_nothing_is_that():
    """With 128 pictures one is recognised by guessing; of that, the views' share may be any, and says nothing."""
    found = ViewAgreement(
        num_samples=128, num_views=1280, agreement=0.02, plain_accuracy=0.009375, view_accuracy=0.0125
    )
    text = str(found)
    assert "0.9% of the plain pictures and for 1.2% of the views, where guessing gives 0.8%" in text
    assert max(float(share) for share in re.findall(r"([\d.]+)%", text)) <= 100


def test_a_share_is_one():
    fields = {"num_samples": 2, "num_views": 4, "agreement": 0.5, "plain_accuracy": 0.0, "view_accuracy": 0.5}
    assert ViewAgreement(**fields).ratio is None
    assert attrs.evolve(ViewAgreement(**fields), plain_accuracy=1.0).ratio == 0.5
    with pytest.raises(ValueError, match="agreement"):
        ViewAgreement(**fields | {"agreement": 1.5})
