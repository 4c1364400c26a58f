from __future__ import annotations

import attrs
import pytest

from benchmarks.overhead import (
    ALL_ONLINE,
    PLAIN,
    REINFORCED,
    TEACHERS_ONLINE,
    Bench,
    Measured,
    OverheadBenchSpec,
    measure,
)
from mobileclip.data import read_reinforced_samples
from mobileclip.recipes.tiny import write_tiny_models
from tests.encoders.small import SMALL_MCT


@pytest.mark.slow
def test_every_way_trains_and_is_timed(tmp_path, capsys):
    tiny = write_tiny_models(tmp_path / "models")
    spec = OverheadBenchSpec(
        batch_size=4, num_steps=2, num_rounds=2, num_online_steps=1, width=96, num_augmentations=3, num_workers=0
    )
    whole_vocabulary = attrs.evolve(SMALL_MCT.text.input, vocab_size=49408)
    student = attrs.evolve(SMALL_MCT, text=attrs.evolve(SMALL_MCT.text, input=whole_vocabulary))
    bench = Bench(spec=spec, student=student, folder=tmp_path, dims=(6, 4))
    measured = measure(bench, teachers=tiny.teachers, captioner=attrs.evolve(tiny.captioner, num_captions=1))
    assert list(measured.rounds) == [PLAIN, REINFORCED, TEACHERS_ONLINE, ALL_ONLINE]
    assert [len(rounds) for rounds in measured.rounds.values()] == [2, 2, 1, 1]
    assert all(seconds > 0 for rounds in measured.rounds.values() for one in rounds for seconds in one)
    assert [len(one) for one in measured.rounds[REINFORCED]] == [2, 2]
    assert measured.ratio(PLAIN) == 1.0
    samples = list(read_reinforced_samples(sorted((tmp_path / "data").glob("*.tar"))))
    assert len(samples) == 32
    assert all(sample.image_emb.shape == (3, 10) for sample in samples)
    assert not (tmp_path / "run").exists()
    assert f"round 2 of 2: {PLAIN}" in capsys.readouterr().out


def test_rates_and_ratios():
    measured = Measured(
        rounds={
            PLAIN: [[1.0, 2.0, 9.0], [4.0, 4.0, 4.0], [1.0, 1.0, 1.0]],
            REINFORCED: [[2.0, 2.0, 2.0], [2.0, 5.0, 8.0], [2.0, 2.0, 2.0]],
            ALL_ONLINE: [[8.0]],
        },
        batch_size=4,
    )
    assert measured.samples_per_second(PLAIN) == 4 / 2
    assert measured.samples_per_second(ALL_ONLINE) == 4 / 8
    # Round by round, since other work slows both ways of a round: 2/2, 4/5 and 1/2.
    assert measured.ratio(REINFORCED) == 0.8
    # What runs once is set against all rounds.
    assert measured.ratio(ALL_ONLINE) == 2 / 8
