"""The training recipes, each of them for two steps on drawn scenes."""

from functools import partial
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file

from mobileclip.data import ReinforcedPipelineSpec, datacompdr_augmentation, read_card, write_shards
from mobileclip.encoders import load_model
from mobileclip.engines import InlineEngine
from mobileclip.evaluation import Session, candidate_of, evaluate_benchmark, open_benchmark
from mobileclip.losses import ContrastiveLossSpec, ReinforcedLossSpec, SigmoidLossSpec
from mobileclip.recipes import mobileclip2_run, mobileclip_run, run_recipe, with_data
from mobileclip.recipes.tiny import scene_samples
from mobileclip.reinforce import ReinforcementSpec, reinforce
from mobileclip.serialization import from_json, to_json
from mobileclip.training import RunSpec, SelectionSpec, read_metrics, without_teachers
from tests.data.made_samples import encoded, write_raw
from tests.data.tokenizer_files import KINDS
from tests.encoders.small import SMALL
from tests.errors import fails, told
from tests.evaluation.scene_models import write_scene_benchmarks
from tests.recipes.choices import ROWS, TRAINING, WITH_ROWS, run_of, runs_of
from tests.recipes.running import run_named, shown, shown_run
from tests.reinforce.open_clip_models import write_tiny_models

# Rows with narrow towers and few patches; the slow tests have each recipe's own size.
PLAIN, REINFORCED = ((ROWS, f"{row}.json", "--data.image.size", "64") for row in ("plain", "one_teacher"))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder in which the drawn scenes are reinforced once, and two rows of narrow towers, whose files are small."""
    folder = tmp_path_factory.mktemp("recipes")
    for row in ("plain", "one_teacher"):
        run = run_of(f"{ROWS} {row}")
        towers = {name: attrs.evolve(getattr(run.model, name), width=64, num_heads=1) for name in ("image", "text")}
        (folder / f"{row}.json").write_text(to_json(attrs.evolve(run, model=attrs.evolve(run.model, **towers))))
    return folder


def run_tiny(world, output, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        run_named(*arguments, "--tiny", "-o", output)
    return world / output


def check(output):
    spec = from_json((output / "run.json").read_text(), RunSpec)
    lines = read_metrics(output / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1]
    assert all(line["loss"] > 0 for line in lines)
    assert load_model(output / "model.safetensors").spec == spec.model
    assert (output / "curves.png").stat().st_size > 1000
    return spec, lines


@pytest.fixture(scope="session", name="plain")
def _plain(world):
    """The output of the shortest run, beside which the scenes lie."""
    return run_tiny(world, "plain", *PLAIN)


@pytest.mark.slow
def test_s2_for_two_steps_then_again(world, capsys):
    output = run_tiny(world, "s2", "train_s2")
    spec, lines = check(output)
    assert spec.model.image.stages[0].dim == 80
    assert all(line["distillation"] > 0 and "contrastive" not in line for line in lines)
    assert "mobileclip classify" in capsys.readouterr().out
    before = load_file(output / "model.safetensors")
    check(run_tiny(world, "s2", "train_s2"))
    torch.testing.assert_close(load_file(output / "model.safetensors"), before, rtol=0, atol=0)
    with fails(SystemExit, "training"):
        run_tiny(world, "s2", "train_s2", "--training.seed", "1")


@pytest.mark.parametrize("published", [mobileclip_run, pytest.param(mobileclip2_run, marks=pytest.mark.slow)])
def test_a_recipe_takes_what_it_needs_from_the_card_of_ones_own_data(published, tmp_path, monkeypatch, capsys):
    """Pairs without synthetic captions, and two teachers that are not those of the recipe."""
    monkeypatch.chdir(tmp_path)
    pairs = [attrs.evolve(sample, syn_captions={}) for sample in scene_samples(16, seed=0)]
    write_shards("pairs", pairs, samples_per_shard=8)
    first, second = write_tiny_models(Path("models")).teachers
    teachers = attrs.evolve(first, logit_scale=20.0), attrs.evolve(second, logit_scale=40.0)
    choices = {"augmentation": datacompdr_augmentation(32), "num_augmentations": 2, "num_compared": 0}
    reinforce(ReinforcementSpec(source="pairs", output="mine", teachers=teachers, **choices), engine=InlineEngine())

    own = with_data(published(SMALL, batch_size=8, total_steps=2, warmup_steps=1), num_workers=0)
    run_recipe(own, ["--data", "mine", "--quiet"], name="own")
    spec = from_json(Path("outputs/own/run.json").read_text(), RunSpec)
    for taught in (read_card("mine"), spec.training.loss):
        assert (taught.teacher_dims, taught.teacher_logit_scales) == ((48, 32), (20.0, 40.0))
    assert (spec.data.captions, read_metrics("outputs/own/metrics.jsonl")[-1]["step"]) == ("real", 1)
    told(capsys.readouterr().out, "teacher_dims (48, 32)", "teacher_logit_scales (20.0, 40.0)", "real captions")
    wrong = ["--data.captions", "synthetic", "--training.loss.teacher-dims", "5", "5"]
    with fails(SystemExit, "(5, 5)", "(48, 32)"):
        run_recipe(own, ["--data", "mine", "--quiet", *wrong], name="wrong")
    assert not Path("outputs/wrong").exists()


@pytest.mark.slow
def test_held_out_shards_and_data_sets_in_the_public_layout_between_epochs(world, plain, tmp_path):
    """Their numbers are those of the model that the run leaves, and the run is the one that nobody looked at."""
    folders = write_scene_benchmarks(tmp_path, 12)
    flags = ("--evaluate", folders[0], "--evaluate", folders[1], "--validation", "outputs/tiny/scenes/00000000.tar")
    output = run_tiny(world, "seen", *PLAIN, *flags)
    seen, alone = (load_model(one / "model.safetensors", fold=False) for one in (output, plain))
    assert all(torch.equal(seen.state_dict()[name], value) for name, value in alone.state_dict().items())
    (line,) = (line for line in read_metrics(output / "metrics.jsonl") if "scenes/acc1" in line)
    assert line["step"] == 1
    for direction in ("image_to_text", "text_to_image"):
        assert 0 <= line[f"validation_{direction}_recall_at_1"] <= 1
    session = Session.of(candidate_of(seen, name="student"), show_progress=False)
    for benchmark in map(open_benchmark, folders):
        found = evaluate_benchmark(session, benchmark).metrics
        logged = {name: line[f"{benchmark.name}/{name}"] for name in found if name != "main_metric"}
        # One picture more or less, of twelve: two steps leave them close together.
        assert logged == pytest.approx({name: found[name] for name in logged}, abs=1.01 / 12)


def test_a_data_set_that_cannot_be_evaluated_is_named_before_the_training(world, tmp_path):
    folder, _ = write_scene_benchmarks(tmp_path, 4)
    (folder / "test" / "0.tar").unlink()
    with fails(SystemExit, "1", "scenes"):
        run_tiny(world, tmp_path / "output", *PLAIN, "--evaluate", folder)
    assert not (tmp_path / "output" / "metrics.jsonl").exists()


def test_a_plain_and_a_reinforced_row_for_two_steps(world, plain):
    for output, is_reinforced in ((plain, False), (run_tiny(world, "reinforced", *REINFORCED), True)):
        spec, lines = check(output)
        assert all((line.get("distillation", 0) > 0) == is_reinforced for line in lines)
        assert spec.data.reinforced == is_reinforced


OTHERS = [name for name in TRAINING if name not in {*WITH_ROWS, "train_s2"}]
OTHERS += [name for name in runs_of(ROWS) if name.split()[1] not in {"plain", "one_teacher"}]
# What the rows of the other recipes differ in is a number or a name; one of each kind is trained.
OTHERS += [f"train_vit_b16_12m_stored {row}" for row in ("augmentations_1", "captions_2")]
OTHERS += [f"train_vit_b16_12m_text {row}" for row in ("mct_0", "mct_6")]
OTHERS += [f"train_b_dfndr12m {row}" for row in ("mscoco38k", "scales_half")]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_recipe_for_two_steps(world, name):
    check(run_tiny(world, name.replace(" ", "-"), *name.split()))


def test_pairs_as_they_are_say_what_they_lack_and_train_with_plain(world, tmp_path):
    """They are in a shard of pictures with a caption each, as img2dataset and tar write it."""
    members = {f"{n:06d}": {"jpg": encoded(96, 72, n, "jpeg"), "txt": f"picture {n}".encode()} for n in range(24)}
    own = [*REINFORCED, "--data", write_raw(tmp_path / "mine-000.tar", members), "--device", "cpu"]
    with fails(SystemExit, "mine-000.tar", "missing_member", "paug.json", "jpg, txt", "--plain"):
        run_tiny(world, tmp_path / "out", *own)
    assert not (tmp_path / "out").exists()
    spec, lines = check(run_tiny(world, tmp_path / "out", *own, "--plain"))
    assert (spec.data.captions, spec.data.reinforced) == ("real", False)
    assert spec.training.loss == ContrastiveLossSpec()
    assert "distillation_loss" not in lines[0]


@pytest.mark.parametrize(("member", "named"), [("txt", "image"), ("jpg", "caption")])
def test_plain_pairs_lack_what_they_lack(world, member, named, tmp_path):
    shard = write_raw(tmp_path / "0.tar", {f"{number}": {member: b"alone"} for number in range(8)})
    with fails(SystemExit, named) as stopped:
        run_tiny(world, tmp_path / "out", *PLAIN, "--data", shard)
    assert "--plain" not in str(stopped.value)


@pytest.mark.parametrize("name", ["train_b", "train_mobileclip2_s0", f"{ROWS} one_teacher"])
def test_plain_is_clips_loss_on_real_captions(name, capsys):
    given, plain = (shown_run(capsys, name, *flags) for flags in ((), ("--plain",)))
    assert type(plain.data) is ReinforcedPipelineSpec
    assert (plain.data.reinforced, plain.data.captions) == (False, "real")
    assert plain.training == attrs.evolve(given.training, loss=ContrastiveLossSpec())
    assert plain.model == given.model


def test_a_sigmoid_loss_stays_one_without_its_teachers():
    run = run_of("train_s0")
    loss = ReinforcedLossSpec(initial_logit_bias=-10, teacher_logit_biases=(-10, None), distill_weight=0.5)
    selecting = attrs.evolve(run.training, loss=loss, selection=SelectionSpec(share=0.5))
    assert without_teachers(attrs.evolve(run, training=selecting)).training.loss == SigmoidLossSpec()


def test_a_tokenizer_of_ones_own(tmp_path, capsys, monkeypatch):
    """Its name is among the choices, which are taken up again with that file alone."""
    monkeypatch.chdir(tmp_path)
    show = partial(shown, capsys, "train_s2")
    for kind in ("bert", "t5"):
        KINDS[kind]().save(f"{kind}.json")
    capsys.readouterr()
    text = show("--tokenizer", "t5.json", "--data.text.context-length", "20")
    spec = from_json(text, RunSpec)
    given = spec.data.text
    assert given == spec.model.text.input
    assert (given.context_length, given.start_id, given.end_id) == (20, None, 1)
    Path("run.json").write_text(text)
    assert show("run.json", "--tokenizer", "t5.json") == text
    with fails(SystemExit, "--tokenizer", given.tokenizer.sha256):
        show("run.json")
    for file, words in {"bert.json": ["SHA-256"], "run.json": ["tokenizer.json"], "none.json": []}.items():
        with fails(SystemExit, file, *words):
            show("run.json", "--tokenizer", file)
