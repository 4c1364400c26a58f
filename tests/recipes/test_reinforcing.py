"""The reinforcement recipes: each of them end to end with small models."""

import re
from pathlib import Path

import pytest

from mobileclip import specs
from mobileclip.data import AugmentationSpec, read_card, read_reinforced_samples, read_samples
from mobileclip.recipes import as_released_dfndr2b, mobileclip2_run
from mobileclip.reinforce import ReinforcementSpec, verify
from mobileclip.serialization import to_json
from tests.errors import fails
from tests.recipes.choices import run_of
from tests.recipes.running import run_named
from tests.reinforce.conftest import plain_shards, small_teacher_files


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "num_augmentations", "scales"),
    [
        pytest.param("reinforce_datacompdr12m", 30, (100, 100), marks=pytest.mark.slow),
        pytest.param("reinforce_datacompdr1b", 10, (100, 100), marks=pytest.mark.slow),
        ("reinforce_dfndr2b", 2, (70, 60)),
    ],
)
def test_each_recipe_end_to_end(here, capsys, name, num_augmentations, scales):
    run_named(name, "--tiny", "--batch-size", "16")
    output = here / "outputs" / f"{name}-tiny"
    assert "48 samples in 4 reinforced shards, skipped: none; 0 of the shards" in capsys.readouterr().out
    card = read_card(output)
    assert card.teacher_logit_scales == scales
    assert (card.num_augmentations, card.num_samples, card.layout) == (num_augmentations, 48, "pth.gz")
    assert card.captioners[0].spec["num_captions"] == 5
    samples = list(read_reinforced_samples(sorted(output.glob("*.tar"))))
    assert len(samples) == 48
    for sample in samples:
        assert len(sample.augmentations) == num_augmentations
        assert len(sample.syn_captions[card.captioners[0].caption_set]) == 5
    checked = verify(output, num_samples=4, show_progress=False)
    assert checked.is_good, checked
    assert checked.num_replayed == 4
    run_named(name, "--tiny", "--batch-size", "16")
    assert "; 4 of the shards" in capsys.readouterr().out


def test_the_released_run_on_dfndr_takes_the_captions_that_the_recipe_writes():
    """And of no other captioner."""
    made = run_of("reinforce_dfndr2b")
    wanted = as_released_dfndr2b(mobileclip2_run(specs.mobileclip2_s0())).data.caption_sets
    assert re.match(wanted, made.caption_set)
    assert Path(made.captioner.checkpoint).name == "mobileclip2_coca_dfn2b_s13b_mscoco38k_s12m_context77"


@pytest.mark.slow
def test_captions_first_and_embeddings_later_are_both_at_once(here):
    common = ["--tiny", "--layout", "npz"]
    run_named("reinforce_dfndr2b", *common)
    run_named("reinforce_dfndr2b", *common, "--step", "captions", "--output", "captions")
    plain = list(read_samples(sorted(Path("captions").glob("*.tar"))))
    assert all(len(sample.syn_captions["syn_text_dfn_mscoco38k"]) == 5 for sample in plain)
    later = ["--step", "embeddings", "--data", "captions", "--output", "embeddings"]
    run_named("reinforce_dfndr2b", *common, *later)
    assert read_card("embeddings") == read_card("outputs/reinforce_dfndr2b-tiny")
    for path in sorted(Path("embeddings").glob("*.tar")):
        assert path.read_bytes() == (Path("outputs/reinforce_dfndr2b-tiny") / path.name).read_bytes()


def test_a_dry_run_estimates_and_writes_nothing(here, capsys):
    run_named("reinforce_dfndr2b", "--tiny", "--dry-run")
    said = capsys.readouterr().out
    assert said.startswith("48 samples in 4 shards: ")
    assert "hours of one device" in said
    assert not (here / "outputs" / "reinforce_dfndr2b-tiny").exists()


def test_mistakes_end_with_one_line(here):
    with fails(SystemExit, "--data"):
        run_named("reinforce_dfndr2b")
    with fails(SystemExit, "nowhere/1.tar"):
        run_named("reinforce_dfndr2b", "--engine", "ray", "--data", "nowhere/1.tar")


def write_run(folder, shards):
    """Write the choices of a small run on shards."""
    spec = ReinforcementSpec(
        source=shards,
        output=folder / "out",
        teachers=small_teacher_files(folder)[:1],
        augmentation=AugmentationSpec(size=32, reference_size=32),
        num_augmentations=1,
    )
    (folder / "run.json").write_text(to_json(spec))


def test_a_shard_that_is_set_aside_is_named_and_with_strict_the_status_is_1(here, capsys):
    """The others are done, and the next run tries it again."""
    (here / "plain").mkdir()
    shards = plain_shards(here / "plain", 2, 2)
    whole = shards[0].read_bytes()
    shards[0].write_bytes(b"no tar")
    write_run(here, shards)
    command = ["run.json", "--pause-seconds", "0", "--tries", "2", "--strict"]
    with pytest.raises(SystemExit) as ended:
        run_named("reinforce_dfndr2b", *command)
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "set aside: 00000000.tar: unreadable_shard: after 0 samples" in said
    assert f"1 shards were set aside, see {here}/out/set_aside.jsonl" in said
    assert [path.name for path in (here / "out").glob("*.tar")] == ["00000001.tar"]
    shards[0].write_bytes(whole)
    run_named("reinforce_dfndr2b", *command)
    assert "4 samples in 2 reinforced shards, skipped: none; 1 of the shards" in capsys.readouterr().out
    assert not (here / "out" / "set_aside.jsonl").exists()
    run_named("reinforce_dfndr2b", "--status", "--output", "out")
    said = capsys.readouterr().out
    assert said.startswith("finished at ")
    assert "\nreinforcing: 2 of 2 shards done, 1 of them by earlier runs\n" in said
    assert "set aside" not in said
    with fails(SystemExit, "outputs/reinforce_dfndr2b"):
        run_named("reinforce_dfndr2b", "--status")
