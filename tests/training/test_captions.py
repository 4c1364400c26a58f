"""Captioners, trained by the one loop: pieces, kills, other contexts, and captions that name what is seen."""

import io

import attrs
import pytest
import torch
from PIL import Image

from mobileclip.data import ImageTextSample, ReinforcedPipelineSpec, crop_augmentation, write_shards
from mobileclip.encoders import CoCaSpec, TextTransformerSpec, ViTSpec
from mobileclip.encoders.checkpoints import load_model
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import CaptionLossSpec
from mobileclip.reinforce import CheckpointCaptioner
from mobileclip.serialization import from_json
from mobileclip.tensor_files import CheckpointError
from mobileclip.training import AdamWSpec, CaptionObjective, Memory, RunSpec, World, run
from tests.contracts.captioners import check_captioner
from tests.errors import fails
from tests.training.runs import MODEL, assert_killed_goes_on, batch_of, logged, training_spec

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220), "yellow": (230, 220, 40)}
SIZE = {"width": 32, "depth": 1, "num_heads": 2, "embedding_dim": 32}
DECODER = {"decoder_depth": 1, "decoder_heads": 2, "num_queries": 3, "pooler_heads": 2}
CAPTIONER = CoCaSpec(
    image=ViTSpec(**SIZE, patch_size=8, stem="patch", input=ImageInput(size=16)),
    text=TextTransformerSpec(**SIZE, causal=True, input=TextInput(context_length=12, vocab_size=4096)),
    **DECODER,
)
CAPTIONS_ALONE = training_spec(6, loss=CaptionLossSpec(contrastive_weight=0), ema_decay=None, max_gradient_norm=1.0)


def caption_batch(step):
    """Captions of one to eight words, the longest last, so that two processes have other numbers of them."""
    batch = batch_of(step)
    text = torch.randint(2, 4096, (8, 12), generator=torch.Generator().manual_seed(step))
    text[torch.arange(12) > torch.arange(2, 10)[:, None]] = 0
    return attrs.evolve(batch, text=text, syn_text=None)


def square(colour):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), COLOURS[colour]).save(file, format="png")
    return file.getvalue()


# Contrastive and caption term of the first steps.
GOLDEN = [(2.256174, 17.87830), (2.323738, 15.24337)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    samples = []
    for number in range(16):
        colour = [*COLOURS][number % 4]
        told = {"captions": (f"a {colour} square on a page",), "image": square(colour), "image_extension": "png"}
        samples.append(ImageTextSample(key=f"{colour}{number // 4}", **told))
    return tuple(map(str, write_shards(tmp_path_factory.mktemp("squares"), samples, samples_per_shard=8)))


def spec_of(shards, steps=6, peak=3e-3, **changes):
    inputs = {"image": CAPTIONER.image.input, "text": CAPTIONER.text.input, "augmentation": crop_augmentation(16)}
    often = {"batch_size": 8, "sampling": "endless", "num_readers": 2}
    data = ReinforcedPipelineSpec(shards=shards, reinforced=False, **inputs, **often)
    own = {"loss": CaptionLossSpec(), "optimizer": AdamWSpec(weight_decay=0.05), "ema_decay": None}
    return RunSpec(model=CAPTIONER, data=data, training=training_spec(steps, peak=peak, **(own | changes)))


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    spec = spec_of(shards, steps=120, peak=1e-2, log_every_steps=40, checkpoint_every_steps=60)
    return spec, output, run(spec, output)


def test_it_names_what_it_sees_and_keeps_the_contract(trained):
    _, _, path = trained
    spec = CheckpointCaptioner(checkpoint=path, num_captions=2, top_p=1e-6, max_length=12, max_batch=3)
    captions = spec.build().caption([Image.open(io.BytesIO(square(one))) for one in COLOURS], range(4))
    assert captions == [(f"a {one} square on a page",) * 2 for one in COLOURS]
    check_captioner(attrs.evolve(spec, top_p=1.0, temperature=3.0))
    with fails(ValueError, "12"):
        attrs.evolve(spec, max_length=40).build()


def test_two_steps_are_those_of_before(shards, tmp_path):
    run(spec_of(shards, steps=3), tmp_path / "out")
    found = [(one["contrastive"], one["captions"]) for one in logged(tmp_path / "out")[:2]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(GOLDEN), rtol=1e-4, atol=0)


def test_a_killed_run_resumes_to_the_bit(shards, tmp_path):
    assert_killed_goes_on(spec_of(shards), tmp_path)


@pytest.mark.parametrize("contrastive_weight", [0.0, 1.0])
def test_pieces_make_no_difference(contrastive_weight, shards):
    loss = CaptionLossSpec(contrastive_weight=contrastive_weight)
    batch = next(iter(spec_of(shards).data.build()))
    found = []
    for size in (None, 3):
        torch.manual_seed(0)
        training = attrs.evolve(spec_of(shards).training, loss=loss, memory=Memory(micro_batch=size))
        objective = CaptionObjective(training, model=CAPTIONER.build(), world=World())
        terms = objective(batch)
        terms[-1].backward()
        found.append((torch.stack(terms), [p.grad for p in objective.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_files_of_a_run_start_another_of_a_longer_context(shards, trained, tmp_path):
    spec, output, path = trained
    assert from_json((output / "run.json").read_text(), RunSpec) == spec
    newest = max((output / "checkpoints").iterdir())
    finished = load_model(path, fold=False)
    for name, tensor in load_model(newest, fold=False).state_dict().items():
        torch.testing.assert_close(tensor, finished.state_dict()[name], msg=name)
    text = attrs.evolve(CAPTIONER.text.input, context_length=16)
    longer = attrs.evolve(CAPTIONER, text=attrs.evolve(CAPTIONER.text, input=text))
    again = spec_of(shards, steps=3)
    data = attrs.evolve(again.data, text=text)
    run(attrs.evolve(again, model=longer, data=data, initial_weights=path), tmp_path / "again")
    assert logged(tmp_path / "again")[0]["captions"] < 0.2 * GOLDEN[0][1]
    positions = [load_model(path, fold=False, context_length=length).text_encoder.position for length in (None, 16)]
    torch.testing.assert_close(positions[0][[0, -1]], positions[1][[0, -1]])
    with fails(CheckpointError):
        load_model(path, longer)


def test_what_no_captioner_is_trained_with_is_refused(shards):
    training = spec_of(shards).training
    with fails(ValueError, "DualEncoder"):
        CaptionObjective(training, model=MODEL.build(), world=World())
    batch = next(iter(spec_of(shards).data.build()))
    objective = CaptionObjective(training, model=CAPTIONER.build(), world=World())
    with fails(ValueError, "two captions"):
        objective(attrs.evolve(batch, syn_text=batch.text))
