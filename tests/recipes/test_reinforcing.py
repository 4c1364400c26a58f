"""The reinforcement recipes: each of them end to end with small models."""

import re
from pathlib import Path

import pytest

from mobileclip import specs
from mobileclip.data import AugmentationSpec, read_card, read_reinforced_samples, read_samples
from mobileclip.recipes import as_released_dfndr2b, mobileclip2_run
from mobileclip.reinforce import ReinforcementSpec, verify
from mobileclip.serialization import to_json
from tests.errors import fails, told
from tests.recipes.choices import run_of
from tests.recipes.running import run_named
from tests.reinforce.conftest import plain_shards, small_teacher_files


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(folder):
    """Return the shards of a folder."""
    return sorted(Path(folder).glob("*.tar"))


@pytest.mark.parametrize(
    ("name", "num_augmentations", "scales"),
    [
        pytest.param("reinforce_datacompdr12m", 30, (100, 100), marks=pytest.mark.slow),
        pytest.param("reinforce_datacompdr1b", 10, (100, 100), marks=pytest.mark.slow),
        ("reinforce_dfndr2b", 2, (70, 60)),
    ],
)
def test_each_recipe_end_to_end(capsys, name, num_augmentations, scales):
    run_named(name, "--tiny", "--batch-size", "16", "--dry-run")
    told(capsys.readouterr().out, "48 samples in 4 shards: ", "hours of one device")
    output = Path("outputs", f"{name}-tiny")
    assert not output.exists()
    run_named(name, "--tiny", "--batch-size", "16")
    assert "48 samples in 4 reinforced shards, skipped: none; 0 of the shards" in capsys.readouterr().out
    card = read_card(output)
    assert card.teacher_logit_scales == scales
    assert (card.num_augmentations, card.num_samples, card.layout) == (num_augmentations, 48, "pth.gz")
    samples = list(read_reinforced_samples(written(output)))
    assert [len(one.augmentations) for one in samples] == [num_augmentations] * 48
    assert [len(one.syn_captions[card.captioners[0].caption_set]) for one in samples] == [5] * 48
    checked = verify(output, num_samples=4, show_progress=False)
    assert (checked.is_good, checked.num_replayed) == (True, 4), checked
    run_named(name, "--tiny", "--batch-size", "16")
    assert "; 4 of the shards" in capsys.readouterr().out


def test_the_released_run_on_dfndr_takes_the_captions_that_the_recipe_writes():
    """And of no other captioner."""
    made = run_of("reinforce_dfndr2b")
    wanted = as_released_dfndr2b(mobileclip2_run(specs.mobileclip2_s0())).data.caption_sets
    assert re.match(wanted, made.caption_set)
    assert Path(made.captioner.checkpoint).name == "mobileclip2_coca_dfn2b_s13b_mscoco38k_s12m_context77"


@pytest.mark.slow
def test_captions_first_and_embeddings_later_are_both_at_once():
    for flags in ("-o both", "-o captions --step captions", "-o later --step embeddings --data captions"):
        run_named("reinforce_dfndr2b", "--tiny", "--layout", "npz", *flags.split())
    plain = list(read_samples(written("captions")))
    assert all(len(sample.syn_captions["syn_text_dfn_mscoco38k"]) == 5 for sample in plain)
    assert read_card("later") == read_card("both")
    contents = [[(path.name, path.read_bytes()) for path in written(folder)] for folder in ("later", "both")]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("flags", "named"),
    [("", "--data"), ("--engine ray --data nowhere/1.tar", "nowhere/1.tar"), ("--status", "outputs/reinforce_dfndr2b")],
)
def test_mistakes_end_with_one_line(flags, named):
    with fails(SystemExit, named):
        run_named("reinforce_dfndr2b", *flags.split())


def test_a_shard_that_is_set_aside_is_named_and_with_strict_the_status_is_1(tmp_path, capsys):
    """The others are done, and the next run tries it again."""
    (tmp_path / "plain").mkdir()
    shards = plain_shards(tmp_path / "plain", 2, 2)
    spec = ReinforcementSpec(
        source=shards,
        output=tmp_path / "out",
        teachers=small_teacher_files(tmp_path)[:1],
        augmentation=AugmentationSpec(size=32, reference_size=32),
        num_augmentations=1,
    )
    Path("run.json").write_text(to_json(spec))
    whole = shards[0].read_bytes()
    shards[0].write_bytes(b"no tar")
    command = "run.json --pause-seconds 0 --tries 2 --strict".split()
    with fails(SystemExit, "1"):
        run_named("reinforce_dfndr2b", *command)
    set_aside = "set aside: 00000000.tar: unreadable_shard: after 0 samples"
    told(capsys.readouterr().out, set_aside, f"1 shards were set aside, see {tmp_path}/out/set_aside.jsonl")
    assert [path.name for path in written("out")] == ["00000001.tar"]
    shards[0].write_bytes(whole)
    run_named("reinforce_dfndr2b", *command)
    assert "4 samples in 2 reinforced shards, skipped: none; 1 of the shards" in capsys.readouterr().out
    assert not Path("out/set_aside.jsonl").exists()
    run_named("reinforce_dfndr2b", "--status", "--output", "out")
    said = capsys.readouterr().out
    told(said, "finished at ", "\nreinforcing: 2 of 2 shards done, 1 of them by earlier runs\n")
    assert "set aside" not in said
