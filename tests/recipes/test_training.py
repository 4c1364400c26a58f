"""The training recipes, each of them for two steps on drawn scenes."""

import io
import os
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
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
from mobileclip.training import RunSpec, SelectionSpec, plain, read_metrics
from tests.data.made_samples import write_raw
from tests.data.tokenizer_files import KINDS
from tests.encoders.small import SMALL
from tests.errors import fails
from tests.evaluation.scene_models import write_scene_benchmarks
from tests.recipes.choices import ROWS, TRAINING, WITH_ROWS, run_of, runs_of
from tests.recipes.running import run_named, shown, shown_run
from tests.reinforce.open_clip_models import write_tiny_models


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder in which the drawn scenes are reinforced once, and two rows of narrow towers, whose files are small."""
    folder = tmp_path_factory.mktemp("recipes")
    for row in ("plain", "one_teacher"):
        run = run_of(f"{ROWS} {row}")
        image = attrs.evolve(run.model.image, width=64, num_heads=1)
        text = attrs.evolve(run.model.text, width=64, num_heads=1)
        run = attrs.evolve(run, model=attrs.evolve(run.model, image=image, text=text))
        (folder / f"{row}.json").write_text(to_json(run))
    return folder


def narrow(row):
    """Return the flags of a row with narrow towers and few patches; the slow tests have each recipe's own size."""
    return [f"{row}.json", "--data.image.size", "64"]


def run_tiny(world, name, row=None, arguments=()):
    before, output = Path.cwd(), f"outputs/{name}{f'-{row}' if row else ''}-tiny"
    if "--output" in arguments:
        output = arguments[arguments.index("--output") + 1]
        arguments = [one for one in arguments if one not in ("--output", output)]
    os.chdir(world)
    try:
        is_file = str(next(iter(arguments), "")).endswith(".json")
        run_named(name if is_file else f"{name} {row or ''}", *arguments, "--tiny", "-o", output)
    finally:
        os.chdir(before)
    return world / output


def check(output, name):
    spec = from_json((output / "run.json").read_text(), RunSpec)
    lines = read_metrics(output / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1], name
    assert all(line["loss"] > 0 for line in lines)
    assert load_model(output / "model.safetensors").spec == spec.model
    assert (output / "curves.png").stat().st_size > 1000
    return spec, lines


@pytest.fixture(scope="session", name="plain")
def _plain(world):
    """The output of the shortest run, beside which the scenes lie."""
    return run_tiny(world, ROWS, "plain", narrow("plain"))


@pytest.mark.slow
def test_s2_for_two_steps_then_again(world, capsys):
    output = run_tiny(world, "train_s2")
    spec, lines = check(output, "train_s2")
    assert spec.model.image.stages[0].dim == 80
    assert all(line["distillation"] > 0 and "contrastive" not in line for line in lines)
    assert "mobileclip classify" in capsys.readouterr().out
    before = load_file(output / "model.safetensors")
    assert run_tiny(world, "train_s2") == output
    after = load_file(output / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert len(read_metrics(output / "metrics.jsonl")) == 2
    with fails(SystemExit, "training"):
        run_tiny(world, "train_s2", arguments=["--training.seed", "1"])


@pytest.mark.parametrize("published", [mobileclip_run, mobileclip2_run])
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
    card = read_card("mine")
    assert card.teacher_dims == (48, 32)
    assert spec.training.loss.teacher_dims == card.teacher_dims
    assert spec.training.loss.teacher_logit_scales == card.teacher_logit_scales == (20.0, 40.0)
    assert spec.data.captions == "real"
    assert [line["step"] for line in read_metrics("outputs/own/metrics.jsonl")][-1] == 1
    said = capsys.readouterr().out
    assert all(word in said for word in ("teacher_dims (48, 32)", "teacher_logit_scales (20.0, 40.0)", "real captions"))
    wrong = ["--data.captions", "synthetic", "--training.loss.teacher-dims", "5", "5"]
    with fails(SystemExit, "(5, 5)", "(48, 32)"):
        run_recipe(own, ["--data", "mine", "--quiet", *wrong], name="wrong")
    assert not Path("outputs/wrong").exists()


@pytest.mark.slow
def test_held_out_shards_and_data_sets_in_the_public_layout_between_epochs(world, plain, tmp_path):
    """Their numbers are those of the model that the run leaves, and the run is the one that nobody looked at."""
    folders = write_scene_benchmarks(tmp_path, 12)
    held_out = str(world / "outputs" / "tiny" / "scenes" / "00000000.tar")
    flags = ["--evaluate", *map(str, folders), "--validation", held_out, "--output", str(tmp_path / "seen")]
    run_tiny(world, ROWS, "plain", [*narrow("plain"), *flags])
    seen, alone = (load_model(output / "model.safetensors", fold=False) for output in (tmp_path / "seen", plain))
    assert all(torch.equal(seen.state_dict()[name], value) for name, value in alone.state_dict().items())
    (line,) = (line for line in read_metrics(tmp_path / "seen" / "metrics.jsonl") if "scenes/acc1" in line)
    assert line["step"] == 1
    for direction in ("image_to_text", "text_to_image"):
        assert 0 <= line[f"validation_{direction}_recall_at_1"] <= 1
    for folder in folders:
        benchmark, candidate = open_benchmark(folder), candidate_of(seen, name="student")
        found = evaluate_benchmark(Session.of(candidate, show_progress=False), benchmark)
        logged = {name: line[f"{benchmark.name}/{name}"] for name in found.metrics if name != "main_metric"}
        # One picture more or less, of twelve: two steps leave them close together.
        assert logged == pytest.approx({name: found.metrics[name] for name in logged}, abs=1.01 / 12)


def test_a_data_set_that_cannot_be_evaluated_is_named_before_the_training(world, tmp_path):
    folder, _ = write_scene_benchmarks(tmp_path, 4)
    (folder / "test" / "0.tar").unlink()
    with fails(SystemExit, "1", "scenes"):
        run_tiny(
            world, ROWS, "plain", [*narrow("plain"), "--evaluate", str(folder), "--output", str(tmp_path / "output")]
        )
    assert not (tmp_path / "output" / "metrics.jsonl").exists()


def test_the_plain_row_for_two_steps(plain):
    spec, lines = check(plain, "plain")
    assert all("distillation" not in line for line in lines)
    assert not spec.data.reinforced


def test_a_reinforced_row_for_two_steps(world):
    spec, lines = check(run_tiny(world, ROWS, "one_teacher", narrow("one_teacher")), "one_teacher")
    assert all(line["distillation"] > 0 for line in lines)
    assert spec.data.reinforced


OTHERS = [(name, "") for name in TRAINING if name not in {*WITH_ROWS, "train_s2"}]
OTHERS += [(ROWS, row) for name in runs_of(ROWS) if (row := name.split()[1]) not in {"plain", "one_teacher"}]
# What the rows of the other recipes differ in is a number or a name; one of each kind is trained.
OTHERS += [
    ("train_vit_b16_12m_stored", "augmentations_1"),
    ("train_vit_b16_12m_stored", "captions_2"),
    ("train_vit_b16_12m_text", "mct_0"),
    ("train_vit_b16_12m_text", "mct_6"),
    ("train_b_dfndr12m", "mscoco38k"),
    ("train_b_dfndr12m", "scales_half"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), OTHERS)
def test_every_other_recipe_for_two_steps(world, name, row):
    check(run_tiny(world, name, row), name)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A shard of 24 pictures with a caption each, as img2dataset and tar write it."""
    random, samples = np.random.default_rng(0), {}
    for number in range(24):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (72, 96, 3), np.uint8)).save(file, "JPEG")
        samples[f"{number:06d}"] = {"jpg": file.getvalue(), "txt": f"picture {number}".encode()}
    return write_raw(tmp_path_factory.mktemp("pairs") / "mine-000.tar", samples)


def test_pairs_as_they_are_say_what_they_lack_and_train_with_plain(world, pairs):
    own = [*narrow("one_teacher"), "--data", pairs, "--device", "cpu"]
    with fails(SystemExit, "mine-000.tar", "missing_member", "paug.json", "jpg, txt", "--plain"):
        run_tiny(world, ROWS, "one_teacher", [*own, "--output", "outputs/pairs"])
    assert not (world / "outputs" / "pairs").exists()
    run_tiny(world, ROWS, "one_teacher", [*own, "--plain", "--output", "outputs/pairs"])
    spec, lines = check(world / "outputs" / "pairs", "pairs")
    assert spec.data.captions == "real"
    assert not spec.data.reinforced
    assert spec.training.loss == ContrastiveLossSpec()
    assert "distillation_loss" not in lines[0]


@pytest.mark.parametrize(
    ("members", "named"),
    [({"txt": b"no picture"}, "image"), ({"jpg": b"no caption"}, "caption")],
    ids=["without pictures", "without captions"],
)
def test_plain_pairs_lack_what_they_lack(world, members, named, tmp_path):
    shard = write_raw(tmp_path / "0.tar", {f"{number}": members for number in range(8)})
    with pytest.raises(SystemExit, match=named) as stopped:
        run_tiny(world, ROWS, "plain", [*narrow("plain"), "--data", shard, "--output", "outputs/lacking"])
    assert "--plain" not in str(stopped.value)


@pytest.mark.parametrize(("name", "row"), [("train_b", ""), ("train_mobileclip2_s0", ""), (ROWS, "one_teacher")])
def test_plain_is_clips_loss_on_real_captions(name, row, capsys):
    given, plain = (shown_run(capsys, f"{name} {row}", *flags) for flags in ((), ("--plain",)))
    assert type(plain.data) is ReinforcedPipelineSpec
    assert (plain.data.reinforced, plain.data.captions) == (False, "real")
    assert plain.training.loss == ContrastiveLossSpec()
    assert plain.model == given.model
    assert attrs.evolve(plain.training, loss=given.training.loss) == given.training


def test_a_sigmoid_loss_stays_one_without_its_teachers():
    run = run_of("train_s0")
    loss = ReinforcedLossSpec(initial_logit_bias=-10, teacher_logit_biases=(-10, None), distill_weight=0.5)
    selecting = attrs.evolve(run.training, loss=loss, selection=SelectionSpec(share=0.5))
    assert plain(attrs.evolve(run, training=selecting)).training.loss == SigmoidLossSpec()


def test_a_tokenizer_of_ones_own(tmp_path, capsys):
    """Its name is among the choices, which are taken up again with that file alone."""
    show = partial(shown, capsys, "train_s2")
    for kind in ("bert", "t5"):
        KINDS[kind]().save(str(tmp_path / f"{kind}.json"))
    capsys.readouterr()
    text = show("--tokenizer", tmp_path / "t5.json", "--data.text.context-length", "20")
    spec = from_json(text, RunSpec)
    assert spec.model.text.input == spec.data.text
    assert spec.data.text.context_length == 20
    assert (spec.data.text.start_id, spec.data.text.end_id) == (None, 1)
    sha256 = spec.data.text.tokenizer.sha256
    (tmp_path / "run.json").write_text(text)
    assert show(tmp_path / "run.json", "--tokenizer", tmp_path / "t5.json") == text
    for arguments, said in (
        ([], f"--tokenizer is missing: give the run's tokenizer.json, whose SHA-256 is {sha256}"),
        (["--tokenizer", tmp_path / "bert.json"], "is not the run's tokenizer.json, whose SHA-256 is"),
        (["--tokenizer", tmp_path / "run.json"], "is not a usable tokenizer.json"),
        (["--tokenizer", tmp_path / "none.json"], "none.json"),
    ):
        with pytest.raises(SystemExit, match=said):
            show(tmp_path / "run.json", *arguments)
