"""Several captioners in one job: as one job for each, and all of them in the card."""

import hashlib
import io

import attrs
import pytest
from PIL import Image

from mobileclip.data import AugmentationSpec, read_card, read_samples, write_shard
from mobileclip.datasets import ShardSource
from mobileclip.encoders import CoCaSpec, TextTransformerSpec, ViTSpec
from mobileclip.encoders.checkpoints import save_model
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput, TextInput
from mobileclip.reinforce import (
    Captioner,
    CaptionSet,
    CheckpointCaptioner,
    CocaCaptioner,
    ReinforcementSpec,
    SeveralCaptioners,
    reinforce,
)
from mobileclip.reinforce.captioners import with_weights
from mobileclip.serialization import from_json
from mobileclip.tensor_files import weights_sha256
from tests.errors import fails
from tests.recipes.choices import REINFORCING
from tests.recipes.running import shown
from tests.reinforce.conftest import picture, plain_sample
from tests.reinforce.open_clip_models import write_tiny_models

NAMES = ("syn_text_first", "syn_text_second")


@pytest.fixture(scope="module")
def captioners(tiny, tmp_path_factory):
    other = write_tiny_models(tmp_path_factory.mktemp("other"), seed=7).captioner
    return attrs.evolve(tiny.captioner, num_captions=2, max_length=8), attrs.evolve(other, num_captions=1, max_length=8)


@pytest.fixture(scope="module")
def several(captioners):
    return SeveralCaptioners(
        sets=[CaptionSet(name=name, captioner=one) for name, one in zip(NAMES, captioners, strict=True)]
    )


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    return str(write_shard(tmp_path / "in" / "a.tar", [plain_sample(f"k{seed}", seed) for seed in range(3)]))


def job(source, output, captioner, caption_set="syn_text"):
    spec = ReinforcementSpec(
        source=source,
        output=output,
        captioner=captioner,
        caption_set=caption_set,
        augmentation=AugmentationSpec(size=32, reference_size=32),
    )
    return reinforce(spec, captioner=captioner.build(), show_progress=False)


def test_one_job_is_as_one_job_for_each(source, several, captioners, tmp_path):
    together = list(read_samples(job(source, tmp_path / "both", several).shards))
    first = job(source, tmp_path / "first", captioners[0], NAMES[0])
    after = job(ShardSource(shards=first.shards), tmp_path / "second", captioners[1], NAMES[1])
    assert [sample.syn_captions for sample in read_samples(after.shards)] == [one.syn_captions for one in together]
    # The source has a set of its own.
    for sample in together:
        counts = {name: len(texts) for name, texts in sample.syn_captions.items()}
        assert counts == {"syn_text": 2, NAMES[0]: 2, NAMES[1]: 1}
    card = read_card(tmp_path / "both")
    assert card == read_card(tmp_path / "second")
    counts = {entry.caption_set: entry.spec["num_captions"] for entry in card.captioners}
    assert counts == {NAMES[0]: 2, NAMES[1]: 1}
    assert len({entry.weights_sha256 for entry in card.captioners}) == 2


def test_where_one_captioner_is_expected_several_are_one(several, captioners):
    images = [Image.new("RGB", (40, 32), colour) for colour in ("red", "blue")]
    ensemble = several.build()
    assert isinstance(ensemble, Captioner)
    built = [one.build() for one in captioners]
    assert ensemble.name == " + ".join(one.name for one in built)
    hashes = "".join(one.weights_sha256 for one in built)
    assert ensemble.weights_sha256 == hashlib.sha256(hashes.encode()).hexdigest()
    captions = ensemble.caption(images, [1, 2])
    assert [len(texts) for texts in captions] == [3, 3]
    assert ensemble.caption(images[::-1], [2, 1]) == captions[::-1]


def test_captioners_draw_numbers_of_their_own(source, captioners, tmp_path):
    """The same captioner twice writes two sets."""
    twice = SeveralCaptioners(sets=[CaptionSet(name=name, captioner=captioners[0]) for name in NAMES])
    written = [sample.syn_captions for sample in read_samples(job(source, tmp_path / "new", twice).shards)]
    assert [one[NAMES[0]] for one in written] != [one[NAMES[1]] for one in written]


def test_a_captioner_that_forgets_an_image_is_an_error(several, monkeypatch):
    """And no image gets another's captions, or none."""
    ensemble = several.build()
    monkeypatch.setattr(ensemble.sets[NAMES[1]], "caption", lambda images, _: [("a cat",)] * (len(images) - 1))
    with fails(ValueError):
        ensemble.caption([Image.new("RGB", (40, 32))] * 2, [1, 2])


def test_files_bring_their_architecture_and_the_names_of_their_sets(tmp_path):
    """Of a context of 128 positions: nothing is interpolated to the 77 of open_clip's coca_ViT-L-14."""
    image = ImageInput(size=28, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD)
    tower = {"width": 64, "depth": 1, "num_heads": 1, "embedding_dim": 64}
    vit = {"stem": "patch", "class_position": True, "norm_before": True, "initialization": "open_clip"}
    model = CoCaSpec(
        image=ViTSpec(input=image, patch_size=14, **vit, **tower),
        text=TextTransformerSpec(input=TextInput(context_length=127), causal=True, **tower),
        decoder_depth=1,
        decoder_heads=1,
        num_queries=8,
    ).build()
    file = str(tmp_path / "coca.context-128.pt")
    save_model(model, file, layout="open_clip_coca")
    one = with_weights(CocaCaptioner(num_captions=2, max_length=120), [file])
    built = one.build()
    assert built.weights_sha256 == weights_sha256(model.state_dict())
    (captions,) = built.caption([Image.open(io.BytesIO(picture(0)))], [1])
    assert all(captions)
    assert len(captions) == 2
    several = with_weights(CocaCaptioner(), [file, "hf-hub:apple/mobileclip2_coca@main", "w/gbc.pt"])
    assert {one.name: one.captioner.checkpoint for one in several.sets} == {
        "syn_text_coca_context_128": file,
        "syn_text_mobileclip2_coca": "hf-hub:apple/mobileclip2_coca@main",
        "syn_text_gbc": "w/gbc.pt",
    }
    with fails(ValueError, "syn_text_gbc"):
        with_weights(CocaCaptioner(), ["a/gbc.pt", "b/gbc.pt"])


@pytest.mark.parametrize("recipe", REINFORCING)
def test_weights_on_the_command_line_replace_the_captioner_of_every_recipe(recipe, capsys):
    text = shown(capsys, recipe, "--data", "a.tar", "--captioner-weights", "hf-hub:owner/name")
    spec = from_json(text, ReinforcementSpec)
    assert spec.captioner == CheckpointCaptioner(checkpoint="hf-hub:owner/name", num_captions=5, top_p=0.9)


def test_mistakes(captioners):
    for sets, named in (([CaptionSet(name="syn_text", captioner=one) for one in captioners], "syn_text"), ([], "sets")):
        with fails(ValueError, named):
            SeveralCaptioners(sets=sets)
    with fails(ValueError, "name"):
        CaptionSet(name="captions", captioner=captioners[0])
