"""Whole runs on reinforced shards: claimed folders, initial weights, shares of a batch, the card's teachers."""

import json

import attrs
import pytest
import torch
from safetensors.torch import load_file

from mobileclip import data, reparameterize
from mobileclip.data import StreamPosition, TeacherEntry, write_shard, write_shards
from mobileclip.encoders import load_model, save_model
from mobileclip.inputs import ImageInput
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.serialization import from_json
from mobileclip.training import CosineSchedule, RunSpec, follow_card, run
from mobileclip.training.checkpoint import read_state
from tests.data.made_samples import make_sample
from tests.errors import fails
from tests.training.program import run_spec, write_data

BASE = run_spec("", num_steps=6, num_workers=0)
MODEL, LOSS = BASE.model, BASE.training.loss
DIMS, SCALES = LOSS.teacher_dims, LOSS.teacher_logit_scales


@pytest.fixture
def folder(tmp_path):
    """Reinforced shards with their card."""
    write_data(tmp_path / "data")
    teachers = [
        TeacherEntry(name=f"{dim}", weights_sha256="", dim=dim, logit_scale=scale, image=ImageInput(size=32))
        for dim, scale in zip(DIMS, SCALES, strict=True)
    ]
    augmentation = data.datacompdr_augmentation(32)
    card = data.ReinforcementCard(teachers=tuple(teachers), augmentation=augmentation, layout="npz")
    data.write_card(tmp_path / "data", card)
    return tmp_path


def spec(folder, *, choices=(), **training):
    """A run on these shards, with choices of its data and of its training."""
    base = run_spec(folder / "data", num_steps=6, num_workers=0)
    changes = {"checkpoint_every_steps": 2, "evaluate_every_steps": None} | training
    pipeline = attrs.evolve(base.data, batch_size=6, num_samples=None, **dict(choices))
    return attrs.evolve(base, data=pipeline, training=attrs.evolve(base.training, **changes))


def begin(folder, own, output="run", **choices):
    return run(own, folder / output, device="cpu", **choices)


def test_a_resumed_run_is_a_whole_one_though_a_sample_is_skipped_on_the_way(folder):
    samples = [make_sample(index) for index in range(6)]
    samples[2] = attrs.evolve(samples[2], image=b"not an image")
    write_shards(folder / "data", samples)
    whole, parts = folder / "whole", folder / "parts"
    own = spec(folder, keep_checkpoints=9)
    begin(folder, own, "whole")
    begin(folder, own, "parts")
    first, *later = sorted((parts / "checkpoints").iterdir())
    for path in later:
        path.unlink()
    position = from_json(read_state(first).metadata["position"], StreamPosition)
    assert (position.first_batch, position.num_readers, position.skipped) == (2, 16, {"image_not_an_image": 1})
    (said,) = (parts / "skipped").iterdir()
    assert said.name == "step-00000002.process-0.jsonl"
    assert json.loads(said.read_text()).items() >= {"key": "000002", "reason": "image_not_an_image"}.items()
    (parts / "skipped" / "step-00000004.process-1.jsonl").write_text("of what comes again")
    begin(folder, own, "parts")
    names, expected = ({path.name for path in (place / "skipped").iterdir()} for place in (parts, whole))
    assert names == expected
    for path in later:
        torch.testing.assert_close(
            load_file(path), load_file(whole / "checkpoints" / path.name), rtol=0, atol=0, equal_nan=True
        )


def test_initial_weights(folder):
    model = MODEL.build().eval()
    save_model(model, folder / "start.safetensors")
    slow = CosineSchedule(peak=1e-12, final=0.0, warmup_steps=1, total_steps=2)
    own = attrs.evolve(spec(folder, schedule=slow), initial_weights=folder / "start.safetensors")
    trained = load_model(begin(folder, own), fold=False)
    for name, parameter in trained.named_parameters():
        torch.testing.assert_close(parameter, model.state_dict()[name], atol=1e-6, rtol=0)
    save_model(reparameterize(model), folder / "folded.safetensors")
    with fails(ValueError, "folded"):
        begin(folder, attrs.evolve(own, initial_weights=folder / "folded.safetensors"), "other")


class StoppedError(Exception):
    """Stands for what ends a run."""


def stop_at(step):
    """Return an evaluation that ends the run after a step."""

    def evaluate(_, done):
        if done == step:
            raise StoppedError
        return {}

    return lambda _: evaluate


OTHER_TEACHERS = ReinforcedLossSpec(teacher_dims=DIMS[::-1], teacher_logit_scales=SCALES)
TOO_FAST = CosineSchedule(peak=1e30, warmup_steps=0, total_steps=6)
FAILURES = {
    "before the first step": ({"loss": OTHER_TEACHERS}, ValueError, None),
    "in a step": ({"schedule": TOO_FAST}, FloatingPointError, None),
    "in an evaluation": ({"seed": 5, "evaluate_every_steps": 1}, StoppedError, stop_at(1)),
}


@pytest.mark.parametrize(("wrong", "error", "evaluate"), FAILURES.values(), ids=FAILURES)
def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_folder_to_mended_choices(
    folder, wrong, error, evaluate
):
    mended = spec(folder, checkpoint_every_steps=6)
    with pytest.raises(error):
        begin(folder, spec(folder, checkpoint_every_steps=6, **wrong), evaluate=evaluate)
    begin(folder, mended)
    assert from_json((folder / "run" / "run.json").read_text(), RunSpec) == mended


def test_a_run_that_fails_behind_a_checkpoint_keeps_its_folder(folder):
    own = spec(folder, evaluate_every_steps=1)
    with pytest.raises(StoppedError):
        begin(folder, own, evaluate=stop_at(3))
    with fails(ValueError, "training"):
        begin(folder, spec(folder, seed=5))
    begin(folder, own)


def without_captions(folder, sets=()):
    """The shards without synthetic captions, and what the card says of them."""
    for index in range(4):
        plain = []
        for sample in map(make_sample, range(6 * index, 6 * index + 6)):
            captions, embeddings = sample.syn_captions["syn_text"], sample.syn_text_emb["syn_text"]
            changes = {"syn_captions": dict.fromkeys(sets, captions), "syn_text_emb": dict.fromkeys(sets, embeddings)}
            plain.append(attrs.evolve(sample, **changes))
        write_shard(folder / "data" / f"{index:08d}.tar", plain)


def test_data_without_the_asked_captions_are_refused_before_anything_is_done(folder):
    without_captions(folder)
    with fails(ValueError, "24 no_syn_caption", "captions='real'"):
        begin(folder, spec(folder))
    assert not (folder / "run").exists()
    begin(folder, spec(folder, choices={"captions": "real"}))
    without_captions(folder, sets=("syn_text_other",))
    with fails(ValueError, "no_syn_caption", "syn_text_own$"):
        begin(folder, spec(folder, choices={"caption_sets": "syn_text_own$"}), "sets")
    begin(folder, spec(folder), "sets")  # captions that the source had: the card knows of no captioner


def test_what_only_the_recipe_chose_follows_the_card(folder):
    without_captions(folder)
    recipe = spec(folder, loss=ReinforcedLossSpec(teacher_dims=(9,), teacher_logit_scales=(9,)))
    followed, told = follow_card(recipe, recipe)
    loss = followed.training.loss
    assert (loss.teacher_dims, loss.teacher_logit_scales, followed.data.captions) == (DIMS, SCALES, "real")
    assert [str(DIMS) in told[0], str(SCALES) in told[1], "real captions" in told[2]] == [True] * 3
    assert follow_card(followed) == (followed, ())
    begin(folder, followed)


def test_what_was_asked_for_and_contradicts_the_card_is_refused_at_once(folder):
    without_captions(folder)
    other = ReinforcedLossSpec(teacher_dims=DIMS[::-1], teacher_logit_scales=(1, 2))
    asked = spec(folder, loss=other, choices={"captions": "synthetic", "caption_sets": "syn_text$"})
    for known in (spec(folder), None):
        with fails(ValueError, f"{DIMS[::-1]}", "(1.0, 2.0)", f"{SCALES}"):
            follow_card(asked, known)
    with fails(ValueError, "1.0, 2.0"):
        begin(folder, asked)
    assert not (folder / "run").exists()


def test_scales_that_were_tuned_are_kept(folder):
    loss = attrs.evolve(LOSS, teacher_logit_scales=(1, 2))
    with fails(ValueError, "1.0, 2.0"):
        follow_card(spec(folder, loss=loss))
    tuned = spec(folder, loss=attrs.evolve(loss, tuned_scales=True))
    assert follow_card(tuned) == follow_card(tuned, tuned) == (tuned, ())
