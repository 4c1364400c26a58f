"""Whole runs on reinforced shards: claimed folders, initial weights, shares of a batch, the card's teachers."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mobileclip import reparameterize
from mobileclip.data import (
    ReinforcementCard,
    StreamPosition,
    TeacherEntry,
    datacompdr_augmentation,
    write_card,
    write_shard,
    write_shards,
)
from mobileclip.encoders import load_model, save_model
from mobileclip.inputs import ImageInput
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.serialization import from_json
from mobileclip.training import CosineSchedule, RunSpec, follow_card, run
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
    card = ReinforcementCard(teachers=tuple(teachers), augmentation=datacompdr_augmentation(32), layout="npz")
    write_card(tmp_path / "data", card)
    return tmp_path


def spec(folder, **training):
    base = run_spec(folder / "data", num_steps=6, num_workers=0)
    changes = {"checkpoint_every_steps": 2, "evaluate_every_steps": None} | training
    data = attrs.evolve(base.data, batch_size=6, num_samples=None)
    return attrs.evolve(base, data=data, training=attrs.evolve(base.training, **changes))


def test_a_resumed_run_is_a_whole_one_though_a_sample_is_skipped_on_the_way(folder):
    samples = [make_sample(index) for index in range(6)]
    samples[2] = attrs.evolve(samples[2], image=b"not an image")
    write_shards(folder / "data", samples)
    whole, parts = folder / "whole", folder / "parts"
    own = spec(folder, keep_checkpoints=9)
    run(own, whole, device="cpu")
    run(own, parts, device="cpu")
    first, *later = sorted((parts / "checkpoints").iterdir())
    for path in later:
        path.unlink()
    with safe_open(first, framework="pt") as file:
        position = from_json(file.metadata()["position"], StreamPosition)
    assert position.first_batch == 2
    assert position.num_readers == 16
    assert position.skipped == {"image_not_an_image": 1}
    (said,) = (parts / "skipped").iterdir()
    assert said.name == "step-00000002.process-0.jsonl"
    skip = json.loads(said.read_text())
    assert (skip["key"], skip["reason"]) == ("000002", "image_not_an_image")
    (parts / "skipped" / "step-00000004.process-1.jsonl").write_text("of what comes again")
    run(own, parts, device="cpu")
    names = {path.name for path in (whole / "skipped").iterdir()}
    assert {path.name for path in (parts / "skipped").iterdir()} == names
    for path in later:
        expected, found = load_file(whole / "checkpoints" / path.name), load_file(path)
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_initial_weights(folder):
    torch.manual_seed(5)
    model = MODEL.build().eval()
    save_model(model, folder / "start.safetensors")
    slow = CosineSchedule(peak=1e-12, final=0.0, warmup_steps=1, total_steps=2)
    own = attrs.evolve(spec(folder, schedule=slow), initial_weights=folder / "start.safetensors")
    trained = load_model(run(own, folder / "run", device="cpu"), fold=False)
    for name, parameter in trained.named_parameters():
        torch.testing.assert_close(parameter, model.state_dict()[name], atol=1e-6, rtol=0)
    save_model(reparameterize(model), folder / "folded.safetensors")
    with fails(ValueError, "folded"):
        run(attrs.evolve(own, initial_weights=folder / "folded.safetensors"), folder / "other", device="cpu")


class StoppedError(Exception):
    """Stands for what ends a run."""


def stop_at(step):
    """Return an evaluation that ends the run after a step."""

    def evaluate(_, done):
        if done == step:
            raise StoppedError
        return {}

    return lambda _: evaluate


@pytest.mark.parametrize(
    ("wrong", "error", "evaluate"),
    [
        ({"loss": ReinforcedLossSpec(teacher_dims=DIMS[::-1], teacher_logit_scales=SCALES)}, ValueError, None),
        ({"schedule": CosineSchedule(peak=1e30, warmup_steps=0, total_steps=6)}, FloatingPointError, None),
        ({"seed": 5, "evaluate_every_steps": 1}, StoppedError, stop_at(1)),
    ],
    ids=["before the first step", "in a step", "in an evaluation"],
)
def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_folder_to_mended_choices(
    folder, wrong, error, evaluate
):
    every = {"checkpoint_every_steps": 6}
    with pytest.raises(error):
        run(spec(folder, **every, **wrong), folder / "run", evaluate=evaluate, device="cpu")
    run(spec(folder, **every), folder / "run", device="cpu")
    assert from_json((folder / "run" / "run.json").read_text(), RunSpec) == spec(folder, **every)


def test_a_run_that_fails_behind_a_checkpoint_keeps_its_folder(folder):
    own = spec(folder, evaluate_every_steps=1)
    with pytest.raises(StoppedError):
        run(own, folder / "run", evaluate=stop_at(3), device="cpu")
    with fails(ValueError, "training"):
        run(spec(folder, seed=5), folder / "run", device="cpu")
    run(own, folder / "run", device="cpu")


def without_captions(folder, sets=()):
    """The shards without synthetic captions, and what the card says of them."""
    for index in range(4):
        samples = [make_sample(6 * index + one) for one in range(6)]
        plain = [
            attrs.evolve(
                sample,
                syn_captions=dict.fromkeys(sets, sample.syn_captions["syn_text"]),
                syn_text_emb=dict.fromkeys(sets, sample.syn_text_emb["syn_text"]),
            )
            for sample in samples
        ]
        write_shard(folder / "data" / f"{index:08d}.tar", plain)


def test_data_without_synthetic_captions_is_refused_before_anything_is_done(folder):
    without_captions(folder)
    own = spec(folder)
    with fails(ValueError, "24 no_syn_caption", "captions='real'"):
        run(own, folder / "run", device="cpu")
    assert not (folder / "run").exists()
    run(attrs.evolve(own, data=attrs.evolve(own.data, captions="real")), folder / "run", device="cpu")


def test_data_without_the_asked_captions_is_refused(folder):
    without_captions(folder, sets=("syn_text_other",))
    own = spec(folder)
    asked = attrs.evolve(own, data=attrs.evolve(own.data, caption_sets="syn_text_own$"))
    with fails(ValueError, "no_syn_caption", "syn_text_own$"):
        run(asked, folder / "run", device="cpu")
    run(own, folder / "run", device="cpu")  # captions that the source had: the card knows of no captioner


def test_what_only_the_recipe_chose_follows_the_card(folder):
    without_captions(folder)
    recipe = spec(folder, loss=ReinforcedLossSpec(teacher_dims=(9,), teacher_logit_scales=(9,)))
    followed, told = follow_card(recipe, recipe)
    loss = followed.training.loss
    assert (loss.teacher_dims, loss.teacher_logit_scales, followed.data.captions) == (DIMS, SCALES, "real")
    assert [str(DIMS) in told[0], str(SCALES) in told[1], "real captions" in told[2]] == [True] * 3
    assert follow_card(followed) == (followed, ())
    run(followed, folder / "run", device="cpu")


def test_what_was_asked_for_and_contradicts_the_card_is_refused_at_once(folder):
    without_captions(folder)
    recipe = spec(folder)
    other = ReinforcedLossSpec(teacher_dims=DIMS[::-1], teacher_logit_scales=(1, 2))
    asked = attrs.evolve(
        spec(folder, loss=other), data=attrs.evolve(recipe.data, captions="synthetic", caption_sets="syn_text$")
    )
    for known in (recipe, None):
        with fails(ValueError, f"{DIMS[::-1]}", "(1.0, 2.0)", f"{SCALES}"):
            follow_card(asked, known)
    with fails(ValueError, "1.0, 2.0"):
        run(asked, folder / "run", device="cpu")
    assert not (folder / "run").exists()


def test_scales_that_were_tuned_are_kept(folder):
    loss = attrs.evolve(LOSS, teacher_logit_scales=(1, 2))
    with fails(ValueError, "1.0, 2.0"):
        follow_card(spec(folder, loss=loss))
    tuned = spec(folder, loss=attrs.evolve(loss, tuned_scales=True))
    assert follow_card(tuned) == follow_card(tuned, tuned) == (tuned, ())
