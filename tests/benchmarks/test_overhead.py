import attrs
import pytest

from benchmarks.overhead import (
    ALL_ONLINE,
    PLAIN,
    REINFORCED,
    TEACHERS_ONLINE,
    OverheadBenchSpec,
    Training,
    measure,
    rows,
)
from mobileclip.data import read_reinforced_samples
from tests.encoders.small import SMALL_MCT
from tests.reinforce.open_clip_models import write_tiny_models


@pytest.mark.slow
def test_every_way_trains_and_is_timed(tmp_path):
    tiny = write_tiny_models(tmp_path / "models")
    spec = OverheadBenchSpec(
        batch_size=4, num_steps=2, num_rounds=2, num_online_steps=1, width=96, num_augmentations=3, num_workers=0
    )
    whole_vocabulary = attrs.evolve(SMALL_MCT.text.input, vocab_size=49408)
    student = attrs.evolve(SMALL_MCT, text=attrs.evolve(SMALL_MCT.text, input=whole_vocabulary))
    training = Training(spec=spec, student=student, folder=tmp_path, dims=(6, 4))
    found = measure(training, teachers=tiny.teachers, captioner=attrs.evolve(tiny.captioner, num_captions=1))
    assert [row.case["way"] for row in found] == [PLAIN, REINFORCED, TEACHERS_ONLINE, ALL_ONLINE]
    assert all(value.number > 0 for row in found for value in row.values.values())
    assert found[0].values["over plain"].number == 1.0
    samples = list(read_reinforced_samples(sorted((tmp_path / "data").glob("*.tar"))))
    assert len(samples) == 32
    assert all(sample.image_emb.shape == (3, 10) for sample in samples)
    assert not (tmp_path / "run").exists()


def test_rates_and_ratios():
    rounds = {
        PLAIN: [[1.0, 2.0, 9.0], [4.0, 4.0, 4.0], [1.0, 1.0, 1.0]],
        REINFORCED: [[2.0, 2.0, 2.0], [2.0, 5.0, 8.0], [2.0, 2.0, 2.0]],
        ALL_ONLINE: [[8.0]],
    }
    plain, reinforced, online = (row.values for row in rows(rounds, 4))
    assert plain["rate"].number == 4 / 2
    assert online["rate"].number == 4 / 8
    # Round by round, since other work slows both ways of a round: 2/2, 4/5 and 1/2.
    assert reinforced["over plain"].number == 0.8
    # What runs once is set against all rounds.
    assert online["over plain"].number == 2 / 8
