import attrs
import pytest

from mobileclip.data import (
    AugmentationSpec,
    CaptionerEntry,
    ReinforcementCard,
    TeacherEntry,
    find_card,
    read_card,
    write_card,
)
from mobileclip.inputs import ImageInput
from tests.errors import fails, told


def teacher(name, dim, scale, size, **more):
    choices = {"weights_sha256": "ab", "logit_scale": scale, "image": ImageInput(size=size)}
    return TeacherEntry(name=name, dim=dim, **choices, **more)


CAPTIONER = CaptionerEntry(name="coca", weights_sha256="ef", caption_set="syn_text", seed=3, spec={"top_p": 0.9})
CARD = ReinforcementCard(
    teachers=(teacher("first", 6, 70.0, 32, spec={"kind": "x"}), teacher("second", 4, 60.0, 24)),
    captioners=(CAPTIONER,),
    augmentation=AugmentationSpec(size=32),
    num_augmentations=3,
    seed=7,
    layout="compact",
    num_samples=12,
    skipped={"image_not_an_image": 1},
)


@pytest.mark.parametrize("directory", ["local", "memory://card"])
def test_round_trip(directory, tmp_path):
    place = str(tmp_path) if directory == "local" else directory
    assert find_card(place) is None
    with fails(ValueError):
        read_card(place)
    write_card(place, CARD)
    card = read_card(place)
    assert attrs.asdict(card) == attrs.asdict(CARD)
    write_card(place, attrs.evolve(CARD, num_samples=13))
    assert read_card(place).num_samples == 13


def test_counts_and_versions_make_no_other_card():
    assert attrs.evolve(CARD, num_samples=99, skipped={}, versions={"torch": "9"}) == CARD
    assert attrs.evolve(CARD, seed=8) != CARD


def test_what_a_loss_says_otherwise_than_the_card_is_told():
    assert CARD.differences({"teacher_dims": (6, 4), "teacher_logit_scales": (70.0, 60.0)}) == []
    dims, scales = CARD.differences({"teacher_dims": (4, 6), "teacher_logit_scales": (100.0, 100.0)})
    told(dims, "(4, 6)", "first, second", "(6, 4)")
    told(scales, "(100.0, 100.0)", "(70.0, 60.0)")


def test_a_damaged_card_says_where(tmp_path):
    (tmp_path / "reinforcement.json").write_text('{"layout": "npz", "colour": 3}')
    with fails(ValueError, "unknown key 'colour'"):
        read_card(tmp_path)


def test_some_of_the_teachers_by_their_columns():
    entries = teacher("a", 4, 10.0, 16), teacher("b", 2, 20.0, 16), teacher("c", 3, 30.0, 16)
    card = ReinforcementCard(teachers=entries, layout="npz")
    assert card.in_columns((4, 6)).teacher_logit_scales == (20.0,)
    assert card.in_columns((4, 9)).teacher_dims == (2, 3)
    assert card.in_columns((0, 9)).teachers == entries
    for columns in ((0, 5), (1, 4), (9, 12), (4, 12)):
        with fails(ValueError, "[(0, 4), (4, 6), (6, 9)"):
            card.in_columns(columns)
